"""One sandbox attached: what its connections and datagrams reach, and by which way."""

import asyncio
import contextlib
import socket
from collections import OrderedDict
from collections.abc import Callable
from ipaddress import IPv4Network
from typing import Protocol

from workers.network.portable.accepting import Accepting
from workers.network.portable.destinations import allowed, exists, inside, public
from workers.network.portable.legs import Direct, Leg
from workers.network.portable.outward import Datagrams, NoWay, dial, idle_of, system_resolver
from workers.network.portable.tunnel import Tunnel
from workers.network.portable.wiring import Wired, original_destination, packet
from workers.network.portable.words import MAX_DATA, Open
from workers.networks import RESOLVER, Egress, VpcSpec

MAX_CONNECTIONS = 512
MAX_FLOWS = 64
DATAGRAMS_AT_ONCE = 32
DNS = 53

Place = tuple[str, int]


def reachable(spec: VpcSpec | None, egress: str) -> list[IPv4Network]:
    """Whose addresses lead to this process: the Vpc's and the resolver's, with `internet` all there are."""
    if egress == Egress.INTERNET:
        return [IPv4Network("0.0.0.0/0")]
    if spec is None:
        return []
    found = [network for cidr in spec.cidrs if ":" not in cidr and (network := IPv4Network(cidr, strict=False))]
    return [*found, IPv4Network(f"{RESOLVER}/32")] if spec.resolver else found


class _Carrier(Protocol):
    """A flow, whatever carries it."""

    def send(self, payload: bytes) -> None: ...

    def close(self) -> None: ...


class _Exchange:
    """One flow of the sandbox's datagrams, from one of its sockets to one place."""

    def __init__(self, names: bool) -> None:
        self.names = names
        self.asked = 0  # questions to the resolver that have no answer yet
        self.carrier: _Carrier | None = None


class _Carried:
    """A flow over the tunnel, ended as the others are."""

    def __init__(self, tunnel: Tunnel, to: Open, on_datagram: Callable[[bytes], None], on_end: Callable[[], None]) -> None:
        self._flow = tunnel.flow(to, on_datagram, on_end)

    @property
    def nobody(self) -> bool:
        return self._flow is None

    def send(self, payload: bytes) -> None:
        if self._flow is not None:
            self._flow.send(payload)

    def close(self) -> None:
        if self._flow is not None:
            self._flow.end()


class _Accepted(Leg):
    def __init__(self, sock: socket.socket, owner: "Attached") -> None:
        super().__init__(sock)
        self._owner = owner

    def _on_end(self, error: Exception | None) -> None:
        super()._on_end(error)
        self._owner.left(self)


