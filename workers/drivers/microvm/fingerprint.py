"""What a template depends on. State of another QEMU, CPU or kernel may load without a word and die later: it is refused first."""

import functools
import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path

import msgspec

from workers.drivers.microvm.image import GuestImage
from workers.ports import DriverError

_last: dict[str, str] = {}  # digests of the image's files, a handful

PARTS = {
    "qemu": "QEMU's binary",
    "line": "the command line",
    "cpu": "the CPU",
    "tsc_khz": "the clock's rate",
    "image": "the image",
}
CPU_WORDS = ("vendor_id", "cpu family", "model", "stepping", "microcode", "flags")


class Fingerprint(msgspec.Struct, frozen=True):
    """Digests, but for `tsc_khz`."""

    qemu: str
    line: str  # the command line, without what differs from clone to clone
    cpu: str
    tsc_khz: int
    image: str

    def refuses(self, other: "Fingerprint") -> str:
        """What differs, in words; empty: nothing."""
        return ", ".join(words for name, words in PARTS.items() if getattr(self, name) != getattr(other, name))


def take(binary: str, line: Sequence[str], tsc_khz: int, image: GuestImage) -> Fingerprint:
    """As things are now; takes microseconds while the files stay what they were. Raises DriverError."""
    try:
        files = "-".join((image.digest, _needed_to_boot(str(image.kernel)), _needed_to_boot(str(image.initramfs))))
        return Fingerprint(_file(binary), _line(line), _cpu(), tsc_khz, files)
    except OSError as error:
        raise DriverError(f"the microVM's {error.filename} cannot be read: {error.strerror}") from error


def _line(line: Sequence[str]) -> str:
    """Numbers of descriptors differ from one process to the next."""
    text = "\0".join(re.sub(r"(\bfd=|/fd/)\d+", r"\1N", word) for word in line)
    return hashlib.sha256(text.encode()).hexdigest()


def _file(path: str) -> str:
    found = os.stat(path)
    return _digest(path, found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


def _needed_to_boot(path: str) -> str:
    """A file that has gone since (a newer image was made) refuses no template: clones do not need it."""
    try:
        _last[path] = _file(path)
    except FileNotFoundError:
        if path not in _last:
            raise
    return _last[path]


@functools.lru_cache(maxsize=64)
def _digest(path: str, *_: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@functools.cache
def _cpu() -> str:
    text = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
    kept = [line for line in text.splitlines() if line.partition("\t")[0].strip(": ") in CPU_WORDS]
    return hashlib.sha256("\n".join(kept).encode()).hexdigest()
