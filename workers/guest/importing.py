"""A short way to modules of a function's own folder whose bytecode came with them. Standard library only.

The interpreter's finder looks a folder up, and tries what a module could be, in Python; emulated, each of these lines costs. What
this one finds, that one would have found, by the same rules and with the same attributes; anything else it leaves to that one."""

import _imp
import importlib.util
import marshal
import os
import sys
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec, SourceFileLoader
from types import CodeType
from typing import Any

UNCHECKED = importlib.util.MAGIC_NUMBER + b"\1\0\0\0"  # bytecode that is never compared with its source
HEADER_SIZE = 16


class Loader(SourceFileLoader):
    def __init__(self, name: str, path: str, bytecode: bytes) -> None:
        super().__init__(name, path)
        self._bytecode = bytecode

    def get_code(self, fullname: str) -> CodeType | None:
        code: CodeType = marshal.loads(memoryview(self._bytecode)[HEADER_SIZE:])  # noqa: S302  (as the interpreter does)
        _imp._fix_co_filename(code, self.path)  # type: ignore[attr-defined]
        return code


def told(folder: str, files: Any, body: bytes, most: int) -> bytes:
    """What a finder of `folder` is to know of code that comes inline (machine.unpack says how), in no more than so many bytes:
    names, and bytecode. Empty when none of it comes, or it is too much."""
    inside, bytecode, at, left = [], {}, 0, most
    folder += "/"
    cached = folder + "__pycache__/"
    for path, _, size in files:
        at += size
        if path.startswith(cached):
            if 2 * size <= left:  # names need room too
                bytecode[path[len(cached) :]] = body[at - size : at]
                left -= size
        elif path.startswith(folder) and "/" not in path[len(folder) :]:
            inside.append(path[len(folder) :])
    words = marshal.dumps((inside, bytecode)) if inside else b""
    return words if len(words) <= most else b""


class Finder:
    """For sys.meta_path, before the one that searches sys.path. `folder` does not change once it has been looked at."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._inside: frozenset[str] | None = None
        self._bytecode: dict[str, bytes] = {}

    def know(self, words: bytes) -> None:
        """What was seen in the folder is out of date; `words` of `told` save another look."""
        inside, self._bytecode = marshal.loads(words) if words else (None, {})  # noqa: S302  (of the first process)
        self._inside = None if inside is None else frozenset(inside)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if path is not None or not sys.path or sys.path[0] != self._folder:
            return None
        if self._inside is None:
            self._inside = frozenset(os.listdir(self._folder))
        source = f"{name}.py"
        if source not in self._inside or name in self._inside:  # a package of that name comes first
            return None
        if any(name + suffix in self._inside for suffix in EXTENSION_SUFFIXES):
            return None
        compiled = f"{name}.{sys.implementation.cache_tag}.pyc"
        cached = f"{self._folder}/__pycache__/{compiled}"
        bytecode = self._bytecode.pop(compiled, None) or _read(cached)
        if not bytecode.startswith(UNCHECKED):
            return None
        whole = f"{self._folder}/{source}"
        spec = ModuleSpec(name, Loader(name, whole, bytecode), origin=whole)
        spec.has_location = True
        spec.cached = cached
        return spec


def _read(path: str) -> bytes:
    """Empty when it is not there."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(descriptor, os.fstat(descriptor).st_size)
    finally:
        os.close(descriptor)
