"""What a template does once so that its clones need not: common modules loaded, the runtime's own path worn in.

Standard library only, like runtime.py: processes and microVMs are warmed by it.
"""

import importlib
import pkgutil
import socket
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import FileFinder

from workers.guest import runtime

PRELOADED = (
    "argparse", "array", "ast", "asyncio", "base64", "bisect", "calendar", "cmath", "collections.abc", "concurrent.futures",
    "contextlib", "contextvars", "copy", "csv", "ctypes", "dataclasses", "datetime", "decimal", "difflib", "email.message",
    "enum", "fractions", "functools", "glob", "gzip", "hashlib", "heapq", "hmac", "html", "http.client", "http.cookies",
    "importlib.metadata", "importlib.resources", "inspect", "io", "ipaddress", "itertools", "json", "locale", "logging",
    "math", "mimetypes", "numbers", "operator", "os", "pathlib", "pickle", "platform", "pprint", "queue", "random", "re",
    "secrets", "select", "selectors", "shutil", "signal", "socket", "ssl", "statistics", "string", "struct", "subprocess",
    "tempfile", "textwrap", "threading", "time", "timeit", "traceback", "types", "typing", "unicodedata", "urllib.parse",
    "urllib.request", "uuid", "warnings", "weakref", "xml.etree.ElementTree", "zipfile", "zlib", "zoneinfo",
)  # fmt: skip


def preload() -> None:
    """Loads PRELOADED; modules a slim build of the interpreter lacks are left out."""
    for name in PRELOADED:
        try:
            importlib.import_module(name)
        except ImportError:
            continue


def rehearse(times: int, layers: Sequence[str], module: str, invoke: bool = True) -> None:
    """Runs the runtime's path on a harmless function (`handler` of `module`, in one of `layers`), so that clones find caches
    filled, bytecode specialised and lazy things made: what a clone need not write it goes on sharing. `invoke`: an invocation
    too, not only becoming a version."""
    path, streams = list(sys.path), (sys.stdout, sys.stderr)
    specialise = {"handler": f"{module}:handler", "version": "a/b:1", "entropy": "00" * 32, "paths": [*layers]}
    for layer in layers:
        pkgutil.get_importer(layer)
    for _ in range(times):
        guest, node = socket.socketpair()
        with guest, node:
            for kind, meta, body in ((runtime.SPECIALISE, specialise, b""), (runtime.INVOKE, {"deadline_s": 1}, b"{}")):
                encoded = runtime.dump(meta)
                node.sendall(runtime.HEADER.pack(kind, 0, 0, 1, len(encoded), len(body)) + encoded + body)
            instance = runtime.become(guest, lambda _meta, _descriptors: None)
            if invoke:
                instance.run(instance.channel.wait(instance.channel.next_invocation))
        del sys.modules[module]
        sys.path[:] = path
    sys.stdout, sys.stderr = streams
    _forget(layers)


def exercised(sock: runtime.Stream, attach: runtime.Attach, layers: Sequence[str], over: Callable[[], None]) -> runtime.Instance:
    """Becomes what SPECIALISE says. An exercise is led to its end, nothing of it is left, and after `over()` the next SPECIALISE
    is waited for: what it becomes is returned."""
    while True:
        path, streams = list(sys.path), (sys.stdout, sys.stderr)
        instance = runtime.become(sock, attach)
        if not instance.exercise:
            return instance
        for _ in range(instance.exercise):
            instance.run(instance.channel.wait(instance.channel.next_invocation))
        sys.modules.pop(instance.module_name, None)
        sys.path[:] = path
        sys.stdout, sys.stderr = streams
        _forget(layers)
        over()


def _forget(layers: Sequence[str]) -> None:
    for layer in layers:
        finder = sys.path_importer_cache.get(layer)
        if isinstance(finder, FileFinder):
            finder.invalidate_caches()  # it stays; what it has seen in this folder does not