class Attached:
    """Made by the plane. `detach` may come at any time, more than once."""

    def __init__(self, tunnel: Tunnel | None, egress: str, wired: Wired, on_detached: "Callable[[Attached], None]") -> None:
        self.tunnel = tunnel
        self.egress = egress
        self._wired = wired
        self._on_detached = on_detached
        self._accepting: Accepting | None = None
        self._legs: set[Leg] = set()
        self._exchanges: OrderedDict[tuple[Place, Place], _Exchange] = OrderedDict()
        self._dialling: dict[Leg, asyncio.Task[None]] = {}
        self._detached = False

    def start(self) -> None:
        self._accepting = Accepting(self._wired.streams, self._on_stream)
        asyncio.get_running_loop().add_reader(self._wired.datagrams.fileno(), self._on_datagrams)

    def follow(self) -> None:
        """The Vpc has changed. Raises OSError."""
        self._wired.reach(reachable(self.tunnel.spec if self.tunnel else None, self.egress))

    def detach(self) -> None:
        if self._detached:
            return
        self._detached = True
        asyncio.get_running_loop().remove_reader(self._wired.datagrams.fileno())
        if self._accepting is not None:
            self._accepting.stop()
        for task in self._dialling.values():
            task.cancel()
        for leg in list(self._legs):
            way = leg.way
            leg.reset()
            if way is not None:
                way.gone()
        for key in list(self._exchanges):
            self._end(key)
        self._wired.close()
        self._on_detached(self)

    # -- streams

    def way(self, protocol: str, address: str, port: int) -> Open | None:
        """Where that leads, None: nowhere. Without a Vpc, or for the Internet, this is what a proxy will look at once more."""
        spec, internet = self.tunnel.spec if self.tunnel else None, self.egress == Egress.INTERNET
        if address == RESOLVER:
            known = allowed(spec, spec.resolver, protocol, DNS) if spec is not None and spec.resolver else internet
            return Open(protocol, "", DNS, internet) if known and port == DNS else None
        if spec is not None and inside(spec, address):
            return Open(protocol, address, port) if allowed(spec, address, protocol, port) else None
        return Open(protocol, address, port, True) if internet and exists(protocol, port) and public(address) else None

    def _on_stream(self, sock: socket.socket) -> None:
        try:
            to = sock.getsockname()
        except OSError:  # gone already
            sock.close()
            return
        self.accepted(_Accepted(sock, self), to)

    def accepted(self, leg: Leg, to: Place) -> None:
        """A connection of the sandbox is here; it is carried there, or it is reset."""
        self._legs.add(leg)
        way = None if self._detached or len(self._legs) > MAX_CONNECTIONS else self.way("tcp", *to[:2])
        if way is None:
            leg.reset()
        elif self.tunnel is not None:
            self.tunnel.carry(leg, way)
        else:
            task = self._dialling[leg] = asyncio.get_running_loop().create_task(self._dial(leg, way))
            task.add_done_callback(lambda _: self._dialling.pop(leg, None))

    def left(self, leg: Leg) -> None:
        self._legs.discard(leg)
        if (dialling := self._dialling.get(leg)) is not None:  # nobody waits for it: it must not go on uncounted
            dialling.cancel()

    async def _dial(self, leg: Leg, to: Open) -> None:
        try:
            far = Leg(await dial(to.address or system_resolver(), to.port))
        except NoWay:
            leg.reset()
            return
        if leg.over or self._detached:
            far.reset()
            leg.reset()
        else:
            Direct.join(leg, far)

    # -- datagrams

    def _on_datagrams(self) -> None:
        for _ in range(DATAGRAMS_AT_ONCE):
            try:
                payload, ancillary, _, source = self._wired.datagrams.recvmsg(MAX_DATA, 64)
            except OSError:
                return
            to = original_destination(ancillary)
            if to is not None:
                self._on_datagram(source, to, payload)

    def _on_datagram(self, source: Place, to: Place, payload: bytes) -> None:
        key = (source, to)
        exchange = self._exchanges.get(key)
        if exchange is None:
            way = self.way("udp", *to)
            if way is None:
                return
            if len(self._exchanges) >= MAX_FLOWS:
                self._end(next(iter(self._exchanges)))
            exchange = self._exchanges[key] = _Exchange(way.address == "")
            self._open(key, exchange, way)
        if key in self._exchanges:
            self._exchanges.move_to_end(key)
        exchange.asked += 1
        if exchange.carrier is not None:
            exchange.carrier.send(payload)

    def _open(self, key: tuple[Place, Place], exchange: _Exchange, way: Open) -> None:
        source, to = key

        def came(payload: bytes) -> None:
            with contextlib.suppress(OSError):  # too long for the guest's card, or nobody waits any more
                self._wired.answers.sendto(packet(to, source, payload), (source[0], 0))
            exchange.asked -= 1
            if exchange.names and exchange.asked <= 0:
                self._end(key)

        def ended() -> None:
            self._exchanges.pop(key, None)

        if self.tunnel is not None:
            carried = _Carried(self.tunnel, way, came, ended)
            if carried.nobody:
                ended()  # the next one may find somebody
            exchange.carrier = carried
            return
        try:
            out = Datagrams(came, ended, idle_of(way))
            out.open(way.address or system_resolver(), way.port)
            exchange.carrier = out
        except NoWay:
            ended()

    def _end(self, key: tuple[Place, Place]) -> None:
        exchange = self._exchanges.pop(key, None)
        if exchange is not None and exchange.carrier is not None:
            exchange.carrier.close()
