"""Netlink packed by hand, for what is asked for each instance: pyroute2 takes longer for one request than an attach.

Formats: linux/netlink.h, rtnetlink.h, nfnetlink.h. Here are the socket, and the requests of both backends.
"""

import os
import socket
import struct
from typing import Self

ROUTE, NETFILTER = 0, 12
CREATE, EXCLUSIVE, APPEND = 0x400, 0x200, 0x800
UP, NO_ARP = 0x1, 0x80
NEW_LINK, DELETE_LINK = 16, 17
TIMEOUT_S = 5.0
_REQUEST, _ACK = 1, 4
_ERROR = 2
_GET_LINK, _NEW_ADDRESS = 18, 20
_NF_TABLES, _BATCH_BEGIN, _BATCH_END = 10, 16, 17
_NESTED = 0x8000
_RECEIVE_BYTES = 65536
_LAST_SEQUENCE = 0x7FFF_0000
_HEADER = struct.Struct("=IHHII")

Request = tuple[int, int, bytes]
"""(type, flags, body)"""


def _padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % 4)


def attribute(kind: int, value: bytes) -> bytes:
    return _padded(struct.pack("=HH", 4 + len(value), kind) + value)


def text(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


def nest(kind: int, *attributes: bytes) -> bytes:
    return attribute(kind | _NESTED, b"".join(attributes))


class Netlink:
    """A socket in the network namespace of the thread that makes it, whoever uses it; one request at a time. Raises OSError with
    what was asked."""

    def __init__(self, family: int = ROUTE) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, family)
        self._socket.settimeout(TIMEOUT_S)  # it answers at once; else something is very wrong
        self._sequence = 0

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, what: str, *requests: Request) -> list[bytes]:
        """Sends all at once and waits until each is done, or the first is refused. The bodies of answers other than
        acknowledgements."""
        self._wrap()
        first = self._sequence + 1
        return self._exchange(what, [self._packed(kind, flags | _ACK, body) for kind, flags, body in requests], first)

    def transaction(self, what: str, *requests: Request) -> None:
        """nf_tables': all of it or nothing. FileExistsError for what is there already."""
        self._wrap()
        first, border = self._sequence + 1, nf_head(socket.AF_UNSPEC, _NF_TABLES)
        packed = [self._packed(_BATCH_BEGIN, 0, border)]
        packed += [self._packed(kind, flags, body) for kind, flags, body in requests[:-1]]
        kind, flags, body = requests[-1]
        packed.append(self._packed(kind, flags | _ACK, body))
        last = self._sequence
        packed.append(self._packed(_BATCH_END, 0, border))
        self._exchange(what, packed, first, last)

    def _wrap(self) -> None:
        if self._sequence > _LAST_SEQUENCE:
            self._sequence = 0

    def _packed(self, kind: int, flags: int, body: bytes) -> bytes:
        self._sequence += 1
        return _HEADER.pack(_HEADER.size + len(body), kind, flags | _REQUEST, self._sequence, 0) + _padded(body)

    def _exchange(self, what: str, packed: list[bytes], first: int, last: int = 0) -> list[bytes]:
        """Until the request of number `last` is acknowledged, or the very first is refused: then the kernel looks at no other.
        What answers an earlier one, which took too long, is passed over."""
        last = last or self._sequence
        self._socket.send(b"".join(packed))
        found: list[bytes] = []
        refused: OSError | None = None
        while True:
            received, at = self._socket.recv(_RECEIVE_BYTES), 0
            while at + _HEADER.size <= len(received):
                length, kind, _, sequence, _ = _HEADER.unpack_from(received, at)
                if not first <= sequence <= last:
                    pass
                elif kind == _ERROR:
                    code = -struct.unpack_from("=i", received, at + _HEADER.size)[0]
                    if code and refused is None:
                        refused = OSError(code, f"{what}: {os.strerror(code)}")
                    if sequence == last or (code and sequence == first):
                        if refused is not None:
                            raise refused
                        return found
                else:
                    found.append(received[at + _HEADER.size : at + length])
                at += max(_HEADER.size, length + (-length % 4))


# -- links and addresses


def link(index: int = 0, flags: int = 0, change: int = 0) -> bytes:
    return struct.pack("=BBHiII", socket.AF_UNSPEC, 0, 0, index, flags, change)


def up(index: int, flags: int = UP) -> Request:
    return NEW_LINK, 0, link(index, flags, flags)


def settled(index: int) -> Request:
    """The answer comes when the device's queue is live: without it some first packets are lost, and come a second late."""
    return _GET_LINK, 0, link(index)


def address(index: int, value: str, prefix: int) -> Request:
    packed = socket.inet_aton(value)
    body = struct.pack("=BBBBI", socket.AF_INET, prefix, 0, 0, index) + attribute(2, packed) + attribute(1, packed)
    return _NEW_ADDRESS, CREATE | EXCLUSIVE, body


# -- netfilter


def nf_head(family: int, resource: int = 0) -> bytes:
    return struct.pack("!BBH", family, 0, resource)


def nf_tables(kind: int, flags: int, family: int, *attributes: bytes) -> Request:
    return _NF_TABLES << 8 | kind, flags, nf_head(family) + b"".join(attributes)
