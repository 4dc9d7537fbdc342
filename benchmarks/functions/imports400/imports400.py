"""The committed list of real, CPU-bound imports: about 400 ms together on one core, with bytecode and page cache warm."""

import time

_began = time.perf_counter()

import pandas  # noqa: E402, F401
import requests  # noqa: E402, F401

IMPORTS_MS = (time.perf_counter() - _began) * 1000


def handler(event, context):
    return {"imports_ms": IMPORTS_MS}
