"""How a function's code comes into a guest: inline when a layer is small, else on a read-only disk of the layer's own."""

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path

from workers.drivers.microvm.carried import Carried
from workers.drivers.microvm.disk import DiskError, Disks, identity
from workers.drivers.microvm.inline import MAX_FILES, Inline, inline
from workers.ports import DriverError

LAYERS_AT = ("/var/task", "/opt/deps")
DEVICES = ("vda", "vdb")
INLINE_BYTES = 256 << 10
"""From here on a disk is quicker: over the port 1 MB takes a guest 60 ms, mounting a disk for the first time 75 ms (tcg)."""
MOST_BYTES, MOST_FILES = 7 << 20, 4096
"""Of a layer that comes inline because there are no disks here; a frame holds 16 MiB."""
KEPT_BYTES = 32 << 20
DISKS_BYTES = 2 << 30


class CodeSource:
    """`folder`: for images of layers, its own. `python`: of the guest. `disk_bytes`: what a guest was told a disk holds."""

    def __init__(self, folder: Path, python: str, disk_bytes: int, bound: int = DISKS_BYTES) -> None:
        self._python = python
        self._disks = Disks(folder, disk_bytes, bound)
        self._kept: OrderedDict[str, Inline] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def missing(self) -> str:
        """Why large layers cannot be attached here; empty when they can."""
        return self._disks.missing

    async def carry(self, layers: Sequence[Path]) -> Carried:
        """Raises DriverError."""
        return await asyncio.get_running_loop().run_in_executor(None, self._carry, layers)

    def inline(self, sources: Mapping[str, str]) -> Carried:
        """Sources of our own, in the first layer's place."""
        files = [(f"{LAYERS_AT[0]}/{name}", 0o100644, len(text.encode())) for name, text in sources.items()]
        return Carried(files, "".join(sources.values()).encode(), LAYERS_AT[:1])

    def _carry(self, layers: Sequence[Path]) -> Carried:
        files: list[tuple[str, int, int]] = []
        bodies: list[bytes] = []
        disks: list[tuple[str, str]] = []
        images: list[tuple[int, int]] = []
        try:
            for number, (layer, place) in enumerate(zip(layers, LAYERS_AT, strict=False)):
                small = self._small(layer)
                if small is not None:
                    files += small.below(place)
                    bodies.append(small.body)
                else:
                    images.append((number, self._disks.open(layer)))
                    disks.append((DEVICES[number], place))
        except (OSError, DiskError) as error:
            Carried(images=images).close()
            where = "" if isinstance(error, DiskError) else f"{error.filename}: "
            raise DriverError(f"attaching the code: {where}{getattr(error, 'strerror', None) or error}") from error
        return Carried(files, b"".join(bodies), LAYERS_AT[: len(layers)], disks, images)

    def _small(self, layer: Path) -> Inline | None:
        """The layer when it is small. Raises OSError, DiskError when it is not and there are no disks."""
        key = identity(layer)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        found = inline(layer, self._python, INLINE_BYTES, MAX_FILES)
        if found is None and self.missing:
            found = inline(layer, self._python, MOST_BYTES, MOST_FILES)
            if found is None:
                raise DiskError(
                    f"{layer} has over {MOST_BYTES >> 20} MiB or {MOST_FILES} files, which needs a disk, and {self.missing}"
                )
        if found is not None:
            with self._lock:
                self._kept[key] = found
                while sum(len(one.body) for one in self._kept.values()) > KEPT_BYTES:
                    self._kept.popitem(last=False)
        return found
