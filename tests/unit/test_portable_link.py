"""A link: streams pass whole and apart from each other, and a peer that breaks the rules ends its link and nothing else."""

import asyncio
import random
import socket
from pathlib import Path

import msgspec
import pytest
from doubles.cluster import LOOPBACK, identity, port_of
from doubles.links import TO, End, Raw, fill, hostile, pair, read
from doubles.loop import in_loop, until
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.authority import Authority
from workers.framing import encode
from workers.network.portable.credit import Budget
from workers.network.portable.handshakes import Listener, serve
from workers.network.portable.legs import WRITE_HIGH, Leg
from workers.network.portable.streams import Full
from workers.network.portable.words import CREDIT, FIRST_WINDOW, MAX_DATA, MAX_STREAMS, MAX_WINDOW, Kind, Open, Reason
from workers.rpc.transport import HostPort

KERNEL = 1 << 20  # what two socket pairs and a connection may hold beside our windows


@in_loop
async def test_bytes_pass_whole_in_both_directions(tmp_path: Path) -> None:
    async with pair(tmp_path) as made:
        function, server = await made.stream()
        loop, sent = asyncio.get_running_loop(), bytes(range(256)) * 8192
        there, back, *_ = await asyncio.gather(
            read(server, len(sent)),
            read(function, len(sent)),
            loop.sock_sendall(function, sent),
            loop.sock_sendall(server, sent[::-1]),
        )
        assert (there, back) == (sent, sent[::-1])
        function.close()
        server.close()


@in_loop
async def test_many_streams_at_once_each_keep_their_bytes_at_their_own_pace(tmp_path: Path) -> None:
    async with pair(tmp_path, End(True, Budget(8 << 20)), End(False, Budget(8 << 20))) as made:
        chance, loop = random.Random(7), asyncio.get_running_loop()
        streams = [await made.stream() for _ in range(40)]

        async def carry(sender: socket.socket, receiver: socket.socket, content: bytes, slow: bool) -> None:
            async def send() -> None:
                at = 0
                while at < len(content):
                    step = chance.randrange(1, 60_000)
                    await loop.sock_sendall(sender, content[at : at + step])
                    at += step
                sender.shutdown(socket.SHUT_WR)

            async def receive() -> bytes:
                found = bytearray()
                while part := await loop.sock_recv(receiver, chance.randrange(1, 60_000)):
                    found += part
                    if slow:
                        await asyncio.sleep(0.001)
                return bytes(found)

            _, found = await asyncio.gather(send(), receive())
            assert found == content

        work = []
        for number, (function, server) in enumerate(streams):
            there, back = (chance.randbytes(chance.randrange(200_000)) for _ in range(2))
            work += [carry(function, server, there, number % 5 == 0), carry(server, function, back, number % 7 == 0)]
        await asyncio.gather(*work)
        await until(lambda: not made.link.carried and not made.far.links[0].carried)
        for one in streams:
            for sock in one:
                sock.close()
        await until(lambda: made.near.budget.held == made.far.budget.held == 0)


@in_loop
async def test_one_side_may_end_while_the_other_goes_on(tmp_path: Path) -> None:
    async with pair(tmp_path) as made:
        function, server = await made.stream()
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(function, b"question")
        function.shutdown(socket.SHUT_WR)
        assert await read(server, 100) == b"question"
        await loop.sock_sendall(server, b"answer")
        server.close()
        assert await read(function, 100) == b"answer"
        await until(lambda: not made.link.carried and not made.far.links[0].carried, "the stream is forgotten")
        await until(lambda: made.near.budget.held == made.far.budget.held == 0, "its windows are free")
        function.close()


@in_loop
async def test_a_stream_that_is_not_read_holds_up_no_other_and_stays_bounded(tmp_path: Path) -> None:
    async with pair(tmp_path) as made:
        slow, _unread = await made.stream()
        taken = await fill(slow)
        assert taken < FIRST_WINDOW + WRITE_HIGH + MAX_DATA + KERNEL
        function, server = await made.stream()
        await asyncio.get_running_loop().sock_sendall(function, b"x" * 300_000)
        assert len(await read(server, 300_000)) == 300_000
        for sock in (slow, function):
            sock.close()


