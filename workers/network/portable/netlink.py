"""The few netlink messages that wiring a sandbox takes, packed by hand: a library takes longer for one than all of these do.

Routes and addresses are rtnetlink(7); the rules that divert connections are nf_tables', whose expressions and attribute numbers
are those of linux/netfilter/nf_tables.h.
"""

import os
import socket
import struct

_HEADER = struct.Struct("=IHHII")
_REQUEST, _ACK, _EXCLUSIVE, _CREATE, _APPEND = 0x1, 0x4, 0x200, 0x400, 0x800
_ERROR = 2
_NEW_LINK, _GET_LINK, _NEW_ADDRESS, _NEW_ROUTE, _DELETE_ROUTE, _GET_ROUTE = 16, 18, 20, 24, 25, 26
_TABLE_MAIN, _PROTOCOL_STATIC, _SCOPE_HOST, _SCOPE_LINK = 254, 4, 254, 253
ROUTE_UNICAST, ROUTE_LOCAL = 1, 2
_NFT, _BATCH_BEGIN, _BATCH_END = 10, 16, 17
_NEW_TABLE, _GET_TABLE, _DELETE_TABLE, _NEW_CHAIN, _NEW_RULE = 0, 1, 2, 3, 6
NFT_INET = 1
_ACCEPT, _DROP = 1, 0
_LOOPBACK = socket.inet_aton("127.0.0.1")
TIMEOUT_S = 5.0
NETLINK_NETFILTER = 12

Request = tuple[int, int, bytes]
"""(type, flags, body)"""


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def attribute(kind: int, value: bytes) -> bytes:
    return _padded(struct.pack("=HH", 4 + len(value), kind) + value)


def _nested(kind: int, *attributes: bytes) -> bytes:
    return attribute(kind | 0x8000, b"".join(attributes))


def _text(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


def _number(kind: int, value: int) -> bytes:
    """As nf_tables writes them: network byte order."""
    return attribute(kind, struct.pack("!I", value & 0xFFFF_FFFF))


class Netlink:
    """A netlink socket of the network namespace that the thread which made it was in, wherever it is used from."""

    def __init__(self, family: int) -> None:
        self._sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, family)
        self._sock.settimeout(TIMEOUT_S)
        self._sequence = 0

    def close(self) -> None:
        self._sock.close()

    def __enter__(self) -> "Netlink":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, *requests: Request) -> list[bytes]:
        """Sends all at once and waits until each is done. Returns the bodies of answers other than acknowledgements. Raises
        OSError with the first refusal."""
        packed = [self._packed(kind, flags | _ACK, body) for kind, flags, body in requests]
        return self._exchange(packed, self._sequence + 1 - len(packed))

    def transaction(self, *requests: Request) -> None:
        """nf_tables': all of it or nothing. Raises OSError; FileExistsError for a table that is there."""
        border = struct.pack("!BBH", socket.AF_UNSPEC, 0, _NFT)
        packed = [self._packed(_BATCH_BEGIN, 0, border)]
        first = self._sequence
        packed += [self._packed(kind, flags, body) for kind, flags, body in requests[:-1]]
        kind, flags, body = requests[-1]
        packed.append(self._packed(kind, flags | _ACK, body))
        last = self._sequence
        packed.append(self._packed(_BATCH_END, 0, border))
        self._exchange(packed, first, last)

    def _packed(self, kind: int, flags: int, body: bytes) -> bytes:
        self._sequence += 1
        return _HEADER.pack(_HEADER.size + len(body), kind, flags | _REQUEST, self._sequence, 0) + _padded(body)

    def _exchange(self, packed: list[bytes], first: int, last: int = 0) -> list[bytes]:
        """Until the request of number `last` is acknowledged, or the very first is refused: then the kernel looks at no other."""
        last = last or self._sequence
        self._sock.send(b"".join(packed))
        found: list[bytes] = []
        refused: OSError | None = None
        while True:
            data, at = self._sock.recv(65536), 0
            while at + _HEADER.size <= len(data):
                length, kind, _, sequence, _ = _HEADER.unpack_from(data, at)
                if kind == _ERROR and first <= sequence <= last:
                    code = -struct.unpack_from("=i", data, at + _HEADER.size)[0]
                    if code and refused is None:
                        refused = OSError(code, f"netlink: {os.strerror(code)}")
                    if sequence == last or (code and sequence == first):
                        if refused is not None:
                            raise refused
                        return found
                elif sequence >= first and kind != _ERROR:
                    found.append(data[at + _HEADER.size : at + length])
                at += max(_HEADER.size, length + (-length % 4))


# -- links, addresses, routes


def link_up(index: int) -> Request:
    return _NEW_LINK, 0, struct.pack("=BBHiII", socket.AF_UNSPEC, 0, 0, index, 1, 1)


