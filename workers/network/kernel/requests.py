"""What the kernel backend asks by hand-packed netlink, for each instance. Formats: linux/if_link.h, nf_tables.h,
nfnetlink_conntrack.h."""

import socket
import struct

from workers.network.netlink import (
    CREATE,
    DELETE_LINK,
    EXCLUSIVE,
    NEW_LINK,
    Request,
    attribute,
    link,
    nest,
    nf_head,
    nf_tables,
    text,
)

_NEW_ROUTE = 24
_SCOPE_LINK, _UNICAST, _BOOT = 253, 1, 3
_CONNTRACK, _DELETE_CONNECTION = 1, 2
_NEW_ELEMENT, _DELETE_ELEMENT = 12, 14
_FAMILY_INET = 1


def number(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("=I", value))


def cable(name: str, index: int, peer: str, peer_index: int, peer_namespace: int, mac: str, mtu: int) -> Request:
    """A veth pair, `peer` in the namespace of the descriptor; both ends down and with the same address, so that neither needs to
    ask for the other's."""
    same = attribute(1, bytes.fromhex(mac.replace(":", ""))) + number(4, mtu)
    other = link(peer_index) + text(3, peer) + number(28, peer_namespace) + same
    body = link(index) + text(3, name) + same + nest(18, text(1, "veth"), nest(2, attribute(1, other)))
    return NEW_LINK, CREATE | EXCLUSIVE, body


def removed(index: int) -> Request:
    return DELETE_LINK, 0, link(index)


def route(destination: str, prefix: int, index: int, table: int = 254) -> Request:
    """Straight out of the device, nobody in between."""
    body = struct.pack("=BBBBBBBBI", socket.AF_INET, prefix, 0, 0, table if table < 256 else 0, _BOOT, _SCOPE_LINK, _UNICAST, 0)
    body += attribute(1, socket.inet_aton(destination)) if prefix else b""
    return _NEW_ROUTE, CREATE | EXCLUSIVE, body + number(4, index) + number(15, table)


def element(table: str, held_in: str, key: bytes, value: bytes | None = None, delete: bool = False) -> Request:
    """One element of a set or map of the table (family inet)."""
    parts = [nest(1, attribute(1, key))] + ([] if value is None else [nest(2, attribute(1, value))])
    place = text(1, table), text(2, held_in), nest(3, nest(1, *parts))
    if delete:
        return nf_tables(_DELETE_ELEMENT, 0, _FAMILY_INET, *place)
    return nf_tables(_NEW_ELEMENT, CREATE | EXCLUSIVE, _FAMILY_INET, *place)


def connections_gone(mark: int, mask: int = 0xFFFF_FFFF) -> Request:
    """Forgets every connection with the mark."""
    body = nf_head(socket.AF_INET) + attribute(8, struct.pack(">I", mark)) + attribute(21, struct.pack(">I", mask))
    return _CONNTRACK << 8 | _DELETE_CONNECTION, 0, body
