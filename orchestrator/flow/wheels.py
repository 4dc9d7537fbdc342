"""What a source build leaves: wheels and two lists, copied out of its sandbox as plain files and checked."""

import io
import os
import shutil
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import msgspec
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

from orchestrator.flow.locks import LockError, read_pins

MAX_FILES = 500
MAX_BYTES = 512 << 20
MAX_LIST = 1 << 20
MAX_LINE = 500
PIECE = 1 << 20
LISTS = ("pins.txt", "built.txt")


class Wheels(msgspec.Struct, frozen=True):
    """Wheels in `folder`; `pins`: lines `name==version` of everything that was resolved; `built`: lines
    `name==version file sha256` of the sources they were built from."""

    folder: Path
    pins: Sequence[str]
    built: Sequence[str]

    @property
    def hashes(self) -> Mapping[str, str]:
        """Canonical name -> `sha256:hex` of its source."""
        split = [line.split(" ") for line in self.built]
        return {canonicalize_name(pin.partition("==")[0]): f"sha256:{digest}" for pin, _, digest in split}


def collect(folder: int, into: Path) -> Wheels:
    """Copies what a build left in `folder` (a descriptor): plain files, wheels by their names, within bounds.

    The sandbox is gone, so nobody changes it meanwhile. Raises LockError for anything else, OSError.
    """
    names = os.listdir(folder)
    if len(names) > MAX_FILES:
        raise LockError(f"{len(names)} files, the limit is {MAX_FILES}")
    left = MAX_BYTES
    lists: dict[str, list[str]] = {}
    for name in sorted(names):
        if name in LISTS:
            content = io.BytesIO()
            _copy(folder, name, MAX_LIST, content)
            lists[name] = content.getvalue().decode(errors="replace").splitlines()
            continue
        try:
            parse_wheel_filename(name)
        except InvalidWheelFilename:
            raise LockError(f"{name[:100]!r}, which is no wheel") from None
        with (into / name).open("xb") as out:
            left -= _copy(folder, name, left, out)
    try:
        pins = read_pins("".join(f"{line}\n" for line in lists["pins.txt"]))
        built = [line for line in lists["built.txt"] if read_pins(line.partition(" ")[0] + "\n") and _sourced(line)]
    except KeyError as error:
        raise LockError(f"no {error.args[0]}") from None
    return Wheels(into, pins, built)


def _sourced(line: str) -> bool:
    words = line.split(" ")
    if len(words) != 3 or not line.isascii() or not line.isprintable() or len(line) > MAX_LINE:
        raise LockError(f"a bad line: {line[:100]!r}")
    return True


def _copy(folder: int, name: str, limit: int, out: BinaryIO) -> int:
    """Copies a plain file of at most `limit` bytes; how many it has."""
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
            raise LockError(f"{name[:100]!r}, which is no plain file")
        if status.st_size > limit:
            raise LockError(f"more than {MAX_BYTES >> 20} MiB of wheels, or a list that is too long")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            shutil.copyfileobj(file, out, PIECE)
    finally:
        os.close(descriptor)
    return status.st_size
