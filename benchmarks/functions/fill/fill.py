"""Holds as much memory as it is asked for, and has run much of the standard library: what a busy instance looks like."""

import importlib
import os

MODULES = (
    "asyncio",
    "ctypes",
    "decimal",
    "http.client",
    "logging.config",
    "sqlite3",
    "ssl",
    "tarfile",
    "unittest",
    "xml.dom",
    "zipfile",
)

kept = []


def handler(event, context):
    for name in MODULES:
        importlib.import_module(name)
    while len(kept) < event["mb"]:
        kept.append(os.urandom(1 << 20))
    return {"mb": len(kept)}
