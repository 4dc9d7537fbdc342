"""What node and proxy say to each other on a link: frames of workers.framing, with these kinds, messages and limits.

A link is one TLS connection for one Vpc. Only the node opens streams; their ids grow and are never used twice on a link.

    node                                   proxy
    HELLO Hello                     ->
                                    <-     WELCOME Welcome, or CLOSING Reason and the end
    OPEN id Open                    ->
                                    <-     ACCEPTED id, or REFUSED id Reason
    DATA id body                    <->    no more of it than the other side gave credit for
    CREDIT id u32                   <->    so many bytes more
    EOF id                          <->    nothing more from here; the stream ends when both have said so
    RESET id                        <->    the stream is over, what is under way is lost
    DATAGRAM id body                <->    of a flow (an Open of protocol udp): may be lost, needs no credit
    PING, PONG                      <->
                                    <-     SPEC Spec: the proxy has this generation of the Vpc now, or another address
                                    <-     CLOSING Reason: no new streams here
"""

import struct
from enum import IntEnum
from typing import TypeVar

import msgspec

from workers.framing import FrameParser

PROTOCOL = 1
MAX_META = 1024
MAX_DATA = 64 << 10
FIRST_WINDOW = 64 << 10
"""Credit both sides have on a new stream."""

MAX_WINDOW = 1 << 20
MAX_STREAMS = 1024
MAX_FLOWS = 256
MAX_DATAGRAM = 65_507
LAST_STREAM = 0x7FFF_FFFF
"""A link that has given this id is replaced by a new one."""

CREDIT = struct.Struct("!I")


class Kind(IntEnum):
    HELLO = 1
    WELCOME = 2
    SPEC = 3
    CLOSING = 4
    OPEN = 5
    ACCEPTED = 6
    REFUSED = 7
    DATA = 8
    CREDIT = 9
    EOF = 10
    RESET = 11
    DATAGRAM = 12
    PING = 13
    PONG = 14


class Hello(msgspec.Struct, frozen=True, array_like=True):
    """The node's first word: the Vpc whose streams this link carries."""

    protocol: int
    vpc: str
    generation: int


class Welcome(msgspec.Struct, frozen=True, array_like=True):
    """`generation`: of the Vpc's spec that the proxy goes by; `streams`, `flows`: how many it carries at once on this link;
    `source`: the address with which functions leave by it now, empty: it cannot tell."""

    protocol: int
    generation: int
    streams: int
    flows: int
    source: str = ""


class Spec(msgspec.Struct, frozen=True, array_like=True):
    """`source`: as in Welcome."""

    generation: int
    source: str = ""


class Open(msgspec.Struct, frozen=True, array_like=True):
    """Where a stream or flow goes. `address` empty: the Vpc's resolver (`port` says nothing then). `egress`: the function may
    reach the Internet, and the address is none of the Vpc's."""

    protocol: str
    address: str
    port: int
    egress: bool = False


class Reason(msgspec.Struct, frozen=True, array_like=True):
    """`code`: refused | unreachable | timeout | denied | limit | closing | protocol."""

    code: str
    text: str = ""


class LinkError(ValueError):
    """The peer broke the rules of a link, which is over."""


Message = TypeVar("Message")


def decode(meta: bytes, of: type[Message]) -> Message:
    """Raises LinkError."""
    try:
        return msgspec.msgpack.decode(meta, type=of)
    except msgspec.MsgspecError as error:
        raise LinkError(f"a {of.__name__.lower()} that cannot be read: {error}") from error


def parser() -> FrameParser:
    return FrameParser(MAX_META, MAX_DATA)
