"""Compiles a layer's sources ahead of time, so that no start pays for it. A program of its own: nothing of ours is imported.

    python -I -S -B bytecode.py FOLDER

Bytecode is marked unchecked: it is never compared with its source, which cannot change either. The interpreter must be the
runtime's. Compiling does not execute the sources. Sources that do not compile are left as they are and told of on the standard
output, one JSON object {path, line, message} a line, at most MAX_TOLD.
"""

import importlib.util
import json
import os
import py_compile
import sys
import warnings

MAX_TOLD = 50
MAX_SOURCE_BYTES = 4 << 20


def compile_tree(folder: str) -> list[dict[str, object]]:
    """Every `.py` below `folder`; links are not followed. Returns what did not compile."""
    failures: list[dict[str, object]] = []
    for parent, folders, names in os.walk(folder):
        folders.sort()
        if "__pycache__" in folders:
            folders.remove("__pycache__")
        for name in sorted(names):
            path = os.path.join(parent, name)  # a program without imports worth their time
            if not name.endswith(".py") or os.path.islink(path) or os.path.getsize(path) > MAX_SOURCE_BYTES:
                continue
            failure = _compile(path, os.path.relpath(path, folder))
            if failure and len(failures) < MAX_TOLD:
                failures.append(failure)
    return failures


def _compile(path: str, shown: str) -> dict[str, object] | None:
    target = importlib.util.cache_from_source(path, optimization="")
    try:
        # the shown name stays relative: importing puts the real one into the code objects
        py_compile.compile(path, target, shown, doraise=True, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    except py_compile.PyCompileError as error:
        return {"path": shown, "line": getattr(error.exc_value, "lineno", None), "message": str(error.exc_value)[:500]}
    except (RecursionError, MemoryError, ValueError, UnicodeError) as error:
        return {"path": shown, "line": None, "message": f"{type(error).__name__}: {error}"[:500]}
    return None


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    for failed in compile_tree(sys.argv[1]):
        print(json.dumps(failed))
