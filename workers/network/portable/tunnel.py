"""A node's tunnel into one Vpc: a live link to each of its proxies; what is new goes over the first that is well."""

import asyncio
import contextlib
import random
from collections.abc import Callable
from ipaddress import IPv4Address

import structlog

from workers.network.portable.credit import Budget
from workers.network.portable.destinations import allowed
from workers.network.portable.handshakes import connect
from workers.network.portable.legs import Leg
from workers.network.portable.link import Link
from workers.network.portable.streams import Flow, Full, Stream
from workers.network.portable.words import PROTOCOL, Hello, Kind, LinkError, Open, Reason, Spec, Welcome, decode
from workers.networks import Proxy, TunnelState, VpcSpec
from workers.rpc.transport import HostPort, Identity, NotTrusted, Peer, parse_address

FIRST_BACKOFF_S, LAST_BACKOFF_S = 0.05, 5.0
STEADY_S = 5.0
"""A link that stood for so long was a good one: its successor is dialled at once."""

OPEN_TIMEOUT_S = 8.0
DRAIN_S = 60.0
"""A proxy that is not the Vpc's any more: so long may its streams go on."""

log = structlog.get_logger(__name__)


class Line:
    """What keeps a link to one proxy: dials, waits until it is lost, dials again with growing pauses."""

    def __init__(self, proxy: Proxy, tunnel: "Tunnel") -> None:
        self.proxy = proxy
        self.link: Link | None = None
        self.why = "not reached yet"
        self._tunnel = tunnel
        self._shown = ""
        self._welcomed: asyncio.Future[None] | None = None
        self._lost = asyncio.Event()
        self._task = asyncio.get_running_loop().create_task(self._keep())

    @property
    def well(self) -> bool:
        link = self.link
        return link is not None and link.up and not link.suspect and not link.closing

    def follow(self, proxy: Proxy) -> None:
        """Its certificate may be another one now: a link to one that does not count any more ends."""
        self.proxy = proxy
        if self.link is not None and self._shown and not self._expected.counts(self._shown):
            self.link.drop("its certificate does not count any more")

    @property
    def _expected(self) -> Peer:
        return Peer("vpc-proxy", self.proxy.name, self.proxy.fingerprint, self.proxy.fingerprint_before)

    async def _keep(self) -> None:
        loop, backoff = asyncio.get_running_loop(), FIRST_BACKOFF_S
        while True:
            began = loop.time()
            try:
                await self._dial()
                await self._lost.wait()
            except (OSError, TimeoutError, NotTrusted, LinkError, ValueError) as error:
                self.why = str(error) or "timed out"
            if self.link is not None:
                self.link.drop("given up")
                self.link = None
            self._tunnel.changed()
            backoff = FIRST_BACKOFF_S if loop.time() - began > STEADY_S else min(2 * backoff, LAST_BACKOFF_S)
            await asyncio.sleep(backoff * random.uniform(0.5, 1.5))  # noqa: S311 - nodes must not come back all at once

    async def _dial(self) -> None:
        address = parse_address(self.proxy.address)
        if not isinstance(address, HostPort):
            raise ValueError(f"{self.proxy.address!r} is no host:port")
        loop = asyncio.get_running_loop()
        self._lost.clear()
        self._welcomed = loop.create_future()

        def make() -> Link:
            self.link = Link(self, self._tunnel.budget, pings=True)
            return self.link

        async with asyncio.timeout(OPEN_TIMEOUT_S):
            await connect(make, address, self._tunnel.identity)
            await self._welcomed
        assert self.link is not None
        if self.link.why:
            raise LinkError(self.link.why)
        self.link.opened()
        self.link.hurry(self._tunnel.attached > 0)
        self.why = ""
        log.info("tunnel.open", vpc=self._tunnel.spec.vpc, proxy=self.proxy.name)
        self._tunnel.changed()

    # -- the link's owner

    def on_secured(self, link: Link, peer: Peer) -> None:
        wanted = self._expected
        if (peer.role, peer.name) != (wanted.role, wanted.name):
            raise NotTrusted(f"{self.proxy.address} is {peer.role} {peer.name}, not {wanted.role} {wanted.name}")
        if not wanted.counts(peer.fingerprint):
            raise NotTrusted(f"{peer.role} {peer.name} shows a certificate that does not count any more")
        self._shown = peer.fingerprint
        spec = self._tunnel.spec
        link.say(Kind.HELLO, 0, Hello(PROTOCOL, spec.vpc, spec.generation))

    def on_word(self, link: Link, kind: Kind, ident: int, meta: bytes) -> None:
        if kind == Kind.WELCOME and not link.up and self._welcomed is not None and not self._welcomed.done():
            welcome = decode(meta, Welcome)
            if welcome.protocol != PROTOCOL:
                raise LinkError(f"the proxy speaks protocol {welcome.protocol}, not {PROTOCOL}")
            link.generation, link.source = welcome.generation, _address(welcome.source)
            self._welcomed.set_result(None)
        elif kind == Kind.SPEC:
            spec = decode(meta, Spec)
            link.generation, link.source = spec.generation, _address(spec.source)
            self._tunnel.changed()
        elif kind == Kind.CLOSING:
            reason = decode(meta, Reason)
            link.closing = reason.text or reason.code
            if not link.up:
                link.drop(link.closing)
            self._tunnel.changed()
        else:
            raise LinkError(f"word {kind} out of turn")

    def on_lost(self, link: Link, why: str) -> None:
        if link is not self.link:
            return
        if link.up or not self.why:
            log.warning("tunnel.lost", vpc=self._tunnel.spec.vpc, proxy=self.proxy.name, why=why)
        self.why = why
        self._lost.set()
        if self._welcomed is not None and not self._welcomed.done():
            self._welcomed.set_exception(LinkError(why))
            self._welcomed.exception()  # whoever dials may have given up
        self._tunnel.changed()

    async def close(self, drain_s: float = 0.0) -> None:
        """Ends it; its streams may go on for `drain_s` at most."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(drain_s):
                if self.link is not None:
                    await self.link.drained()
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        if self.link is not None:
            self.link.drop("the tunnel is closed")
            self.link = None


class Tunnel:
    """`attached`: instances that use it now; `unwanted`: it is not among the node's Vpcs any more, and closes with the last."""

    def __init__(self, spec: VpcSpec, identity: Identity, budget: Budget, changed: Callable[[], None]) -> None:
        self.spec = spec
        self.identity = identity
        self.budget = budget
        self.attached = 0
        self.unwanted = False
        self._told = changed
        self._lines = [Line(proxy, self) for proxy in spec.proxies]
        self._leaving: set[asyncio.Task[None]] = set()

    def changed(self) -> None:
        self._told()

    def follow(self, spec: VpcSpec) -> None:
        """The Vpc has changed: links to proxies that stay stay, and so do the streams that are still allowed."""
        if spec == self.spec:
            return
        before, self.spec = {(line.proxy.name, line.proxy.address): line for line in self._lines}, spec
        self._lines = []
        for proxy in spec.proxies:
            line = before.pop((proxy.name, proxy.address), None)
            if line is None:
                line = Line(proxy, self)
            line.follow(proxy)
            self._lines.append(line)
        for line in before.values():
            task = asyncio.get_running_loop().create_task(line.close(DRAIN_S))
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)
        for line in [*self._lines, *before.values()]:
            for carried in list(line.link.carried.values()) if line.link is not None else ():
                to = carried.to
                if to.address and not to.egress and not allowed(spec, to.address, to.protocol, to.port):
                    carried.reset()
        self.changed()

    def hold(self, by: int) -> None:
        """One instance more (1), one less (-1)."""
        self.attached += by
        asyncio.get_running_loop().call_soon(self._hurry)  # what is being attached need not wait for that

    def _hurry(self) -> None:
        for line in self._lines:
            if line.link is not None:
                line.link.hurry(self.attached > 0)

    @property
    def state(self) -> TunnelState:
        ready = next((line for line in self._lines if self._fresh(line)), None)
        if self.unwanted:
            reason = "the Vpc is not this node's any more: closed when the last instance is gone"
        elif ready is not None:
            reason = f"portable, by {ready.proxy.name} at {ready.proxy.address}{self._sources(ready)}"
        elif not self._lines:
            reason = "the Vpc has no proxy"
        else:
            reason = "; ".join(f"{line.proxy.name} at {line.proxy.address}: {self._why(line)}" for line in self._lines)
        return TunnelState(
            self.spec.vpc, self.spec.generation, ready is not None and not self.unwanted, reason, "portable", self.attached
        )

    def _sources(self, carrying: Line) -> str:
        """With which address functions leave, for whoever allow-lists it, and with which by others that may be next."""
        said = {line.proxy.name: line.link.source for line in self._lines if line.link is not None and line.link.source}
        own = said.pop(carrying.proxy.name, "")
        others = ", ".join(sorted({*said.values()} - {own}))
        return (f", leaving as {own}" + (f" (by others as {others})" if others else "")) if own else ""

    def _fresh(self, line: Line) -> bool:
        return line.well and line.link is not None and line.link.generation >= self.spec.generation

    @staticmethod
    def _why(line: Line) -> str:
        link = line.link
        if link is None or not link.up:
            return line.why
        if link.closing:
            return link.closing
        return "silent" if link.suspect else f"has generation {link.generation} of the Vpc still"

    def _links(self) -> list[Link]:
        """The well ones, primary first; then those that are only suspected."""
        up = [line.link for line in self._lines if line.link is not None and line.link.up and not line.link.closing]
        return sorted(up, key=lambda link: link.suspect)

    def carry(self, leg: Leg, to: Open, tried: tuple[Link, ...] = ()) -> None:
        """The leg's connection goes there, or is reset."""
        if leg.over:
            return
        for link in self._links():
            if link in tried:
                continue
            asked: list[Stream] = []

            def answered(refused: Reason | None, link: Link = link, asked: list[Stream] = asked) -> None:
                if refused is None:
                    asked[0].join(leg)
                elif refused.code == "closing":  # nothing was said yet: another may carry it
                    self.carry(leg, to, (*tried, link))
                else:
                    leg.reset()

            with contextlib.suppress(Full):
                asked.append(link.open(to, answered))
                return
        leg.reset()

    def flow(self, to: Open, on_datagram: Callable[[bytes], None], on_end: Callable[[], None]) -> Flow | None:
        """None: nobody to carry it."""
        for link in self._links():
            with contextlib.suppress(Full):
                return link.open_flow(to, on_datagram, on_end)
        return None

    async def close(self) -> None:
        for task in list(self._leaving):
            task.cancel()
        await asyncio.gather(*self._leaving, *(line.close() for line in self._lines), return_exceptions=True)
        self._lines = []


def _address(told: str) -> str:
    """What a proxy says of its address, for people to read; empty when it is none."""
    try:
        return str(IPv4Address(told))
    except ValueError:
        return ""
