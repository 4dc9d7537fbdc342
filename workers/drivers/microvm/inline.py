"""A small layer as it goes into a guest with ACTIVATE: its files, with bytecode that the guest's interpreter takes unasked."""

import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec

from workers.drivers.microvm.apart import UNCONFINED, Apart, ApartError, Limits

MAX_FILES = 256
"""Each takes the guest about a tenth of a millisecond to write: with more, a disk is quicker."""
MOST_NAMES = 400 << 10
"""Bytes of what is said about the files, as JSON: those of two layers are the meta of one frame, which holds 1 MiB."""
BESIDE_NAME = 40  # of a file's bytes in it: its layer's place, its mode and size, brackets
_encode = msgspec.json.Encoder().encode
PROGRAM = Path(__file__).with_name("compiled.py")
COMPILE_LIMITS = Limits(20.0, 1 << 30, 32 << 20)
MAX_COMPILED = 1 << 20  # bytes of source compiled here at a time; a layer of a deployed version brings its bytecode


class Inline(msgspec.Struct, frozen=True):
    """`files`: path below the layer's place, mode with its type, bytes in `body`; folders before what is in them."""

    files: tuple[tuple[str, int, int], ...]
    body: bytes

    def below(self, place: str) -> list[tuple[str, int, int]]:
        """`files` with the paths they get where the layer is at `place`."""
        return [(f"{place}/{path}", mode, size) for path, mode, size in self.files]


def inline(layer: Path, python: str, most_bytes: int, most_files: int = MAX_FILES, apart: Apart = UNCONFINED) -> Inline | None:
    """The layer in one piece; None when it has more bytes or files than that. `python`: "3.11", whose bytecode is taken along,
    and made where it is missing and this interpreter can, by `apart`. Blocks. Raises OSError."""
    tag = f".cpython-{python.replace('.', '')}."
    found: dict[str, tuple[int, bytes]] = {}
    total = names = 0
    for path, entry in _walk(layer):
        mode = entry.stat(follow_symlinks=False).st_mode
        if stat.S_ISDIR(mode):
            found[path] = (stat.S_IFDIR | 0o755, b"")
        elif stat.S_ISLNK(mode):
            found[path] = (stat.S_IFLNK | 0o777, os.readlink(entry.path).encode())
        elif stat.S_ISREG(mode) and not (path.endswith(".pyc") and "__pycache__/" in path and tag not in path):
            if total + entry.stat().st_size > most_bytes:
                return None
            found[path] = (stat.S_IFREG | (0o755 if mode & 0o111 else 0o644), Path(entry.path).read_bytes())
        total += len(found[path][1]) if path in found else 0
        try:
            names += _said(path)
        except UnicodeEncodeError:  # no text: a disk takes it
            return None
        if len(found) > most_files or names > MOST_NAMES:
            return None
    if python == f"{sys.version_info[0]}.{sys.version_info[1]}":
        _compile(found, tag, MOST_NAMES - names, apart)
    order = sorted(found)
    files = tuple((path, found[path][0], len(found[path][1])) for path in order)
    return Inline(files, b"".join(found[path][1] for path in order))


def _walk(folder: Path, prefix: str = "") -> "Iterator[tuple[str, os.DirEntry[str]]]":
    with os.scandir(folder) as entries:
        inside = sorted(entries, key=lambda entry: entry.name)
    for entry in inside:
        path = prefix + entry.name
        yield path, entry
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry.path), path + "/")


def _said(path: str) -> int:
    """Bytes of a frame's meta that tell of the file. Raises UnicodeEncodeError."""
    return len(_encode(path)) + BESIDE_NAME


def _compile(found: dict[str, tuple[int, bytes]], tag: str, left: int, apart: Apart) -> None:
    """Adds bytecode of sources that have none. `left`: bytes that may be said of it."""
    bare = {path: content for path, (mode, content) in found.items() if path.endswith(".py") and _cached(path, tag) not in found}
    bare = {path: content for path, content in bare.items() if stat.S_ISREG(found[path][0])}
    if not bare or sum(map(len, bare.values())) > MAX_COMPILED:
        return
    more = {_cached(path, tag) for path in bare} | {_cached(path, tag).rpartition("/")[0] for path in bare}
    if sum(map(_said, more)) > left:
        return
    for path, content in zip(bare, _compiled(bare, apart), strict=False):
        if content:
            found[_cached(path, tag)] = (stat.S_IFREG | 0o644, content)
            found.setdefault(str(Path(_cached(path, tag)).parent), (stat.S_IFDIR | 0o755, b""))


def _compiled(sources: dict[str, bytes], apart: Apart) -> list[bytes]:
    """Bytecode of each, empty where there is none; of none when the compiler fails: the guest compiles then, and what takes too
    long there is its own time."""
    interpreter = os.path.realpath(sys.executable)
    line = [interpreter, "-I", "-S", "-B", "-X", "utf8", "-c", PROGRAM.read_text()]
    reads = [] if sys.base_prefix == "/usr" else [Path(sys.base_prefix)]
    given, made = os.memfd_create("foreglow-sources", os.MFD_CLOEXEC), os.memfd_create("foreglow-bytecode", os.MFD_CLOEXEC)
    try:
        with open(given, "wb", closefd=False) as file:
            file.write(_encode([[path, len(content)] for path, content in sources.items()]) + b"\n")
            file.writelines(sources.values())
        os.lseek(given, 0, os.SEEK_SET)
        apart.run(line, reads, [], COMPILE_LIMITS, given, made)
        with open(made, "rb", closefd=False) as file:
            file.seek(0)
            return [file.read(int.from_bytes(file.read(4), "big")) for _ in sources]
    except (ApartError, OSError):
        return []
    finally:
        os.close(given)
        os.close(made)


def _cached(path: str, tag: str) -> str:
    folder, _, name = path.rpartition("/")
    return f"{folder}/__pycache__/{name[:-3]}{tag}pyc".lstrip("/")