@in_loop
async def test_all_windows_together_keep_to_the_budget(tmp_path: Path) -> None:
    budget = Budget(3 * FIRST_WINDOW)
    async with pair(tmp_path, End(True, budget)) as made:
        streams = [await made.stream() for _ in range(3)]
        with pytest.raises(Full):
            made.link.open(TO, lambda refused: None)
        for one in streams:
            for sock in one:
                sock.close()
        await until(lambda: budget.held == 0)
        function, _ = await made.stream()
        function.close()


@in_loop
async def test_a_link_carries_so_many_streams_and_no_more(tmp_path: Path) -> None:
    far = End(False)
    far.silent = True
    async with pair(tmp_path, far=far) as made:
        answers: list[Reason | None] = []
        for _ in range(MAX_STREAMS):
            made.link.open(TO, answers.append)
        with pytest.raises(Full):
            made.link.open(TO, answers.append)
        made.link.drop("lost")
        assert answers == [Reason("closing", "lost")] * MAX_STREAMS
        assert made.near.budget.held == 0


@in_loop
async def test_a_refused_stream_is_reset(tmp_path: Path) -> None:
    far = End(False)
    far.refuse = Reason("refused")
    async with pair(tmp_path, far=far) as made:
        function, _ = await made.stream()
        function.setblocking(False)
        assert not await read(function, 1)  # a unix socket knows no reset
        assert not made.link.carried
        function.close()


@in_loop
async def test_a_lost_link_resets_what_it_carries_and_says_so_once(tmp_path: Path) -> None:
    async with pair(tmp_path) as made:
        function, server = await made.stream()
        made.far.links[0].drop("killed")
        await until(lambda: made.near.lost)
        assert not await read(function, 1)
        assert len(made.near.lost) == len(made.far.lost) == 1
        await until(lambda: made.near.budget.held == 0)
        function.close()
        server.close()


@in_loop
async def test_a_silent_peer_is_suspected_and_what_waits_for_its_answer_is_given_up(tmp_path: Path) -> None:
    far = End(False)
    far.silent = True
    async with pair(tmp_path, far=far) as made:
        made.link.hurry(True)
        connection = made.far.links[0]._connection
        assert connection is not None
        connection.pause_reading()  # nothing is heard any more, the connection stands
        answers: list[Reason | None] = []
        made.link.open(TO, answers.append)
        await until(lambda: answers and made.link.suspect)
        assert made.link.up
        assert answers == [Reason("closing", "the proxy is silent")]
        connection.resume_reading()
        await until(lambda: not made.link.suspect, "it is trusted again")
        assert not made.near.lost


# -- hostile peers

