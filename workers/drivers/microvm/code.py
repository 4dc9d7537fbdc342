"""How a function's code comes into a guest: inline when it is small, else on a read-only disk per layer."""

import asyncio
import os
import sys
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from workers.drivers.microvm.apart import UNCONFINED, Apart
from workers.drivers.microvm.carried import Carried
from workers.drivers.microvm.compiled import bytecode
from workers.drivers.microvm.disk import DiskError, Disks
from workers.drivers.microvm.inline import MAX_FILES, Inline, inline
from workers.drivers.microvm.threads import in_thread
from workers.ports import DriverError

LAYERS_AT = ("/var/task", "/opt/deps")
DEVICES = ("vda", "vdb")
MOST_INLINE = 1 << 20
"""Bytes of a layer that goes inline: sending more takes longer than mounting a disk."""
WITHOUT_DISKS, FILES_WITHOUT_DISKS = 7 << 20, 4096
"""Likewise where there are no disks: slow, but it works. A frame holds 16 MiB."""
KEPT_INLINE = 64 << 20
"""Bytes of inline layers kept in memory, all versions."""

Key = tuple[Path, int, int]


class CodeSource:
    """Use it on one event loop; what reads the disk runs in threads. `python`: of the guest, "3.11". `apart` compiles."""

    def __init__(self, disks: Disks, python: str, apart: Apart = UNCONFINED) -> None:
        self._disks = disks
        self._apart = apart
        self._python = python
        self._kept: OrderedDict[Key, Inline | None] = OrderedDict()
        self._bytes = 0

    async def carry(self, layers: Sequence[Path]) -> Carried:
        """`layers` as the guest takes them; the caller closes the disks' descriptors. Raises DriverError."""
        if len(layers) > len(LAYERS_AT):
            raise DriverError(f"attaching the code: {len(layers)} layers; a microVM takes {len(LAYERS_AT)}")
        files: list[tuple[str, int, int]] = []
        bodies: list[bytes] = []
        disks: list[tuple[str, str]] = []
        descriptors: list[int] = []
        try:
            for layer, place in zip(layers, LAYERS_AT, strict=False):
                small = await self._inline(layer)
                if small is not None:
                    files += small.below(place)
                    bodies.append(small.body)
                else:
                    if missing := self._disks.missing:
                        most = f"{WITHOUT_DISKS >> 20} MiB or {FILES_WITHOUT_DISKS} files"
                        raise DiskError(f"{layer} has more than {most}, which needs a disk, and {missing}")
                    disks.append((DEVICES[len(disks)], place))
                    descriptors.append(await in_thread(partial(self._disks.open, layer), os.close))
        except BaseException as error:
            for descriptor in descriptors:
                os.close(descriptor)
            if isinstance(error, OSError | DiskError):
                raise DriverError(f"attaching the code: {error}") from error
            raise
        return Carried(files, b"".join(bodies), LAYERS_AT[: len(layers)], disks, descriptors)

    async def _inline(self, layer: Path) -> Inline | None:
        """None: it is too large for that. A layer never changes; one that went and came again is another. Raises OSError."""
        state = os.stat(layer)
        key = (layer, state.st_ino, state.st_ctime_ns)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        most = (WITHOUT_DISKS, FILES_WITHOUT_DISKS) if self._disks.missing else (MOST_INLINE, MAX_FILES)
        made = await asyncio.get_running_loop().run_in_executor(None, partial(inline, layer, self._python, *most, self._apart))
        if key not in self._kept:
            self._kept[key] = made
            self._bytes += _size(made)
            while self._bytes > KEPT_INLINE:
                _, gone = self._kept.popitem(last=False)
                self._bytes -= _size(gone)
        return made


class Given:
    """Code that was carried already, in place of a CodeSource; whoever carried it keeps its descriptors."""

    def __init__(self, carried: Carried) -> None:
        self._carried = carried

    async def carry(self, layers: Sequence[Path]) -> Carried:
        held: list[int] = []
        try:
            for one in self._carried.descriptors:
                held.append(os.dup(one))  # noqa: PERF401  (those before one that fails are closed)
        except OSError as error:
            for one in held:
                os.close(one)
            raise DriverError(f"attaching the code: {error.strerror}") from error
        return replace(self._carried, descriptors=held)


def written(sources: Mapping[str, str]) -> Carried:
    """Sources of our own, by name, as code that comes inline, with the bytecode of this interpreter: another's leaves it."""
    folder = f"{LAYERS_AT[0]}/__pycache__"
    files, bodies = [(folder, 0o040755, 0)], [b""]
    for name, text in sources.items():
        path = f"{LAYERS_AT[0]}/{name}"
        cached = f"{folder}/{name.removesuffix('.py')}.{sys.implementation.cache_tag}.pyc"
        made = bytecode(text.encode(), path)
        files += [(path, 0o100644, len(text.encode())), (cached, 0o100644, len(made))]
        bodies += [text.encode(), made]
    return Carried(files, b"".join(bodies), LAYERS_AT[:1])


def _size(one: Inline | None) -> int:
    return 1024 + (0 if one is None else len(one.body) + sum(len(path) + 64 for path, _, _ in one.files))
