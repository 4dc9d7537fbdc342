"""Layers as read-only disks: EROFS images made of a layer's folder, kept beside the layers within a bound.

Uncompressed: in a guest reading is quicker than decompressing, and the host's page cache holds one copy for all. The same layer
gives the same bytes: fixed times, owner and identity. Format: Documentation/filesystems/erofs.rst in the kernel's sources.
"""

import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
import threading
from collections import OrderedDict
from pathlib import Path

from workers.drivers.microvm.apart import UNCONFINED, Apart, ApartError, Limits

PROGRAM = "mkfs.erofs"
MAKE_TIMEOUT_S = 300.0
MAKE_BYTES = 4 << 30  # of address space
SLACK_BYTES = 64 << 20  # an image that is a little too large says so itself
_UUID = "00000000-0000-4000-8000-000000000000"


class DiskError(Exception):
    """No disk of a layer; the message says why and the way out."""


class Disks:
    """Images below `folder`, each padded (sparse) to `size` bytes, which is what a template was told a disk holds. `bound`:
    bytes really on the disk; what was used longest ago goes first. Methods block, any thread may call them."""

    def __init__(self, folder: Path, size: int, bound: int, apart: Apart = UNCONFINED) -> None:
        """`apart` makes images: what is in a layer is its tenant's."""
        self._apart = apart
        self._folder = folder
        self._size = size
        self._bound = bound
        self._lock = threading.Lock()
        self._making: dict[str, threading.Lock] = {}
        self._held: OrderedDict[str, tuple[int, Path]] = OrderedDict()  # bytes, and the layer it was made of
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.iterdir():  # of a predecessor: which layer an image was made of is known only to who made it
            if left.suffix in (".erofs", ".coming"):
                with contextlib.suppress(OSError):
                    left.unlink()

    @property
    def missing(self) -> str:
        """Why there are no disks here; empty when there are."""
        if shutil.which(PROGRAM) is None:
            return f"{PROGRAM} is not installed (Debian: apt-get install erofs-utils)"
        return ""

    @property
    def bytes_held(self) -> int:
        with self._lock:
            return sum(size for size, _ in self._held.values())

    def open(self, layer: Path) -> int:
        """A descriptor of the layer's image, for reading; made when it is not there. It stays good whatever is evicted. Raises
        DiskError."""
        if self.missing:
            raise DiskError(self.missing)
        try:
            key = _key(layer)
            with self._lock:
                making = self._making.setdefault(key, threading.Lock())
            with making:
                return self._open(key) or self._make(key, layer)
        except OSError as error:
            raise DiskError(f"the disk of {layer}: {_words(error)}") from error
        finally:
            self.sweep()

    def sweep(self) -> None:
        """Images whose layer has gone go too, and more until the bound holds."""
        with self._lock:
            total = sum(size for size, _ in self._held.values())
            for key, (size, layer) in list(self._held.items()):
                newest = key == next(reversed(self._held))
                if not _is(layer, key) or (total > self._bound and not newest):
                    del self._held[key]
                    total -= size
                    self._making.pop(key, None)
                    with contextlib.suppress(OSError):
                        self._path(key).unlink()

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.erofs"

    def _open(self, key: str) -> int:
        """0: it is not there."""
        with self._lock:
            if key not in self._held:
                return 0
            self._held.move_to_end(key)
        try:
            return os.open(self._path(key), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return 0

    def _make(self, key: str, layer: Path) -> int:
        descriptor, name = tempfile.mkstemp(suffix=".coming", dir=self._folder)
        os.close(descriptor)
        aside = Path(name)
        try:
            make_image(layer, aside, self._apart, self._size + SLACK_BYTES)
            if aside.stat().st_size > self._size:
                raise DiskError(f"the disk of {layer} has {aside.stat().st_size >> 20} MB; the limit is {self._size >> 20} MB")
            os.truncate(aside, self._size)
            os.chmod(aside, 0o444)
            made = os.open(aside, os.O_RDONLY | os.O_CLOEXEC)
            os.replace(aside, self._path(key))
        finally:
            with contextlib.suppress(FileNotFoundError):
                aside.unlink()
        with self._lock:
            self._held[key] = (os.fstat(made).st_blocks * 512, layer)
        return made


def make_image(layer: Path, image: Path, apart: Apart = UNCONFINED, most_bytes: int = 4 << 30) -> None:
    """An EROFS image of what is in the folder. Raises DiskError, OSError."""
    program = shutil.which(PROGRAM)
    if program is None:
        raise DiskError(f"the disk of {layer}: {PROGRAM} is not installed")
    made = os.open(image, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        line = [program, "--quiet", "-T0", f"-U{_UUID}", "-x-1", "--all-root", f"/proc/self/fd/{made}", str(layer.resolve())]
        apart.run(line, [layer], [made], Limits(MAKE_TIMEOUT_S, MAKE_BYTES, most_bytes))
    except ApartError as error:
        raise DiskError(f"the disk of {layer}: {PROGRAM} failed: {error}") from error
    finally:
        os.close(made)


def _key(layer: Path) -> str:
    """Of the folder as it is now: one that was evicted and came again is another. Raises OSError when there is none."""
    state = os.stat(layer)
    if not os.path.isdir(layer):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(layer))
    words = f"{os.path.realpath(layer)} {state.st_dev} {state.st_ino} {state.st_ctime_ns}"
    return hashlib.sha256(words.encode()).hexdigest()[:32]


def _is(layer: Path, key: str) -> bool:
    try:
        return _key(layer) == key
    except OSError:
        return False


def _words(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk of the node is full"
    return error.strerror or str(error)
