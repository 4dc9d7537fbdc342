"""Compiles sources to bytecode that is never compared with them, as a program of its own (apart.py): a hostile source ends, or
takes over, only that. Standard library only.

In: a line of JSON, [[path, bytes] of each], then the sources one after another. Out: of each in the same order four bytes that
say how long its bytecode is (0: it does not compile), and that. Compiling does not execute the sources.
"""

import importlib.util
import json
import sys
import warnings
from importlib import _bootstrap_external
from importlib.machinery import SourceFileLoader
from typing import Any


def bytecode(source: bytes, path: str) -> bytes:
    """Empty when it does not compile."""
    try:
        code = SourceFileLoader("<compiled>", path).source_to_code(source, path)
        pack: Any = _bootstrap_external
        return bytes(pack._code_to_hash_pyc(code, importlib.util.source_hash(source), False))
    except (SyntaxError, RecursionError, MemoryError, ValueError, UnicodeError):
        return b""


def main() -> None:
    warnings.simplefilter("ignore")
    given, out = sys.stdin.buffer, sys.stdout.buffer
    for path, size in json.loads(given.readline()):
        made = bytecode(given.read(size), path)
        out.write(len(made).to_bytes(4, "big") + made)
    out.flush()


if __name__ == "__main__":
    main()
