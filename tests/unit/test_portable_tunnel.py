"""A node's tunnel against proxies that are slow, silent, hostile, or come and go."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from doubles.cluster import LOOPBACK, identity, port_of
from doubles.links import TO, Raw, read
from doubles.loop import in_loop, until

from orchestrator.authority import Authority
from workers.framing import FrameParser
from workers.network.portable.credit import Budget
from workers.network.portable.legs import Leg
from workers.network.portable.tunnel import Tunnel
from workers.network.portable.words import CREDIT, MAX_DATA, MAX_WINDOW, PROTOCOL, Kind, Open, Reason, Welcome
from workers.networks import Proxy, VpcSpec
from workers.rpc.transport import HostPort, serve

RESOLVER_ASKED = Open("udp", "", 53)


class Puppet(Raw):
    """A proxy that does what the test says. `on_open`: called with each stream's id."""

    def __init__(self, house: "House") -> None:
        super().__init__()
        self._house = house
        self._parser = FrameParser()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._house.puppets.append(self)

    def data_received(self, data: bytes) -> None:
        for frame in self._parser.feed(data):
            self._house.heard.append((frame.kind, frame.id))
            if frame.kind == Kind.HELLO and self._house.welcoming:
                self.say(Kind.WELCOME, 0, msgspec.msgpack.encode(Welcome(PROTOCOL, self._house.generation, 10, 10)))
            elif frame.kind == Kind.OPEN:
                self._house.on_open(self, frame.id)
            elif frame.kind == Kind.PING and self._house.answering:
                self.say(Kind.PONG)


class House:
    """One proxy's address."""

    def __init__(self) -> None:
        self.puppets: list[Puppet] = []
        self.heard: list[tuple[int, int]] = []
        self.welcoming = self.answering = True
        self.generation = 1
        self.server: Any = None
        self.on_open = lambda puppet, ident: puppet.say(Kind.ACCEPTED, ident)

    def said(self, kind: Kind) -> list[int]:
        return [ident for heard, ident in self.heard if heard == kind]


class Town:
    def __init__(self, houses: list[House], tunnel: Tunnel, budget: Budget) -> None:
        self.houses, self.tunnel, self.budget = houses, tunnel, budget

    async def ready(self) -> None:
        await until(lambda: self.tunnel.state.ready, "the tunnel is ready")

    async def function(self) -> tuple[socket.socket, Leg]:
        mine, its = socket.socketpair()
        leg = Leg(its)
        mine.setblocking(False)
        return mine, leg


@contextlib.asynccontextmanager
async def town(folder: Path, *names: str, **fields: Any) -> AsyncIterator[Town]:
    authority, budget, houses, proxies = Authority(folder / "authority"), Budget(8 << 20), [], []
    for name in names:
        house = House()
        who = identity(authority, folder, "vpc-proxy", name)
        house.server = await serve(lambda house=house: Puppet(house), HostPort(LOOPBACK, 0), who)  # type: ignore[misc]
        houses.append(house)
        proxies.append(Proxy(name, str(port_of(house.server))))
    spec = VpcSpec("acme/main", "acme", 1, 1, ("10.0.0.0/16",), proxies=tuple(proxies), **fields)
    tunnel = Tunnel(spec, identity(authority, folder, "node", "n1"), budget, lambda: None)
    tunnel.hold(1)
    try:
        yield Town(houses, tunnel, budget)
    finally:
        await tunnel.close()
        for house in houses:
            house.server.close()
            for puppet in house.puppets:
                puppet.transport.abort()


@in_loop
async def test_it_is_ready_once_a_proxy_has_the_same_generation(tmp_path: Path) -> None:
    async with town(tmp_path, "p1", "p2") as made:
        await made.ready()
        made.tunnel.follow(msgspec.structs.replace(made.tunnel.spec, generation=2))
        assert "generation 1 of the Vpc still" in made.tunnel.state.reason
        await until(lambda: made.houses[1].puppets)
        made.houses[1].puppets[0].say(Kind.SPEC, 0, msgspec.msgpack.encode((2,)))
        await made.ready()
        assert "p2" in made.tunnel.state.reason
        assert len(made.houses[0].puppets) == 1, "a change of the Vpc dials nobody anew"


@in_loop
async def test_a_certificate_that_counts_no_more_ends_its_link_and_a_renewed_one_does_not(tmp_path: Path) -> None:
    async with town(tmp_path, "p1") as made:
        await made.ready()
        shown = made.tunnel._lines[0]._shown
        (proxy,) = made.tunnel.spec.proxies
        renewed = Proxy(proxy.name, proxy.address, "", "11" * 32, shown)
        made.tunnel.follow(msgspec.structs.replace(made.tunnel.spec, proxies=(renewed,)))
        await asyncio.sleep(0.05)
        assert len(made.houses[0].puppets) == 1
        revoked = Proxy(proxy.name, proxy.address, "", "11" * 32, "22" * 32)
        made.tunnel.follow(msgspec.structs.replace(made.tunnel.spec, proxies=(revoked,)))
        await until(lambda: not made.tunnel.state.ready)
        await until(lambda: "does not count any more" in made.tunnel.state.reason)