BREAKS = {
    "no frame": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "a body over the limit": encode(Kind.DATA, 1, b"", b"")[:-4] + b"\xff\xff\xff\xff",
    "an unknown kind": encode(99, 1),
    "data of a stream that never was": encode(Kind.DATA, 7, b"", b"x"),
    "stream 0": encode(Kind.EOF, 0),
    "an answer nobody waits for": encode(Kind.ACCEPTED, 1),
    "credit without an amount": encode(Kind.CREDIT, 1, b"x"),
    "credit over any window": encode(Kind.CREDIT, 1, CREDIT.pack(2**32 - 1)),
    "no credit": encode(Kind.CREDIT, 1, CREDIT.pack(0)),
    "a datagram on a stream": encode(Kind.DATAGRAM, 1, b"", b"x"),
    "two ends": encode(Kind.EOF, 1) * 2,
    "data after the end": encode(Kind.EOF, 1) + encode(Kind.DATA, 1, b"", b"x"),
    "more than the credit": b"".join(encode(Kind.DATA, 1, b"", bytes(MAX_DATA)) for _ in range(1 + MAX_WINDOW // MAX_DATA)),
}


async def _at_proxy(folder: Path, far: End) -> tuple[Listener, Raw]:
    authority = Authority(folder / "authority")
    server = serve(far.make, HostPort(LOOPBACK, 0), identity(authority, folder, "vpc-proxy", "p1"))
    raw = await hostile(port_of(server), identity(authority, folder, "node", "n1"))
    await until(lambda: far.links and far.links[0].up)
    return server, raw


@pytest.mark.parametrize("what", BREAKS)
@in_loop
async def test_who_breaks_the_rules_is_cut_off(tmp_path: Path, what: str) -> None:
    far = End(False)
    server, raw = await _at_proxy(tmp_path, far)
    raw.say(Kind.OPEN, 1, msgspec.msgpack.encode(TO))
    await until(lambda: far.links[0].carried)
    raw.transport.write(BREAKS[what])
    await asyncio.wait_for(raw.closed, 30)
    assert "protocol error" in far.lost[0]
    await until(lambda: far.budget.held == 0)
    for sock in far.far:
        sock.close()
    server.close()


@in_loop
async def test_who_floods_and_never_reads_the_answers_is_cut_off(tmp_path: Path) -> None:
    far = End(False)
    server, raw = await _at_proxy(tmp_path, far)
    raw.deaf()
    pings = encode(Kind.PING, 0) * 50_000
    for _ in range(60):
        if raw.closed.done() or far.lost:
            break
        raw.transport.write(pings)
        await asyncio.sleep(0.01)
    await until(lambda: far.lost, limit_s=10)
    assert "does not read" in far.lost[0] or "reset" in far.lost[0].lower()
    raw.transport.abort()
    server.close()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 16), st.integers(0, 4), st.binary(max_size=12), st.binary(max_size=40)), max_size=30))
def test_whatever_comes_ends_at_most_its_own_link(tmp_path: Path, frames: list[tuple[int, int, bytes, bytes]]) -> None:
    @in_loop
    async def run() -> None:
        far = End(False)
        server, raw = await _at_proxy(tmp_path, far)
        raw.say(Kind.OPEN, 1, msgspec.msgpack.encode(TO))
        for kind, ident, meta, body in frames:
            if kind not in (Kind.HELLO, Kind.WELCOME, Kind.SPEC, Kind.CLOSING, Kind.OPEN):  # the owner's, see test_portable_proxy
                raw.say(kind, ident, meta, body)
        raw.transport.close()
        await until(lambda: far.lost)
        await until(lambda: not far.links[0].carried and far.budget.held == 0)
        for sock in far.far:
            sock.close()
        server.close()

    run()


@in_loop
async def test_a_function_that_begins_flow_after_flow_costs_nobody_the_link(tmp_path: Path) -> None:
    """As datagrams to ever new places do, while the proxy does not get on: they are lost, and nothing piles up."""
    async with pair(tmp_path) as made:
        connection = made.far.links[0]._connection
        assert connection is not None
        connection.pause_reading()
        lost = 0
        for number in range(100_000):
            try:
                made.link.open_flow(Open("udp", "x" * 500, 53), lambda _: None, lambda: None).end()
            except Full:
                lost += 1
            if number % 50 == 0:
                await asyncio.sleep(0)
            if lost > 1000:
                break
        assert not made.near.lost
        assert lost > 1000
        connection.resume_reading()
        await until(lambda: not made.link.congested, "it goes on")
        made.link.open_flow(TO, lambda _: None, lambda: None)


def test_a_leg_reads_no_more_than_its_way_takes() -> None:
    class Narrow:
        def __init__(self) -> None:
            self.left, self.got = 10, b""

        def room(self) -> int:
            return self.left

        def data(self, chunk: bytes) -> None:
            assert len(chunk) <= self.left
            self.left -= len(chunk)
            self.got += chunk

        def taken(self, amount: int) -> None: ...
        def eof(self) -> None: ...
        def gone(self) -> None: ...
        def closed(self) -> None: ...

    @in_loop
    async def run() -> None:
        function, mine = socket.socketpair()
        leg = Leg(mine)
        way = Narrow()
        leg.join(way)
        function.sendall(bytes(range(100)))
        await until(lambda: not way.left)
        await asyncio.sleep(0.02)
        assert way.got == bytes(range(10))
        way.left = 50
        leg.go_on()
        await until(lambda: not way.left)
        assert way.got == bytes(range(60))
        leg.reset()
        function.close()

    run()
