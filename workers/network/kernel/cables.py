"""Which sandboxes have a cable into the router, and which address each has."""

import os
import socket
import struct
from collections.abc import Iterator, Set

from workers.network.kernel.addresses import FIRST_INDEX, LAST_INDEX
from workers.network.kernel.router import CABLES
from workers.network.netlink import DELETE_LINK
from workers.ports import NetworkUnavailable, SandboxNetwork

RECEIVE_BYTES = 65536
_PLACES = 1 << 20


class Cable:
    """A sandbox's. `used`: it was attached, which happens once. `known`: something may remember its address: it is
    being wired, attached, or its connections are not forgotten yet."""

    def __init__(self, key: tuple[int, int], index: int) -> None:
        self.key, self.index = key, index
        self.used = self.known = False
        self.detached_at = 0.0
        """By the event loop's clock; 0: it is not."""


class Cables:
    """An address is given again only after all others were, when its cable is gone and nothing knows its last owner any more."""

    def __init__(self) -> None:
        self._by_sandbox: dict[tuple[int, int], Cable] = {}
        self._by_index: dict[int, Cable] = {}
        self._held: set[int] = set()
        self._next = FIRST_INDEX

    @property
    def held(self) -> int:
        return len(self._held)

    def of(self, network: SandboxNetwork) -> Cable | None:
        return self._by_sandbox.get(key(network))

    def taken(self, network: SandboxNetwork) -> Cable:
        """A new one, with an address of its own. Raises NetworkUnavailable when there is none."""
        for _ in range(LAST_INDEX - FIRST_INDEX + 1):
            index, self._next = self._next, self._next + 1 if self._next < LAST_INDEX else FIRST_INDEX
            if index not in self._held:
                cable = Cable(key(network), index)
                self._held.add(index)
                self._by_sandbox[cable.key] = self._by_index[index] = cable
                return cable
        raise NetworkUnavailable("all addresses for instances of this node are taken")

    def gone(self, index: int) -> None:
        """The cable is no more, as with its sandbox."""
        cable = self._by_index.pop(index, None)
        if cable is not None:
            if self._by_sandbox.get(cable.key) is cable:
                del self._by_sandbox[cable.key]
            self.free(cable)

    def free(self, cable: Cable) -> None:
        """Gives the address back, if nothing stands against it."""
        if not cable.known and cable.index not in self._by_index:
            self._held.discard(cable.index)

    def lingering(self, before: float) -> list[int]:
        """Those that were detached before that time and are still there."""
        return [index for index, cable in self._by_index.items() if 0 < cable.detached_at < before]

    def missing(self, there: Set[int]) -> list[int]:
        """Indices whose cables are not among those."""
        return [index for index in self._by_index if index not in there]


def key(network: SandboxNetwork) -> tuple[int, int]:
    """Of the namespace, while it is there."""
    found = os.fstat(network.namespace)
    return found.st_dev, found.st_ino


def departures(sock: socket.socket) -> Iterator[int]:
    """Indices of the cables that went since the last call. Raises OSError (ENOBUFS) when some were missed."""
    while True:
        try:
            received = sock.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return
        at = 0
        while at + 16 <= len(received):
            size, kind, _, _, _ = struct.unpack_from("IHHII", received, at)
            if kind == DELETE_LINK:
                (device,) = struct.unpack_from("i", received, at + 20)
                if CABLES <= device < CABLES + _PLACES:
                    yield device - CABLES
            at += (size + 3) & ~3