def link_settled(index: int) -> Request:
    """Asking for a link makes the kernel finish bringing it up: without that a fresh one may lose its first packets for a
    second."""
    return _GET_LINK, 0, struct.pack("=BBHiII", socket.AF_UNSPEC, 0, 0, index, 0, 0)


def add_address(index: int, address: str, prefix: int) -> Request:
    body = struct.pack("=BBBBI", socket.AF_INET, prefix, 0, 0, index)
    packed = socket.inet_aton(address)
    return _NEW_ADDRESS, _CREATE | _EXCLUSIVE, body + attribute(2, packed) + attribute(1, packed)


def local_route(network: str, prefix: int, loopback: int, delete: bool = False) -> Request:
    """Every address of the network is this host's own (AnyIP); connections to it come from 127.0.0.1. In the main table: what is
    more specific there, such as a guest's link, goes before it."""
    body = struct.pack("=BBBBBBBBI", socket.AF_INET, prefix, 0, 0, _TABLE_MAIN, _PROTOCOL_STATIC, _SCOPE_HOST, ROUTE_LOCAL, 0)
    where = attribute(1, socket.inet_aton(network)) if prefix else b""
    body += where + attribute(4, struct.pack("=I", loopback)) + attribute(7, _LOOPBACK)
    return (_DELETE_ROUTE, 0, body) if delete else (_NEW_ROUTE, _CREATE, body)


def ask_route(address: str) -> Request:
    """The answer's type: `route_type`."""
    return _GET_ROUTE, 0, struct.pack("=BBBBBBBBI", socket.AF_INET, 32, *[0] * 7) + attribute(1, socket.inet_aton(address))


def route_type(answer: bytes) -> int:
    return answer[7]


# -- nf_tables


def divert(table: str, port: int) -> list[Request]:
    """A table that hands every TCP and UDP packet for other addresses than 127/8 to the sockets at 127.0.0.1:`port`, their
    addresses as they are (TPROXY), and drops everything else that comes in."""
    chain = "in"
    head = struct.pack("!BBH", socket.AF_INET, 0, 0)
    hook = _nested(4, _number(1, 0), _number(2, -150))  # prerouting, mangle
    made: list[Request] = [
        (_NFT << 8 | _NEW_TABLE, _CREATE | _EXCLUSIVE, head + _text(1, table)),
        (
            _NFT << 8 | _NEW_CHAIN,
            _CREATE,
            head + _text(1, table) + _text(3, chain) + hook + _number(5, _ACCEPT) + _text(7, "filter"),
        ),
    ]
    for expressions in (
        [_payload(16, 1), _equals(b"\x7f"), _verdict(_ACCEPT)],
        [_meta_l4proto(), _equals(bytes([socket.IPPROTO_TCP])), *_tproxy(port), _verdict(_ACCEPT)],
        [_meta_l4proto(), _equals(bytes([socket.IPPROTO_UDP])), *_tproxy(port), _verdict(_ACCEPT)],
        [_verdict(_DROP)],
    ):
        body = head + _text(1, table) + _text(2, chain) + _nested(4, *expressions)
        made.append((_NFT << 8 | _NEW_RULE, _CREATE | _APPEND, body))
    return made


def ask_table(table: str, family: int = socket.AF_INET) -> Request:
    """Refused with FileNotFoundError where there is none."""
    return _NFT << 8 | _GET_TABLE, 0, struct.pack("!BBH", family, 0, 0) + _text(1, table)


def delete_table(table: str, family: int) -> Request:
    return _NFT << 8 | _DELETE_TABLE, 0, struct.pack("!BBH", family, 0, 0) + _text(1, table)


def _expression(name: str, *attributes: bytes) -> bytes:
    return _nested(1, _text(1, name), _nested(2, *attributes))


def _payload(offset: int, length: int) -> bytes:
    """Bytes of the network header into register 1."""
    return _expression("payload", _number(1, 1), _number(2, 1), _number(3, offset), _number(4, length))


def _meta_l4proto() -> bytes:
    return _expression("meta", _number(1, 1), _number(2, 16))


def _equals(value: bytes) -> bytes:
    return _expression("cmp", _number(1, 1), _number(2, 0), _nested(3, attribute(1, value)))


def _immediate(register: int, value: bytes) -> bytes:
    return _expression("immediate", _number(1, register), _nested(2, attribute(1, value)))


def _verdict(code: int) -> bytes:
    return _expression("immediate", _number(1, 0), _nested(2, _nested(2, _number(1, code))))


def _tproxy(port: int) -> list[bytes]:
    return [
        _immediate(1, _LOOPBACK),
        _immediate(2, struct.pack("!H", port)),
        _expression("tproxy", _number(1, 2), _number(2, 1), _number(3, 2)),
    ]
