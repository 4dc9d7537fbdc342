"""The portable backend's side inside a private network: takes links from nodes, and connects on for their functions."""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Sequence

import msgspec
import structlog

from workers.network.portable.credit import Budget
from workers.network.portable.destinations import allowed, inside, public
from workers.network.portable.legs import Leg
from workers.network.portable.link import Link
from workers.network.portable.outward import Datagrams, NoWay, dial, has, system_resolver
from workers.network.portable.streams import Flow, Full, Stream
from workers.network.portable.words import (
    MAX_FLOWS,
    MAX_STREAMS,
    PROTOCOL,
    Hello,
    Kind,
    LinkError,
    Open,
    Reason,
    Spec,
    Welcome,
    decode,
)
from workers.networks import VpcSpec
from workers.rpc.transport import HostPort, Identity, NotTrusted, Peer, serve

WINDOWS = 256 << 20
MAX_LINKS_PER_NODE = 2
"""Of one node and Vpc: one that stands, and one that the node made after a loss this side has not seen yet."""

MAX_UNSAID = 64
"""Connections that have not said hello."""

DRAIN_S = 60.0
DNS = 53

log = structlog.get_logger(__name__)

Admits = Callable[[Peer, str], str]
"""Why a node (its certificate is good) may not use a Vpc; empty: it may."""


class Carrying(msgspec.Struct, frozen=True):
    """What a proxy does for one Vpc now. `address_here`: it has the Vpc's fixed address, or the Vpc names none."""

    vpc: str
    generation: int
    nodes: tuple[str, ...]
    streams: int
    address_here: bool


