"""What is done in a sandbox's own network namespace, so that its connections come to this process.

The namespace has loopback alone (and a guest's card). `wire` makes it divert every connection to a listener at 127.0.0.1:1,
which no function can take for itself; `Wired` opens that listener and makes the addresses of a Vpc local ones, so that there is
something to divert. An address outside of them is not reachable: the kernel itself says so, at once.

Blocking, and for threads that end with it: they are in the sandbox's namespace from then on, for an ordinary user's node may
enter those of its sandboxes, but not come back to the host's.
"""

import contextlib
import socket
import struct
from collections.abc import Iterable
from ipaddress import IPv4Network

from workers.network import namespaces, netlink
from workers.network.netlink import Netlink
from workers.network.portable.requests import NFT_INET, ask_table, delete_table, divert, local_route
from workers.ports import SandboxNetwork

GATEWAY, PREFIX = "100.64.0.1", 30
"""This side of the link to a guest."""

TABLE, PORT = "foreglow", 1
LISTEN_BACKLOG = 128
LOOPBACK_INDEX = 1  # in every namespace
_IP_TRANSPARENT, _IP_RECVORIGDSTADDR = 19, 20
_RULES = divert(TABLE, PORT)


def wire(network: SandboxNetwork) -> None:
    """What is the same for every Vpc. Again: nothing. Raises OSError."""
    namespaces.enter(network.namespace)
    _wire(network.card)


def _wire(card: str) -> None:
    with Netlink(netlink.NETFILTER) as rules:
        with contextlib.suppress(FileNotFoundError):
            rules.ask("a table", ask_table(TABLE))  # a transaction that fails would wait for all cores to have seen that
            return
        with Netlink() as links, contextlib.suppress(FileExistsError):
            wanted = [netlink.up(LOOPBACK_INDEX)]
            if card:
                index = socket.if_nametoindex(card)
                wanted += [netlink.up(index), netlink.address(index, GATEWAY, PREFIX), netlink.settled(index)]
            links.ask("a sandbox's links", *wanted)
        if card:  # the kernel backend may have wired it, and then lets nothing in
            with contextlib.suppress(FileNotFoundError):
                rules.ask("a table", ask_table(TABLE, NFT_INET))
                rules.transaction("what the kernel backend wired", delete_table(TABLE, NFT_INET))
        with contextlib.suppress(FileExistsError):  # another thread was as quick
            rules.transaction("diverting connections", *_RULES)


class Wired:
    """The sockets of one sandbox: `streams` listens, `datagrams` receives, `answers` sends datagrams from any address."""

    def __init__(self, network: SandboxNetwork, reachable: Iterable[IPv4Network]) -> None:
        """Raises OSError; nothing is left open then."""
        self._networks: set[IPv4Network] = set()
        with contextlib.ExitStack() as undo:
            namespaces.enter(network.namespace)
            _wire(network.card)
            self.streams = undo.enter_context(
                socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK, socket.IPPROTO_TCP)
            )
            self.datagrams = undo.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK))
            self.answers = undo.enter_context(
                socket.socket(socket.AF_INET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.IPPROTO_RAW)
            )
            self._links = undo.enter_context(Netlink())
            for sock in (self.streams, self.datagrams):
                sock.setsockopt(socket.SOL_IP, _IP_TRANSPARENT, 1)
                sock.bind(("127.0.0.1", PORT))
            self.datagrams.setsockopt(socket.SOL_IP, _IP_RECVORIGDSTADDR, 1)
            self.streams.listen(LISTEN_BACKLOG)
            self.reach(reachable)
            undo.pop_all()

    def reach(self, networks: Iterable[IPv4Network]) -> None:
        """From now on these are the addresses that lead here. Raises OSError."""
        wanted = set(networks)
        gone, new = self._networks - wanted, wanted - self._networks
        requests = [local_route(str(one.network_address), one.prefixlen, LOOPBACK_INDEX) for one in new]
        requests += [local_route(str(one.network_address), one.prefixlen, LOOPBACK_INDEX, delete=True) for one in gone]
        self._networks = wanted
        if requests:
            self._links.ask("which addresses lead here", *requests)

    def close(self) -> None:
        """Nothing in the namespace leads anywhere any more. Idempotent."""
        with contextlib.suppress(OSError, ValueError):  # its sandbox may be gone; what is left cannot do without the sockets
            self.reach(())
        for sock in (self.streams, self.datagrams, self.answers):
            sock.close()
        self._links.close()


def original_destination(ancillary: Iterable[tuple[int, int, bytes]]) -> tuple[str, int] | None:
    """Where a diverted datagram was sent to, from what `recvmsg` gave beside it."""
    for level, kind, data in ancillary:
        if level == socket.SOL_IP and kind == _IP_RECVORIGDSTADDR and len(data) >= 8:
            return socket.inet_ntoa(data[4:8]), struct.unpack_from("!H", data, 2)[0]
    return None


def packet(source: tuple[str, int], to: tuple[str, int], payload: bytes) -> bytes:
    """An IPv4 packet with a UDP datagram (RFC 791, RFC 768; without a checksum of its own, which IPv4 allows). The kernel fills
    in the length, the number and the header's checksum."""
    length = 8 + len(payload)
    header = struct.pack(
        "!BBHHHBBH4s4s", 0x45, 0, 0, 0, 0, 64, socket.IPPROTO_UDP, 0, socket.inet_aton(source[0]), socket.inet_aton(to[0])
    )
    return header + struct.pack("!HHHH", source[1], to[1], length, 0) + payload
