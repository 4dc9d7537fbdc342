"""What the portable backend asks by hand-packed netlink: routes, and the rules that divert connections. Formats: rtnetlink(7),
linux/netfilter/nf_tables.h."""

import socket
import struct

from workers.network.netlink import APPEND, CREATE, EXCLUSIVE, Request, attribute, nest, nf_tables, text

_NEW_ROUTE, _DELETE_ROUTE, _GET_ROUTE = 24, 25, 26
_TABLE_MAIN, _PROTOCOL_STATIC, _SCOPE_HOST = 254, 4, 254
ROUTE_UNICAST, _ROUTE_LOCAL = 1, 2
_NEW_TABLE, _GET_TABLE, _DELETE_TABLE, _NEW_CHAIN, _NEW_RULE = 0, 1, 2, 3, 6
NFT_INET = 1
_ACCEPT, _DROP = 1, 0
_LOOPBACK = socket.inet_aton("127.0.0.1")


def _number(kind: int, value: int) -> bytes:
    """As nf_tables writes them: network byte order."""
    return attribute(kind, struct.pack("!I", value & 0xFFFF_FFFF))


def local_route(network: str, prefix: int, loopback: int, delete: bool = False) -> Request:
    """Every address of the network is this host's own (AnyIP); connections to it come from 127.0.0.1. In the main table: what is
    more specific there, such as a guest's link, goes before it."""
    body = struct.pack("=BBBBBBBBI", socket.AF_INET, prefix, 0, 0, _TABLE_MAIN, _PROTOCOL_STATIC, _SCOPE_HOST, _ROUTE_LOCAL, 0)
    where = attribute(1, socket.inet_aton(network)) if prefix else b""
    body += where + attribute(4, struct.pack("=I", loopback)) + attribute(7, _LOOPBACK)
    return (_DELETE_ROUTE, 0, body) if delete else (_NEW_ROUTE, CREATE, body)


def ask_route(address: str) -> Request:
    """The answer's type: `route_type`."""
    return _GET_ROUTE, 0, struct.pack("=BBBBBBBBI", socket.AF_INET, 32, *[0] * 7) + attribute(1, socket.inet_aton(address))


def route_type(answer: bytes) -> int:
    return answer[7]


# -- nf_tables


def divert(table: str, port: int) -> list[Request]:
    """A table that hands every TCP and UDP packet for other addresses than 127/8 to the sockets at 127.0.0.1:`port`, their
    addresses as they are (TPROXY), and drops everything else that comes in."""
    place, chain = text(1, table), "in"
    hook = nest(4, _number(1, 0), _number(2, -150))  # prerouting, mangle
    made = [
        nf_tables(_NEW_TABLE, CREATE | EXCLUSIVE, socket.AF_INET, place),
        nf_tables(_NEW_CHAIN, CREATE, socket.AF_INET, place, text(3, chain), hook, _number(5, _ACCEPT), text(7, "filter")),
    ]
    rules = (
        [_payload(16, 1), _equals(b"\x7f"), _verdict(_ACCEPT)],
        [_meta_l4proto(), _equals(bytes([socket.IPPROTO_TCP])), *_tproxy(port), _verdict(_ACCEPT)],
        [_meta_l4proto(), _equals(bytes([socket.IPPROTO_UDP])), *_tproxy(port), _verdict(_ACCEPT)],
        [_verdict(_DROP)],
    )
    head = place, text(2, chain)
    made += [nf_tables(_NEW_RULE, CREATE | APPEND, socket.AF_INET, *head, nest(4, *expressions)) for expressions in rules]
    return made


def ask_table(table: str, family: int = socket.AF_INET) -> Request:
    """Refused with FileNotFoundError where there is none."""
    return nf_tables(_GET_TABLE, 0, family, text(1, table))


def delete_table(table: str, family: int) -> Request:
    return nf_tables(_DELETE_TABLE, 0, family, text(1, table))


def _expression(name: str, *attributes: bytes) -> bytes:
    return nest(1, text(1, name), nest(2, *attributes))


def _payload(offset: int, length: int) -> bytes:
    """Bytes of the network header into register 1."""
    return _expression("payload", _number(1, 1), _number(2, 1), _number(3, offset), _number(4, length))


def _meta_l4proto() -> bytes:
    return _expression("meta", _number(1, 1), _number(2, 16))


def _equals(value: bytes) -> bytes:
    return _expression("cmp", _number(1, 1), _number(2, 0), nest(3, attribute(1, value)))


def _immediate(register: int, value: bytes) -> bytes:
    return _expression("immediate", _number(1, register), nest(2, attribute(1, value)))


def _verdict(code: int) -> bytes:
    return _expression("immediate", _number(1, 0), nest(2, nest(2, _number(1, code))))


def _tproxy(port: int) -> list[bytes]:
    return [
        _immediate(1, _LOOPBACK),
        _immediate(2, struct.pack("!H", port)),
        _expression("tproxy", _number(1, 2), _number(2, 1), _number(3, 2)),
    ]
