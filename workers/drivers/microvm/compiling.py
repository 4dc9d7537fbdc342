"""Compiles sources to bytecode, as a program of its own: always the same bytes for the same sources and interpreter.

    python -s -S -B -P compiling.py FOLDER PREFIX legacy|cached

Each `.py` below FOLDER (in order of its name) gets bytecode that is never compared with it, which knows itself as PREFIX and the
path below FOLDER: `legacy` beside it as `.pyc`, `cached` in `__pycache__` where that is not there yet. Compiling does not execute
the sources; one that does not compile is left as it is. Standard library only.

Which references marshal shares depends on what else the process has interned: so one process, one order, one hash seed.
"""

import importlib.util
import os
import py_compile
import sys
import warnings

UNCHECKED = py_compile.PycInvalidationMode.UNCHECKED_HASH


def compile_tree(folder: str, prefix: str, legacy: bool) -> None:
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name != "__pycache__")
        for name in sorted(names):
            path = os.path.join(parent, name)
            if not name.endswith(".py") or os.path.islink(path):
                continue
            target = path + "c" if legacy else importlib.util.cache_from_source(path, optimization="")
            if not legacy and os.path.exists(target):
                continue
            shown = os.path.join(prefix, os.path.relpath(path, folder))
            try:
                py_compile.compile(path, target, shown, doraise=True, invalidation_mode=UNCHECKED)
            except (py_compile.PyCompileError, RecursionError, MemoryError, ValueError):
                continue


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    compile_tree(sys.argv[1], sys.argv[2], sys.argv[3] == "legacy")
