"""One link of a node, at the proxy: its streams are looked at once more, for no node is believed, and connected on."""

import asyncio
import contextlib
from typing import TYPE_CHECKING

import structlog

from workers.network.portable.credit import Budget
from workers.network.portable.destinations import allowed, exists, inside, public
from workers.network.portable.legs import Leg
from workers.network.portable.link import Link
from workers.network.portable.outward import Datagrams, NoWay, dial, idle_of, source_of, system_resolver
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
from workers.rpc.transport import NotTrusted, Peer

if TYPE_CHECKING:
    from workers.network.portable.proxy import PortableProxy

DRAIN_S = 60.0
"""So long may the streams of a Vpc that is not served here any more go on."""

DNS = 53
REFUSAL_S = 1.0

log = structlog.get_logger(__name__)


class Served:
    """One link, at the proxy."""

    _made = 0

    def __init__(self, proxy: "PortableProxy", budget: Budget) -> None:
        Served._made += 1
        self.number = Served._made
        self.budget = budget
        self.link: Link | None = None
        self.node = ""
        self.vpc = ""
        self.tasks: set[asyncio.Task[None]] = set()
        self.peer = Peer("", "")
        self._proxy = proxy
        self._flows = 0
        self._draining = False
        self._source = ""

    # -- the link's owner

    def on_secured(self, link: Link, peer: Peer) -> None:
        if peer.role != "node":
            raise NotTrusted(f"{peer.role} {peer.name} is no node")
        self.peer = peer
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
            refused = self._proxy.admits(self, self.peer, hello.vpc)
        if refused or spec is None:
            link.say(Kind.CLOSING, 0, Reason("closing", refused))
            asyncio.get_running_loop().call_later(REFUSAL_S, link.drop, refused)  # the node closes first, having read it
            return
        self.node, self.vpc = self.peer.name, hello.vpc
        link.opened()
        self._source = source_of(spec)
        link.say(Kind.WELCOME, 0, Welcome(PROTOCOL, spec.generation, MAX_STREAMS, MAX_FLOWS, self._source))
        log.info("link.open", node=self.node, vpc=self.vpc)

    # -- the Vpc changes

    def follow(self, spec: VpcSpec) -> None:
        if self.link is None:
            return
        for carried in list(self.link.carried.values()):
            to = carried.to
            if to.address and not to.egress and not allowed(spec, to.address, to.protocol, to.port):
                carried.reset()
        self._tell(spec)

    def look(self, spec: VpcSpec) -> None:
        """The host's addresses may be others now."""
        if source_of(spec) != self._source:
            self._tell(spec)

    def _tell(self, spec: VpcSpec) -> None:
        if self.link is not None:
            self._source = source_of(spec)
            self.link.say(Kind.SPEC, 0, Spec(spec.generation, self._source))

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
        if refused is None and max(len(link.carried), len(self.tasks)) >= MAX_STREAMS:  # connecting goes on after a RESET
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
                if spec.resolver and allowed(spec, spec.resolver, to.protocol, DNS):
                    return spec.resolver, DNS, spec.address
                if to.egress and not spec.resolver:
                    return system_resolver(), DNS, ""
                raise NoWay("denied", "no resolver that the rules allow")
            if inside(spec, to.address):
                if allowed(spec, to.address, to.protocol, to.port):
                    return to.address, to.port, spec.address
            elif to.egress and exists(to.protocol, to.port) and public(to.address):
                return to.address, to.port, spec.address
        except ValueError as error:
            raise NoWay("denied", str(error)) from error
        raise NoWay("denied", f"{to.address}:{to.port} is not allowed")

    def _start(self, link: Link, ident: int, to: Open, address: str, port: int, source: str) -> None:
        """Raises NoWay, Full."""
        if to.protocol == "udp":
            self._start_flow(link, ident, to, address, port, source)
            return
        stream = Stream(link, ident, to, self.budget)
        link.carried[ident] = stream
        self._proxy.spawn(self, self._connect(link, stream, address, port, source))

    async def _connect(self, link: Link, stream: Stream, address: str, port: int, source: str) -> None:
        try:
            leg = Leg(await dial(address, port, source))
        except NoWay as error:
            if not stream.over:
                stream.refuse(error.reason)
            return
        if not stream.over:
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

        out = Datagrams(came, idle, idle_of(to))
        out.open(address, port, source)
        self._flows += 1
        flow = link.carried[ident] = Flow(link, ident, to, out.send, ended)
        link.send(Kind.ACCEPTED, ident)
