"""The archive a kernel unpacks as its first root: "newc" cpio, written so that the same files give the same bytes.

Format: Documentation/driver-api/early-userspace/buffer-format.rst in the kernel's sources. Everything belongs to root, every
time is 0, names are in order, inode numbers count up.
"""

import stat
from collections.abc import Mapping
from typing import BinaryIO

import msgspec

_END = "TRAILER!!!"


class Entry(msgspec.Struct, frozen=True):
    """A file (`mode` with its type, `content`), a folder, a link (`content`: where to), or a device (`device`: its numbers)."""

    mode: int
    content: bytes = b""
    device: tuple[int, int] = (0, 0)


def folder(mode: int = 0o755) -> Entry:
    return Entry(stat.S_IFDIR | mode)


def file(content: bytes, mode: int = 0o644) -> Entry:
    return Entry(stat.S_IFREG | mode, content)


def link(target: str) -> Entry:
    return Entry(stat.S_IFLNK | 0o777, target.encode())


def device(mode: int, major: int, minor: int) -> Entry:
    return Entry(stat.S_IFCHR | mode, device=(major, minor))


def write(entries: Mapping[str, Entry], out: BinaryIO) -> None:
    """`entries` by path without a leading slash; folders that lead to them are added."""
    whole = dict(entries)
    for path in entries:
        parts = path.split("/")
        for count in range(1, len(parts)):
            whole.setdefault("/".join(parts[:count]), folder())
    for number, path in enumerate(sorted(whole), 1):
        _write(out, number, path, whole[path])
    _write(out, 0, _END, Entry(0))


def _write(out: BinaryIO, number: int, path: str, entry: Entry) -> None:
    name = path.encode() + b"\0"
    fields = (number, entry.mode, 0, 0, 1, 0, len(entry.content), 0, 0, *entry.device, len(name), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + name
    out.write(head + bytes(-len(head) % 4) + entry.content + bytes(-len(entry.content) % 4))
