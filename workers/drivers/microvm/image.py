"""The guest image: a kernel and an initramfs, made of Debian packages by an ordinary user, the same bytes of the same packages.

FOLDER/packages.json     the packages the image was last made of: what `build` goes on with until it is asked for newer ones
FOLDER/packages/         these packages, by hash
FOLDER/images/KEY/       kernel, initramfs; KEY covers the packages' hashes and every file of ours that has a say
FOLDER/current.json      which of them counts (Record)
"""

import contextlib
import errno
import fcntl
import functools
import hashlib
import math
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from workers.drivers.microvm import initramfs
from workers.drivers.microvm.kernel import KernelError
from workers.drivers.microvm.packages import Apt, Package, PackageError, at

OVERHEAD_MB, OVERHEAD_SHARE = 140, 0.04
"""What a machine needs beside its function's memory: kernel, initramfs, the first process; and what the kernel keeps about each
page. With less, the guest is out of memory before the function has all of its own."""
NEEDED_MB = 400
"""Of the disk, while an image is made."""
BUILD_TIMEOUT_S = 1800.0
BUILDERS = ("initramfs.py", "kernel.py", "cpio.py", "compiling.py")
MACHINE = "x86_64"


class ImageError(Exception):
    """No image could be made; the message says which step failed and the way out."""


class GuestImage(msgspec.Struct, frozen=True):
    """`kernel`: an ELF file with a PVH entry. `digest` covers both files. `python`: the version of its interpreter, "3.11"."""

    kernel: Path
    initramfs: Path
    digest: str
    python: str


class Record(msgspec.Struct, frozen=True):
    """current.json. `ours`: hash of our own files in it and behind it; `sizes` in bytes, kernel and initramfs."""

    key: str
    digest: str
    ours: str
    python: str
    sizes: tuple[int, int]
    packages: list[Package]


def machine_mb(memory_mb: int) -> int:
    """Memory of a machine for functions of `memory_mb`."""
    return memory_mb + OVERHEAD_MB + math.ceil(memory_mb * OVERHEAD_SHARE)


def build(folder: Path, progress: Callable[[str], None], fresh: bool = False) -> GuestImage:
    """The image in `folder`, made when it is not there. `fresh`: asks for the newest packages; else those it was last made of
    are good. One at a time per folder, others wait. Raises ImageError."""
    if platform.machine() != MACHINE:
        raise ImageError(f"the guest image is for {MACHINE}; this machine is {platform.machine()}")
    found = None if fresh else find(folder)
    if found is not None:
        return found
    try:
        (folder / "images").mkdir(parents=True, exist_ok=True)
        (folder / "packages").mkdir(exist_ok=True)
        with _alone(folder, progress):
            return (None if fresh else find(folder)) or _build(folder, progress, fresh)
    except (PackageError, KernelError) as error:
        raise ImageError(f"guest image: {error}") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ImageError(f"guest image: the disk of {folder} is full; about {NEEDED_MB} MB are needed") from error
        raise ImageError(f"guest image: {error.filename or folder}: {error.strerror or error}") from error


def find(folder: Path) -> GuestImage | None:
    """The image `build` made in `folder`, when it is whole and of this version of Foreglow. Asks nobody, takes microseconds."""
    record = record_of(folder)
    if record is None or record.ours != _ours():
        return None
    place = folder / "images" / record.key
    image = GuestImage(place / "kernel", place / "initramfs", record.digest, record.python)
    try:
        whole = (image.kernel.stat().st_size, image.initramfs.stat().st_size) == record.sizes
    except OSError:
        return None
    return image if whole else None


def record_of(folder: Path) -> Record | None:
    """What is known of the image in `folder`, also when it is of another version of Foreglow."""
    try:
        return msgspec.json.decode((folder / "current.json").read_bytes(), type=Record)
    except (OSError, msgspec.DecodeError):
        return None


