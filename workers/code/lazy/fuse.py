"""The kernel's file system protocol (FUSE 7.31 and later), as much of it as a read-only tree needs. Standard library only.

Requests are one read of /dev/fuse each, answers one write. Numbers and layouts are those of the kernel's linux/fuse.h.
"""

import errno
import struct

LOOKUP, FORGET, GETATTR, OPEN, READ, STATFS, RELEASE = 1, 2, 3, 14, 15, 17, 18
GETXATTR, LISTXATTR, FLUSH, INIT, OPENDIR, READDIR, RELEASEDIR = 22, 23, 25, 26, 27, 28, 29
INTERRUPT, DESTROY, BATCH_FORGET, READDIRPLUS = 36, 38, 42, 44
UNANSWERED = frozenset((FORGET, BATCH_FORGET))
CHANGES = frozenset((4, 6, 8, 9, 10, 11, 12, 13, 16, 21, 24, 35, 43, 45))
"""Set attributes, make, remove, rename, write ...: what a read-only tree refuses."""

REQUEST_BYTES = 16384
"""Of the buffer a request is read into: the kernel wants 8 KiB at least, and sends no more than a name here."""

FOREVER = 365 * 86400
"""Seconds the kernel may keep what it was told: a layer never changes."""

_ASYNC_READ, _DO_READDIRPLUS, _READDIRPLUS_AUTO, _PARALLEL_DIROPS, _MAX_PAGES, _INIT_EXT = (
    1,
    1 << 13,
    1 << 14,
    1 << 18,
    1 << 22,
    1 << 30,
)
_WANTED = _ASYNC_READ | _DO_READDIRPLUS | _READDIRPLUS_AUTO | _PARALLEL_DIROPS | _MAX_PAGES | _INIT_EXT
_REQUEST_TIMEOUT = 1 << 10  # of the second word
_BACKGROUND, _CONGESTED, _MAX_WRITE, _MAX_PAGES_OF_A_READ = 32, 24, 4096, 256

REQUEST = struct.Struct("=IIQQIIIHH")
READ_IN = struct.Struct("=QQII")
INTERRUPT_IN = struct.Struct("=Q")
_ANSWER = struct.Struct("=IiQ")
_ATTRIBUTES = struct.Struct("=6Q10I")
_ENTRY = struct.Struct("=4Q2I")
_ATTRIBUTES_OUT = struct.Struct("=Q2I")
_INIT_IN = struct.Struct("=5I")
_INIT_OUT = struct.Struct("=4I2H2I2H2IH22x")
_STATFS = struct.Struct("=5Q4I24x")
_NAME = struct.Struct("=2Q2I")
_FOLDER, _FILE = 0o040000, 0o100000

NO_SUCH_ENTRY = _ENTRY.pack(0, 0, FOREVER, 0, 0, 0) + bytes(_ATTRIBUTES.size)
"""Kept by the kernel as well: an import asks for many names that are not there."""


def answer(unique: int, size: int, error: int = 0) -> bytes:
    """The header before `size` bytes; `error`: a positive errno, or 0."""
    return _ANSWER.pack(_ANSWER.size + size, -error, unique)


def init_answer(body: bytes, timeout_s: int) -> bytes:
    """`timeout_s`: after that the kernel gives up on a request by ending the whole mount, where it can (Linux 6.15).

    Raises OSError (EPROTO) for a kernel that is too old.
    """
    padded = body[: _INIT_IN.size].ljust(_INIT_IN.size, b"\0")
    major, minor, readahead, flags, more = _INIT_IN.unpack(padded)
    if (major, minor) < (7, 31):
        raise OSError(errno.EPROTO, f"this kernel speaks FUSE {major}.{minor}, 7.31 is needed")
    timed = more & _REQUEST_TIMEOUT if flags & _INIT_EXT else 0
    return _INIT_OUT.pack(
        7,
        min(minor, 45),
        readahead,
        flags & _WANTED,
        _BACKGROUND,
        _CONGESTED,
        _MAX_WRITE,
        1,
        _MAX_PAGES_OF_A_READ,
        0,
        timed,
        0,
        timeout_s if timed else 0,
    )


def attributes(node: int, mode: int, size: int, owner: tuple[int, int], folder: bool) -> bytes:
    """Times are zero: a layer has none."""
    kind, links = (_FOLDER, 2) if folder else (_FILE, 1)
    return _ATTRIBUTES.pack(node, size, -(-size // 512), 0, 0, 0, 0, 0, 0, kind | mode, links, *owner, 0, 4096, 0)


def attributes_answer(packed: bytes) -> bytes:
    return _ATTRIBUTES_OUT.pack(FOREVER, 0, 0) + packed


def entry(node: int, packed: bytes) -> bytes:
    return _ENTRY.pack(node, 0, FOREVER, FOREVER, 0, 0) + packed


def listed(node: int, name: bytes, offset: int, folder: bool) -> bytes:
    """One line of a listing; `offset`: where the next one begins."""
    packed = _NAME.pack(node, offset, len(name), 4 if folder else 8) + name
    return packed.ljust(-(-len(packed) // 8) * 8, b"\0")


def statfs_answer(size: int, files: int) -> bytes:
    return _STATFS.pack(-(-size // 4096), 0, 0, files, 0, 4096, 255, 4096, 0)
