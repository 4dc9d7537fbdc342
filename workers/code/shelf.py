"""The folder of tier 1: where layers lie on the node's disk, and how they come there and go.

    FOLDER/<tenant>/<hex>/          a whole, verified layer: it appears by a rename and is never written again
    FOLDER/<tenant>/<hex>.doubtful  one that was here when the machine went down, and was not verified since
    FOLDER/<tenant>/<hex>.tmp-*     being written; swept at the next start
    FOLDER/<tenant>/<hex>.gone-*    being removed; swept too

Layers are readable by every user, because each sandbox runs as a user of its own. The folders above them are 0711: they can be
passed through by who knows a digest and listed by nobody else, so one tenant's sandbox user learns no names of another's.
"""

import contextlib
import fcntl
import os
import secrets
import shutil
import struct
from collections.abc import Iterable
from pathlib import Path

import msgspec

from workers.code.manifest import LayerError, hex_of

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
BOOT_FILE = ".boot"
DOUBTFUL = ".doubtful"
BLOCK = 4096
FS_IOC_GETFLAGS, FS_IOC_SETFLAGS, FS_TOPDIR_FL = 0x80086601, 0x40086602, 0x00020000
"""linux/fs.h; the flags are an int, whatever the numbers say."""


Key = tuple[str, str]
"""Tenant and digest."""


class Found(msgspec.Struct, frozen=True):
    """A layer of an earlier run. `doubtful`: the machine has crashed or restarted since it was verified, its files may be
    anything."""

    key: Key
    path: Path
    size: int
    doubtful: bool


class Shelf:
    """Nothing is synced to disk: a kill loses nothing that was renamed, and after a crash of the machine (another boot) each
    layer is verified before its first use. What is in doubt is called so on the disk, however often the node starts before it is
    asked for. Every method but `path`, `trust` and `set_aside` may take long: call it from a thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, key: Key) -> Path:
        return self._folder / key[0] / hex_of(key[1])

    def begin(self, key: Key) -> Path:
        """An empty folder to write the layer into, readable by nobody else."""
        path = self.path(key)
        if not path.parent.exists():
            path.parent.mkdir(exist_ok=True)
            path.parent.chmod(0o711)
            spread(path.parent)
        temporary = path.with_name(f"{path.name}.tmp-{secrets.token_hex(4)}")
        temporary.mkdir(mode=0o700)
        return temporary

    def keep(self, temporary: Path, key: Key) -> Path:
        """The layer is whole: from here on it is there, also after a kill."""
        temporary.chmod(0o755)
        return temporary.rename(self.path(key))

    def trust(self, path: Path, key: Key) -> Path:
        """What was in doubt is whole."""
        return path.rename(self.path(key))

    def set_aside(self, path: Path) -> Path:
        """Out of the way at once, by a rename: a layer is whole or not there. The caller sweeps what is returned."""
        gone = path.with_name(f"{path.name}.gone-{secrets.token_hex(4)}")
        with contextlib.suppress(FileNotFoundError):
            path.rename(gone)
        return gone

    def sweep(self, gone: Path) -> None:
        shutil.rmtree(gone, ignore_errors=True)

    def forget(self, tenant: str) -> None:
        shutil.rmtree(self._folder / tenant, ignore_errors=True)

    def open(self) -> list[Found]:
        """Sweeps what an earlier run left half done, and returns what it left whole, oldest first. Once, before all else."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._folder.chmod(0o711)
        boot, marked = BOOT_ID.read_text().strip(), self._folder / BOOT_FILE
        another_boot = not marked.exists() or marked.read_text() != boot
        found: list[tuple[float, Found]] = []
        for tenant in self._folder.iterdir():
            if not tenant.is_dir():
                continue
            spread(tenant)
            for layer in list(tenant.iterdir()):
                key = (tenant.name, f"sha256:{layer.name.removesuffix(DOUBTFUL)}")
                try:
                    hex_of(key[1])
                except LayerError:
                    shutil.rmtree(layer, ignore_errors=True)
                    continue
                doubtful = another_boot or layer.name.endswith(DOUBTFUL)
                path = layer.with_name(layer.name.removesuffix(DOUBTFUL) + DOUBTFUL * doubtful)
                if path != layer:
                    layer.rename(path)
                found.append((path.stat().st_mtime, Found(key, path, size_of(path), doubtful)))
        if another_boot:
            marked.write_text(boot)  # last: a start that is killed on the way begins anew
        return [one for _, one in sorted(found, key=lambda pair: pair[0])]


def spread(folder: Path) -> None:
    """Tells the file system that the folders below have nothing to do with each other (`chattr +T`), where it knows that.

    ext4 else puts all their inodes into one group of its disk, and passes by those that were freed there in the last minutes,
    one by one, for each new file: where layers are evicted, a new layer took ten times as long to be written.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        flags = struct.unpack("i", fcntl.ioctl(descriptor, FS_IOC_GETFLAGS, bytes(4)))[0]
        fcntl.ioctl(descriptor, FS_IOC_SETFLAGS, struct.pack("i", flags | FS_TOPDIR_FL))
    except OSError:  # it does not know it
        pass
    finally:
        os.close(descriptor)


def footprint(sizes: Iterable[int], folders: int = 0) -> int:
    """Bytes that files of these sizes take on a disk, in whole blocks. An empty file and a folder count a block each: a disk runs
    out of what they take, too."""
    return sum(max(1, -(-size // BLOCK)) for size in sizes) * BLOCK + folders * BLOCK


def folders_of(paths: Iterable[str]) -> int:
    """How many folders there are above files of these paths."""
    found: set[str] = set()
    for path in paths:
        parent = path.rpartition("/")[0]
        while parent and parent not in found:
            found.add(parent)
            parent = parent.rpartition("/")[0]
    return len(found)


def size_of(folder: Path) -> int:
    """The footprint of a tree that is there."""
    sizes: list[int] = []
    folders = 0
    for parent, below, names in os.walk(folder):
        folders += len(below)
        sizes += (os.lstat(os.path.join(parent, name)).st_size for name in names)
    return footprint(sizes, folders)