@in_loop
async def test_what_a_silent_proxy_was_asked_the_other_is_asked_and_nobody_notices(tmp_path: Path) -> None:
    async with town(tmp_path, "p1", "p2") as made:
        first, second = made.houses
        await made.ready()
        await until(lambda: second.puppets)
        first.answering = False
        first.on_open = lambda puppet, ident: None
        function, leg = await made.function()
        await until(lambda: made.tunnel._lines[1].well)
        made.tunnel.carry(leg, TO)
        await until(lambda: second.said(Kind.OPEN), "the other is asked")
        await asyncio.get_running_loop().sock_sendall(function, b"hello")
        await until(lambda: second.said(Kind.DATA))
        assert first.said(Kind.RESET) == first.said(Kind.OPEN)
        function.close()


@pytest.mark.parametrize("code", ["closing", "refused", "denied", "limit"])
@in_loop
async def test_a_proxy_that_closes_is_not_the_last_word_one_that_refuses_is(tmp_path: Path, code: str) -> None:
    async with town(tmp_path, "p1", "p2") as made:
        first, second = made.houses
        await made.ready()
        await until(lambda: made.tunnel._lines[0].well and made.tunnel._lines[1].well)
        first.on_open = lambda puppet, ident: puppet.say(Kind.REFUSED, ident, msgspec.msgpack.encode(Reason(code)))
        function, leg = await made.function()
        made.tunnel.carry(leg, TO)
        if code == "closing":
            await until(lambda: second.said(Kind.OPEN))
        else:
            assert await read(function, 1) == b""
            assert not second.said(Kind.OPEN)
        function.close()


@in_loop
async def test_nobody_there_ends_a_connection_at_once_and_the_dialling_goes_on_with_pauses(tmp_path: Path) -> None:
    async with town(tmp_path, "p1") as made:
        await made.ready()
        house = made.houses[0]
        house.welcoming = False
        for puppet in house.puppets:
            puppet.transport.abort()
        await until(lambda: not made.tunnel.state.ready)
        function, leg = await made.function()
        made.tunnel.carry(leg, TO)
        assert await read(function, 1) == b""
        assert made.tunnel.flow(RESOLVER_ASKED, lambda payload: None, lambda: None) is None
        function.close()
        house.welcoming = True
        for puppet in house.puppets[1:]:
            puppet.transport.abort()
        await until(lambda: made.tunnel.state.ready, "it is back", 10)
        assert len(house.puppets) < 10


def flood(puppet: Puppet, ident: int) -> None:
    puppet.say(Kind.ACCEPTED, ident)
    for _ in range(1 + 2 * MAX_WINDOW // MAX_DATA):
        puppet.say(Kind.DATA, ident, b"", bytes(MAX_DATA))


def overflow(puppet: Puppet, ident: int) -> None:
    puppet.say(Kind.ACCEPTED, ident)
    for _ in range(100):
        puppet.say(Kind.CREDIT, ident, CREDIT.pack(MAX_WINDOW))


HOSTILE = {
    "more data than credit": flood,
    "credit without end": overflow,
    "two answers": lambda puppet, ident: [puppet.say(Kind.ACCEPTED, ident) for _ in range(2)],
    "streams of its own": lambda puppet, ident: puppet.say(Kind.OPEN, ident + 1, msgspec.msgpack.encode(TO)),
    "a stream nobody opened": lambda puppet, ident: puppet.say(Kind.DATA, ident + 1, b"", b"x"),
    "data before the answer": lambda puppet, ident: puppet.say(Kind.DATA, ident, b"", b"x"),
    "an end before the answer": lambda puppet, ident: puppet.say(Kind.EOF, ident),
    "nonsense": lambda puppet, ident: puppet.transport.write(b"\xff" * 100),
    "a second welcome": lambda puppet, ident: puppet.say(Kind.WELCOME, 0, msgspec.msgpack.encode(Welcome(PROTOCOL, 9, 1, 1))),
    "a refusal that is none": lambda puppet, ident: puppet.say(Kind.REFUSED, ident, b"\xc1"),
}


@pytest.mark.parametrize("what", HOSTILE)
@in_loop
async def test_a_hostile_proxy_costs_its_own_link_and_a_bounded_window(tmp_path: Path, what: str) -> None:
    async with town(tmp_path, "p1") as made:
        await made.ready()
        house = made.houses[0]
        house.on_open = HOSTILE[what]  # type: ignore[assignment]
        function, leg = await made.function()  # which never reads
        made.tunnel.carry(leg, TO)
        await asyncio.wait_for(house.puppets[0].closed, 30)
        assert len(await read(function, 8 << 20)) <= MAX_WINDOW
        function.close()
        await until(lambda: made.budget.held == 0)


@in_loop
async def test_a_proxy_that_never_welcomes_or_names_another_protocol_is_not_ready(tmp_path: Path) -> None:
    async with town(tmp_path, "p1") as made:
        made.houses[0].welcoming = False
        await until(lambda: made.houses[0].said(Kind.HELLO))
        made.houses[0].puppets[0].say(Kind.WELCOME, 0, msgspec.msgpack.encode(Welcome(99, 1, 1, 1)))
        await until(lambda: "protocol 99" in made.tunnel.state.reason)
        assert not made.tunnel.state.ready
        await until(lambda: len(made.houses[0].said(Kind.HELLO)) > 1)
        made.houses[0].puppets[1].say(Kind.CLOSING, 0, msgspec.msgpack.encode(Reason("closing", "not you")))
        await until(lambda: "not you" in made.tunnel.state.reason)
