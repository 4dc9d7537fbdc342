"""How a function's code comes into a guest: inline when it is small, else on a read-only disk per layer."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from workers.drivers.microvm.carried import Carried
from workers.ports import DriverError

LAYERS_AT = ("/var/task", "/opt/deps")


class CodeSource:
    async def carry(self, layers: Sequence[Path]) -> Carried:
        files: list[tuple[str, int, int]] = []
        bodies: list[bytes] = []
        for layer, at in zip(layers, LAYERS_AT, strict=False):
            if not layer.is_dir():
                raise DriverError(f"attaching the code: {layer} is not there")
            for folder, folders, names in os.walk(layer):
                for name in folders:
                    path = Path(folder) / name
                    files.append((f"{at}/{path.relative_to(layer)}", 0o40755, 0))
                for name in names:
                    path = Path(folder) / name
                    bodies.append(path.read_bytes())
                    files.append((f"{at}/{path.relative_to(layer)}", 0o100644, len(bodies[-1])))
        return Carried(files, b"".join(bodies), LAYERS_AT[: len(layers)])

    def inline(self, sources: Mapping[str, str]) -> Carried:
        files = [(f"{LAYERS_AT[0]}/{name}", 0o100644, len(text)) for name, text in sources.items()]
        return Carried(files, "".join(sources.values()).encode(), LAYERS_AT[:1])