class PortableProxy:
    """One per proxy process. All methods on its event loop."""

    def __init__(self, admit: Admits) -> None:
        self._admit = admit
        self._specs: dict[str, VpcSpec] = {}
        self.budget = Budget(WINDOWS)
        self._servers: list[asyncio.AbstractServer] = []
        self._served: set[_Served] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, addresses: Sequence[HostPort], identity: Identity) -> None:
        """Listens. Raises OSError."""
        try:
            for address in addresses:
                self._servers.append(await serve(self._make, address, identity))
        except BaseException:
            await self.stop()
            raise

    def _make(self) -> Link:
        served = _Served(self)
        served.link = Link(served, self.budget, pings=False)
        return served.link

    @property
    def ports(self) -> list[int]:
        """Where it listens, in the order of `start`'s addresses."""
        return [int(server.sockets[0].getsockname()[1]) for server in self._servers]  # type: ignore[attr-defined]

    def use(self, specs: Sequence[VpcSpec]) -> None:
        """The Vpcs whose private network this is in. Links of others are closed once their streams have ended; streams that the
        rules do not allow any more are reset."""
        before, self._specs = self._specs, {spec.vpc: spec for spec in specs}
        for served in list(self._served):
            if not served.vpc:
                continue
            spec = self._specs.get(served.vpc)
            if spec is None:
                served.close_when_drained()
            elif spec != before.get(served.vpc):
                served.follow(spec)

    def states(self) -> list[Carrying]:
        found = []
        for vpc, spec in self._specs.items():
            mine = [served for served in self._served if served.vpc == vpc]
            streams = sum(len(served.link.carried) for served in mine if served.link is not None)
            here = not spec.address or has(spec.address)
            found.append(Carrying(vpc, spec.generation, tuple(sorted({one.node for one in mine})), streams, here))
        return found

    async def stop(self) -> None:
        """Nothing is left."""
        for server in self._servers:
            server.close()
        self._servers.clear()
        for served in list(self._served):
            if served.link is not None:
                served.link.drop("the proxy stops")
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- for its links

    def spec(self, vpc: str) -> VpcSpec | None:
        return self._specs.get(vpc)

    def enters(self, served: "_Served") -> None:
        """Raises NotTrusted when there are too many that said nothing yet."""
        if sum(1 for one in self._served if not one.vpc) >= MAX_UNSAID:
            raise NotTrusted("too many connections that said no hello")
        self._served.add(served)

    def admits(self, served: "_Served", peer: Peer, vpc: str) -> str:
        refused = self._admit(peer, vpc)
        if not refused:
            same = [one for one in self._served if one is not served and (one.node, one.vpc) == (peer.name, vpc)]
            for oldest in sorted(same, key=lambda one: one.number)[: max(0, len(same) - MAX_LINKS_PER_NODE + 1)]:
                if oldest.link is not None:
                    oldest.link.drop("the node has made newer ones")
        return refused

    def leaves(self, served: "_Served") -> None:
        self._served.discard(served)

    def spawn(self, served: "_Served", work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        for tasks in (self._tasks, served.tasks):
            tasks.add(task)
            task.add_done_callback(tasks.discard)


class _Served:
    """One link, at the proxy."""

    _made = 0

    def __init__(self, proxy: PortableProxy) -> None:
        _Served._made += 1
        self.number = _Served._made
        self.link: Link | None = None
        self.node = ""
        self.vpc = ""
        self.tasks: set[asyncio.Task[None]] = set()
        self._proxy = proxy
        self._peer = Peer("", "")
        self._flows = 0
        self._draining = False

    # -- the link's owner

    def on_secured(self, link: Link, peer: Peer) -> None:
        if peer.role != "node":
            raise NotTrusted(f"{peer.role} {peer.name} is no node")
        self._peer = peer
        self._proxy.enters(self)

    def on_word(self, link: Link, kind: Kind, ident: int, meta: bytes) -> None:
        if kind == Kind.HELLO and not link.up:
            self._hello(link, decode(meta, Hello))
        elif kind == Kind.OPEN and link.up:
            if ident <= link.last:
                raise LinkError(f"stream {ident} is opened twice")
            link.last = ident
            self._open(link, ident, decode(meta, Open))
        else:
            raise LinkError(f"word {kind} out of turn")

    def on_lost(self, link: Link, why: str) -> None:
        self._proxy.leaves(self)
        for task in list(self.tasks):
            task.cancel()
        if self.vpc:
            log.info("link.lost", node=self.node, vpc=self.vpc, why=why)

    def _hello(self, link: Link, hello: Hello) -> None:
        spec = self._proxy.spec(hello.vpc)
        if hello.protocol != PROTOCOL:
            refused = f"the node speaks protocol {hello.protocol}, not {PROTOCOL}"
        elif spec is None:
            refused = f"the proxy does not know the Vpc {hello.vpc[:100]!r} (yet)"
        else:
            refused = self._proxy.admits(self, self._peer, hello.vpc)
        if refused or spec is None:
            link.say(Kind.CLOSING, 0, Reason("closing", refused))
            asyncio.get_running_loop().call_later(1.0, link.drop, refused)  # the node closes first, having read it
            return
        self.node, self.vpc = self._peer.name, hello.vpc
        link.opened()
        link.say(Kind.WELCOME, 0, Welcome(PROTOCOL, spec.generation, MAX_STREAMS, MAX_FLOWS))
        log.info("link.open", node=self.node, vpc=self.vpc)

    # -- the Vpc changes

    def follow(self, spec: VpcSpec) -> None:
        if self.link is None:
            return
        for carried in list(self.link.carried.values()):
            to = carried.to
            if to.address and not to.egress and not allowed(spec, to.address, to.protocol, to.port):
                carried.reset()
        self.link.say(Kind.SPEC, 0, Spec(spec.generation))

    def close_when_drained(self) -> None:
        if self._draining or self.link is None:
            return
        self._draining = True
        self.link.say(Kind.CLOSING, 0, Reason("closing", "the proxy does not serve the Vpc any more"))
        self._proxy.spawn(self, self._drain(self.link))

    @staticmethod
    async def _drain(link: Link) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_S):
                await link.drained()
        link.drop("the proxy does not serve the Vpc any more")

    # -- streams

    def _open(self, link: Link, ident: int, to: Open) -> None:
        spec = self._proxy.spec(self.vpc)
        refused = Reason("closing", "the Vpc is not served here any more") if spec is None or self._draining else None
        if refused is None and len(link.carried) >= MAX_STREAMS:
            refused = Reason("limit", f"{MAX_STREAMS} streams are open on this link")
        if refused is None and to.protocol == "udp" and self._flows >= MAX_FLOWS:
            refused = Reason("limit", f"{MAX_FLOWS} flows are open on this link")
        if refused is None and spec is not None:
            try:
                address, port, source = self._where(spec, to)
                self._start(link, ident, to, address, port, source)
            except NoWay as error:
                refused = error.reason
            except Full as error:
                refused = Reason("limit", str(error))
        if refused is not None:
            link.say(Kind.REFUSED, ident, refused)

    @staticmethod
    def _where(spec: VpcSpec, to: Open) -> tuple[str, int, str]:
        """(address, port, source); a node is not believed. Raises NoWay."""
        if to.protocol not in ("tcp", "udp"):
            raise NoWay("denied", f"no streams of {to.protocol[:20]!r}")
        try:
            if to.address == "":
                if spec.resolver:
                    return spec.resolver, DNS, spec.address
                if to.egress:
                    return system_resolver(), DNS, ""
            elif inside(spec, to.address):
                if allowed(spec, to.address, to.protocol, to.port):
                    return to.address, to.port, spec.address
            elif to.egress and 0 < to.port < 65536 and public(to.address):
                return to.address, to.port, spec.address
        except ValueError as error:
            raise NoWay("denied", str(error)) from error
        raise NoWay("denied", f"{to.address}:{to.port} is not allowed")

    def _start(self, link: Link, ident: int, to: Open, address: str, port: int, source: str) -> None:
        """Raises NoWay, Full."""
        if to.protocol == "udp":
            self._start_flow(link, ident, to, address, port, source)
            return
        stream = Stream(link, ident, to, self._proxy.budget)
        link.carried[ident] = stream
        self._proxy.spawn(self, self._connect(link, stream, address, port, source))

    async def _connect(self, link: Link, stream: Stream, address: str, port: int, source: str) -> None:
        leg = Leg()
        try:
            await dial(leg, address, port, source)
        except NoWay as error:
            if not stream.over:
                stream.refuse(error.reason)
            return
        if stream.over:
            leg.reset()
        else:
            link.send(Kind.ACCEPTED, stream.ident)
            stream.join(leg)

    def _start_flow(self, link: Link, ident: int, to: Open, address: str, port: int, source: str) -> None:
        flow: Flow | None = None

        def came(payload: bytes) -> None:
            if flow is not None:
                flow.send(payload)

        def idle() -> None:
            self._flows -= 1
            if flow is not None:
                flow.end()

        def ended() -> None:
            self._flows -= 1
            out.close()

        out = Datagrams(came, idle)
        out.open(address, port, source)
        self._flows += 1
        flow = link.carried[ident] = Flow(link, ident, to, out.send, ended)
        link.send(Kind.ACCEPTED, ident)
