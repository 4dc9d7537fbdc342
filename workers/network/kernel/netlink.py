"""The few netlink requests that are made for each instance, packed by hand: pyroute2 takes longer for one than an attach.

A socket stays in the network namespace of the thread that made it, whoever uses it. Formats: linux/netlink.h, rtnetlink.h,
if_link.h, nfnetlink.h, nf_tables.h, nfnetlink_conntrack.h. All requests raise OSError with what was asked.
"""

import os
import socket
import struct
from typing import Self

REQUEST, ACK, EXCLUSIVE, CREATE = 1, 4, 0x200, 0x400
UP, NO_ARP = 0x1, 0x80
NESTED = 0x8000
_ROUTE, _NETFILTER = 0, 12
_NEWLINK, _DELLINK, _GETLINK, _NEWADDR, _NEWROUTE = 16, 17, 18, 20, 24
_ERROR = 2
_SCOPE_LINK, _UNICAST, _BOOT = 253, 1, 3
_BATCH_BEGIN, _BATCH_END, _NFTABLES, _CONNTRACK = 16, 17, 10, 1
_NEW_ELEMENT, _DELETE_ELEMENT, _DELETE_CONNECTION = 12, 14, 2
_FAMILY_INET = 1
RECEIVE_BYTES = 65536
TIMEOUT_S = 5.0


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def text(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


def number(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("I", value))


def nest(kind: int, *attributes: bytes) -> bytes:
    return attribute(kind | NESTED, b"".join(attributes))


class Netlink:
    """One socket in the namespace of the thread that makes it; one request at a time."""

    def __init__(self, protocol: int = _ROUTE) -> None:
        self.socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        self.socket.bind((0, 0))
        self.socket.settimeout(TIMEOUT_S)  # it answers at once; else something is very wrong
        self._serial = 1

    @classmethod
    def netfilter(cls) -> Self:
        return cls(_NETFILTER)

    def close(self) -> None:
        self.socket.close()

    def request(self, what: str, *messages: tuple[int, int, bytes]) -> None:
        """Sends (type, flags, body) of all in one call and waits for their answers."""
        packed, first = b"", self._serial
        for kind, flags, body in messages:
            packed += self._packed(kind, flags | ACK, body)
        self._send(what, packed, first, len(messages))

    def transaction(self, what: str, *messages: tuple[int, int, bytes]) -> None:
        """nf_tables messages that all hold or none does."""
        border = struct.pack(">BBH", 0, 0, _NFTABLES)
        packed = self._packed(_BATCH_BEGIN, 0, border)
        first = self._serial
        for kind, flags, body in messages:
            packed += self._packed(_NFTABLES << 8 | kind, flags | ACK, body)
        packed += self._packed(_BATCH_END, 0, border)
        self._send(what, packed, first, len(messages))

    def _packed(self, kind: int, flags: int, body: bytes) -> bytes:
        message = struct.pack("IHHII", 16 + len(body), kind, flags | REQUEST, self._serial, 0) + body + bytes(-len(body) % 4)
        self._serial = self._serial % 0x7FFF_FFFF + 1
        return message

    def _send(self, what: str, packed: bytes, first: int, answers: int) -> None:
        self.socket.send(packed)
        failed = 0
        while answers:
            received = self.socket.recv(RECEIVE_BYTES)
            at = 0
            while at < len(received):
                size, kind, _, serial, _ = struct.unpack_from("IHHII", received, at)
                if kind == _ERROR and serial >= first - 1:  # of an earlier request that timed out: not ours
                    (code,) = struct.unpack_from("i", received, at + 16)
                    failed = failed or -code
                    if serial < first and code:  # the transaction itself: nothing else will be answered
                        answers = 1
                    answers -= 1
                at += (size + 3) & ~3
        if failed:
            raise OSError(failed, f"{what}: {os.strerror(failed)}")


def _link(index: int = 0, flags: int = 0, change: int = 0) -> bytes:
    return struct.pack("BBHiII", 0, 0, 0, index, flags, change)


def cable(name: str, index: int, peer: str, peer_index: int, peer_namespace: int, mac: str, mtu: int) -> tuple[int, int, bytes]:
    """A veth pair, `peer` in the namespace of the descriptor; both ends down and with the same address, so that neither needs to
    ask for the other's."""
    same = attribute(1, bytes.fromhex(mac.replace(":", ""))) + number(4, mtu)
    other = _link(peer_index) + text(3, peer) + number(28, peer_namespace) + same
    body = _link(index) + text(3, name) + same + nest(18, text(1, "veth"), nest(2, attribute(1, other)))
    return _NEWLINK, CREATE | EXCLUSIVE, body


def up(index: int) -> tuple[int, int, bytes]:
    return _NEWLINK, 0, _link(index, UP | NO_ARP, UP | NO_ARP)


def settled(index: int) -> tuple[int, int, bytes]:
    """The answer comes when the device's queue is live: without it some first packets are lost, and come a second late."""
    return _GETLINK, 0, _link(index)


def removed(index: int) -> tuple[int, int, bytes]:
    return _DELLINK, 0, _link(index)


def address(index: int, value: str, prefix: int) -> tuple[int, int, bytes]:
    packed = socket.inet_aton(value)
    body = struct.pack("BBBBI", socket.AF_INET, prefix, 0, 0, index) + attribute(2, packed) + attribute(1, packed)
    return _NEWADDR, CREATE | EXCLUSIVE, body


def route(destination: str, prefix: int, index: int, table: int = 254) -> tuple[int, int, bytes]:
    """Straight out of the device, nobody in between."""
    body = struct.pack("BBBBBBBBI", socket.AF_INET, prefix, 0, 0, table if table < 256 else 0, _BOOT, _SCOPE_LINK, _UNICAST, 0)
    body += attribute(1, socket.inet_aton(destination)) if prefix else b""
    return _NEWROUTE, CREATE | EXCLUSIVE, body + number(4, index) + number(15, table)


def element(table: str, held_in: str, key: bytes, value: bytes | None = None, delete: bool = False) -> tuple[int, int, bytes]:
    """One element of a set or map of the table (family inet)."""
    parts = [nest(1, attribute(1, key))] + ([] if value is None else [nest(2, attribute(1, value))])
    body = struct.pack(">BBH", _FAMILY_INET, 0, 0) + text(1, table) + text(2, held_in) + nest(3, nest(1, *parts))
    return (_DELETE_ELEMENT, 0, body) if delete else (_NEW_ELEMENT, CREATE | EXCLUSIVE, body)


def connections_gone(mark: int, mask: int = 0xFFFF_FFFF) -> tuple[int, int, bytes]:
    """Forgets every connection with the mark."""
    body = (
        struct.pack(">BBH", socket.AF_INET, 0, 0) + attribute(8, struct.pack(">I", mark)) + attribute(21, struct.pack(">I", mask))
    )
    return _CONNTRACK << 8 | _DELETE_CONNECTION, 0, body
