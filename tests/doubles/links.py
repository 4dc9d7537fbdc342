"""Links over real TLS on loopback, with both ends in the test's hands."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from doubles.cluster import LOOPBACK, identity, port_of
from doubles.loop import until

from orchestrator.authority import Authority
from workers.framing import encode
from workers.network.portable.credit import Budget
from workers.network.portable.handshakes import connect, serve
from workers.network.portable.legs import Leg
from workers.network.portable.link import Link
from workers.network.portable.streams import Stream
from workers.network.portable.words import Kind, Open, Reason
from workers.rpc import transport
from workers.rpc.transport import HostPort, Identity, Peer

TO = Open("tcp", "10.0.1.5", 5432)


class End:
    """An owner of links that is up as soon as TLS is. `refuse`: what its side answers to OPEN instead of a leg."""

    def __init__(self, pings: bool, budget: Budget | None = None) -> None:
        self.budget = budget or Budget(64 << 20)
        self.links: list[Link] = []
        self.lost: list[str] = []
        self.far: list[socket.socket] = []
        self.refuse: Reason | None = None
        self.silent = False
        self._pings = pings

    def make(self) -> Link:
        self.links.append(Link(self, self.budget, self._pings))
        return self.links[-1]

    def on_secured(self, link: Link, peer: Peer) -> None:
        link.opened()

    def on_word(self, link: Link, kind: Kind, ident: int, meta: bytes) -> None:
        assert kind == Kind.OPEN
        link.last = ident
        if self.silent:
            return
        if self.refuse is not None:
            link.say(Kind.REFUSED, ident, self.refuse)
            return
        stream = link.carried[ident] = Stream(link, ident, TO, self.budget)
        near, far = socket.socketpair()
        self.far.append(far)
        link.send(Kind.ACCEPTED, ident)

        stream.join(Leg(near))

    def on_lost(self, link: Link, why: str) -> None:
        self.lost.append(why)


class Pair:
    """A node's end and a proxy's."""

    def __init__(self, near: End, far: End) -> None:
        self.near, self.far = near, far

    @property
    def link(self) -> Link:
        return self.near.links[0]

    async def stream(self) -> tuple[socket.socket, socket.socket]:
        """A function's socket and its server's, joined through the link. Both non-blocking."""
        function, mine = socket.socketpair()
        leg = Leg(mine)
        made: list[Stream] = []
        answers: list[Reason | None] = []

        def answered(refused: Reason | None) -> None:
            answers.append(refused)
            if refused is None:
                made[0].join(leg)
            else:
                leg.reset()

        count = len(self.far.far)
        made.append(self.link.open(TO, answered))
        await until(lambda: answers, "the stream is answered")
        if answers[0] is not None:
            return function, function
        server = self.far.far[count]
        for sock in (function, server):
            sock.setblocking(False)
        return function, server


@contextlib.asynccontextmanager
async def pair(folder: Path, near: End | None = None, far: End | None = None) -> AsyncIterator[Pair]:
    own, other = near or End(True), far or End(False)
    authority = Authority(folder / "authority")
    server = serve(other.make, HostPort(LOOPBACK, 0), identity(authority, folder, "vpc-proxy", "p1"))
    try:
        await connect(own.make, port_of(server), identity(authority, folder, "node", "n1"))
        await until(lambda: other.links and other.links[0].up and own.links[0].up)
        yield Pair(own, other)
    finally:
        for end in (own, other):
            for link in end.links:
                link.drop("test over")
            for sock in end.far:
                sock.close()
        server.close()


class Raw(asyncio.Protocol):
    """A hostile peer: says what it is told to, byte by byte, and reads only when it wants to."""

    def __init__(self) -> None:
        self.got = bytearray()
        self.closed = asyncio.get_running_loop().create_future()
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.got += data

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.closed.done():
            self.closed.set_result(None)

    def say(self, kind: int, ident: int = 0, meta: bytes = b"", body: bytes = b"") -> None:
        self.transport.write(encode(kind, ident, meta, body))

    def deaf(self) -> None:
        self.transport.pause_reading()


async def hostile(at: HostPort, who: Identity) -> Raw:
    made: list[Raw] = []

    def make() -> Raw:
        made.append(Raw())
        return made[0]

    await transport.connect(make, at, who)
    return made[0]


async def read(sock: socket.socket, amount: int, limit_s: float = 10.0) -> bytes:
    """Exactly so many bytes, fewer at the end of the stream."""
    found = bytearray()
    async with asyncio.timeout(limit_s):
        while len(found) < amount:
            part = await asyncio.get_running_loop().sock_recv(sock, min(1 << 16, amount - len(found)))
            if not part:
                break
            found += part
    return bytes(found)


async def fill(sock: socket.socket, quiet_s: float = 0.3) -> int:
    """Writes until nothing is taken any more for `quiet_s`; the bytes that were."""
    sent, chunk = 0, bytes(1 << 16)
    loop = asyncio.get_running_loop()
    last = loop.time()
    while loop.time() - last < quiet_s:
        try:
            sent += sock.send(chunk)
            last = loop.time()
        except BlockingIOError:
            await asyncio.sleep(0.002)
    return sent


Made = Callable[[], Link]