def _build(folder: Path, progress: Callable[[str], None], fresh: bool) -> GuestImage:
    apt = Apt(folder, progress)
    packages = None if fresh else _packages_of(folder)
    if packages is None:
        progress("asking which packages there are")
        packages = apt.resolve(initramfs.PACKAGES, initramfs.KERNEL)
    try:
        apt.download(packages, folder / "packages")
    except PackageError:
        if fresh:
            raise
        progress("the packages of the last image are not to be had any more; taking the newest")
        packages = apt.resolve(initramfs.PACKAGES, initramfs.KERNEL)
        apt.download(packages, folder / "packages")
    key = hashlib.sha256(msgspec.json.encode([_ours(), [package.sha256 for package in packages]])).hexdigest()[:32]
    place = folder / "images" / key
    aside = Path(tempfile.mkdtemp(prefix="coming-", dir=folder / "images"))
    try:
        digest, sizes = _make(packages, folder, aside, progress)
        shutil.rmtree(place, ignore_errors=True)
        os.replace(aside / "made", place)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    record = Record(key, digest, _ours(), initramfs.PYTHON, sizes, packages)
    _replace(folder / "packages.json", msgspec.json.encode(packages))
    _replace(folder / "current.json", msgspec.json.encode(record))
    _tidy(folder, record)
    return GuestImage(place / "kernel", place / "initramfs", digest, initramfs.PYTHON)


def _make(packages: list[Package], folder: Path, aside: Path, progress: Callable[[str], None]) -> tuple[str, tuple[int, int]]:
    """Both files in `aside`/made, on the disk for good; their digest and sizes."""
    made, work = aside / "made", aside / "work"
    made.mkdir()
    work.mkdir()
    archives = {package.name: at(folder / "packages", package) for package in packages}
    with (made / "initramfs").open("wb") as out:
        kernel = initramfs.assemble(archives, work, out, progress)
        out.flush()
        os.fsync(out.fileno())
    with (made / "kernel").open("wb") as out:
        out.write(kernel)
        out.flush()
        os.fsync(out.fileno())
    digest = hashlib.sha256()
    for name in ("kernel", "initramfs"):
        with (made / name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest(), ((made / "kernel").stat().st_size, (made / "initramfs").stat().st_size)


def _packages_of(folder: Path) -> list[Package] | None:
    """Those of the last image, when they are those an image is made of now."""
    try:
        packages = msgspec.json.decode((folder / "packages.json").read_bytes(), type=list[Package])
    except (OSError, msgspec.DecodeError):
        return None
    names = {package.name for package in packages}
    return packages if names.issuperset(initramfs.PACKAGES) and len(names) == len(initramfs.PACKAGES) + 1 else None


@functools.cache
def _ours() -> str:
    """Of every file of ours that has a say in an image's bytes."""
    here = Path(__file__).parent
    files = [*(here / name for name in BUILDERS), *(initramfs.GUEST / name for name in initramfs.OURS)]
    return hashlib.sha256(b"".join(hashlib.sha256(path.read_bytes()).digest() for path in files)).hexdigest()


@contextlib.contextmanager
def _alone(folder: Path, progress: Callable[[str], None]) -> Iterator[None]:
    """One builder per folder. Raises ImageError when another is not done in BUILD_TIMEOUT_S."""
    with (folder / "lock").open("ab") as lock:
        until, said = time.monotonic() + BUILD_TIMEOUT_S, False
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > until:
                    raise ImageError(
                        f"guest image: another process has been making it for {BUILD_TIMEOUT_S / 60:.0f} minutes"
                    ) from error
            if not said:
                progress("waiting for another process that makes it")
                said = True
            time.sleep(0.2)
        for left in (folder / "images").glob("coming-*"):  # of a builder that was killed
            shutil.rmtree(left, ignore_errors=True)
        yield


def _replace(path: Path, content: bytes) -> None:
    """The file whole or as it was, whatever happens."""
    aside = path.with_name(f"{path.name}.coming")
    with aside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)


def _tidy(folder: Path, record: Record) -> None:
    """Images and packages that are not the current one's."""
    for place in (folder / "images").iterdir():
        if place.name != record.key:
            shutil.rmtree(place, ignore_errors=True)
    kept = {at(folder / "packages", package).name for package in record.packages}
    for archive in (folder / "packages").iterdir():
        if archive.name not in kept:
            with contextlib.suppress(OSError):
                archive.unlink()
    for name in ("lists", "cache"):
        shutil.rmtree(folder / name, ignore_errors=True)
