"""How a function's code comes into a guest: inline with SPECIALISE when it is small, else on a read-only disk per layer."""

import marshal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workers.drivers.microvm.machine import Machine
from workers.ports import DriverError


@dataclass(frozen=True, slots=True)
class Carried:
    meta: dict[str, Any]
    body: bytes
    images: tuple[Path, ...] = ()


class Disks:
    def __init__(self) -> None:
        self.places: list[tuple[str, str]] = []

    async def attach(self, machine: Machine, carried: Carried) -> None:
        pass

    def close(self) -> None:
        pass


class CodeSource:
    def __init__(self) -> None:
        pass

    async def carry(self, layers: Sequence[Path]) -> Carried:
        found = {}
        for layer in layers:
            if not layer.is_dir():
                raise DriverError(f"attaching the code: {layer} is not there")
            for path in layer.rglob("*"):
                if path.is_file():
                    found[str(path.relative_to(layer))] = path.read_bytes()
        return Carried({}, marshal.dumps(found))

    async def exercise(self):
        from workers.drivers.microvm.exercise import SOURCE

        return {}, marshal.dumps({"exercise.py": SOURCE.encode()})
