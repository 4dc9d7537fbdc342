"""A small layer as it goes into a guest with ACTIVATE: its files, with bytecode that the guest's interpreter takes unasked."""

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec

MAX_FILES = 256
"""Each takes the guest about a tenth of a millisecond to write: with more, a disk is quicker."""
MOST_NAMES = 400 << 10
"""Bytes of what is said about the files: those of two layers are the meta of one frame, which holds 1 MiB."""
COMPILING = Path(__file__).with_name("compiling.py")
COMPILE_TIMEOUT_S = 20.0
COMPILE_BYTES = 1 << 30  # of address space
MAX_COMPILED = 1 << 20  # bytes of source compiled here at a time; a layer of a deployed version brings its bytecode


class Inline(msgspec.Struct, frozen=True):
    """`files`: path below the layer's place, mode with its type, bytes in `body`; folders before what is in them."""

    files: tuple[tuple[str, int, int], ...]
    body: bytes

    def below(self, place: str) -> list[tuple[str, int, int]]:
        """`files` with the paths they get where the layer is at `place`."""
        return [(f"{place}/{path}", mode, size) for path, mode, size in self.files]


def inline(layer: Path, python: str, most_bytes: int, most_files: int = MAX_FILES) -> Inline | None:
    """The layer in one piece; None when it has more bytes or files than that. `python`: "3.11", whose bytecode is taken along,
    and made where it is missing and this interpreter can. Blocks. Raises OSError."""
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
        names += len(path.encode()) + 40
        if len(found) > most_files or names > MOST_NAMES:
            return None
    if python == f"{sys.version_info[0]}.{sys.version_info[1]}":
        _compile(found, tag)
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


def _compile(found: dict[str, tuple[int, bytes]], tag: str) -> None:
    """Adds bytecode of sources that have none, compiled by a process of its own: a hostile source ends only that."""
    bare = {path: content for path, (mode, content) in found.items() if path.endswith(".py") and _cached(path, tag) not in found}
    bare = {path: content for path, content in bare.items() if stat.S_ISREG(found[path][0])}
    if not bare or sum(map(len, bare.values())) > MAX_COMPILED:
        return
    folder = Path(tempfile.mkdtemp(prefix="foreglow-compile-"))
    try:
        for path, content in bare.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
        held = ["prlimit", f"--as={COMPILE_BYTES}", f"--cpu={COMPILE_TIMEOUT_S:.0f}", "--core=0", "--"]
        command = [*held, sys.executable, "-I", "-S", "-B", str(COMPILING), str(folder), "", "cached"]
        subprocess.run(command, timeout=COMPILE_TIMEOUT_S, check=False, capture_output=True, env={})
        for path in bare:
            made = folder / _cached(path, tag)
            if made.exists():
                found[_cached(path, tag)] = (stat.S_IFREG | 0o644, made.read_bytes())
                found.setdefault(str(Path(_cached(path, tag)).parent), (stat.S_IFDIR | 0o755, b""))
    except subprocess.TimeoutExpired:
        return  # the guest compiles, and what takes this long there is its own time
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _cached(path: str, tag: str) -> str:
    folder, _, name = path.rpartition("/")
    return f"{folder}/__pycache__/{name[:-3]}{tag}pyc".lstrip("/")
