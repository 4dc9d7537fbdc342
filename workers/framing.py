"""The frame both wires share: guest <-> node (JSON meta) and process <-> process (msgpack meta).

A frame is a 16-byte header, `meta` and a raw `body`:

    kind u8 | flags u8 | reserved u16 | id u32 | meta length u32 | body length u32      (network byte order)

`id` multiplexes: many invocations and calls share one connection. A body may come in several frames of the same id; all but
the last carry MORE.
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple

HEADER = struct.Struct("!BBHIII")
MORE = 0x01
MAX_META = 1 << 20
MAX_BODY = 16 << 20


_unpack = HEADER.unpack_from


class FrameError(ValueError):
    """The peer broke the framing; the connection cannot be used any more."""


class Frame(NamedTuple):
    kind: int
    flags: int
    id: int
    meta: bytes
    body: bytes


def encode(kind: int, ident: int, meta: bytes = b"", body: bytes = b"", flags: int = 0) -> bytes:
    """One frame as bytes. Lengths are not checked here: a sender knows its own limits."""
    return HEADER.pack(kind, flags, 0, ident, len(meta), len(body)) + meta + body


class FrameParser:
    """Bytes in, whole frames out. Memory is bounded by the two limits plus one read."""

    def __init__(self, max_meta: int = MAX_META, max_body: int = MAX_BODY) -> None:
        self._buffer = bytearray()
        self._wanted = 0  # bytes the buffer must hold before it is worth looking at again
        self._max_meta = max_meta
        self._max_body = max_body

    def lone(self, chunk: bytes, kind: int) -> int:
        """The id of the only frame in `chunk`, when it is a whole one of this kind without meta, and nothing came before it; such
        a chunk need not be fed. Else 0."""
        if self._buffer or len(chunk) < HEADER.size:
            return 0
        found, _, reserved, ident, meta_length, body_length = _unpack(chunk)
        if found != kind or reserved or meta_length or body_length > self._max_body or len(chunk) != HEADER.size + body_length:
            return 0
        return int(ident)

    def feed(self, chunk: bytes) -> Iterator[Frame]:
        """Yields the frames completed by `chunk`. Raises FrameError when a length is over its limit or reserved is set."""
        buffer = self._buffer
        if buffer:
            buffer += chunk
            if len(buffer) < self._wanted:
                return
            view = bytes(buffer)
            buffer.clear()
        else:
            view = chunk
        start, end, header_size = 0, len(view), HEADER.size
        wanted = header_size
        while end - start >= header_size:
            kind, flags, reserved, ident, meta_length, body_length = HEADER.unpack_from(view, start)
            if reserved or meta_length > self._max_meta or body_length > self._max_body:
                raise FrameError(f"frame kind {kind}: meta {meta_length} or body {body_length} bytes over the limit")
            body_at = start + header_size + meta_length
            stop = body_at + body_length
            if stop > end:
                wanted = stop - start
                break
            yield Frame(kind, flags, ident, view[start + header_size : body_at], view[body_at:stop])
            start = stop
        if start < end:
            buffer += view[start:]
            self._wanted = wanted
