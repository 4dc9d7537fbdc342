"""A link's connection: bytes pass whole whoever is slow, and a handshake that fails, or never ends, ends alone."""

import asyncio
import contextlib
import random
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from doubles.cluster import LOOPBACK, identity, port_of
from doubles.links import hostile
from doubles.loop import in_loop, until

from orchestrator.authority import Authority
from workers.network.portable import handshakes
from workers.network.portable.handshakes import CONGESTED, Listener, connect, serve
from workers.network.portable.secured import Secured
from workers.rpc.transport import HostPort, Identity, NotTrusted

HOST = HostPort(LOOPBACK, 0)


class Ear:
    """A reader that keeps everything. `echo`: it says what it hears."""

    def __init__(self, echo: bool = False) -> None:
        self.connection: Secured | None = None
        self.got = bytearray()
        self.told: list[str] = []
        self.lost: list[Exception | None] = []
        self._echo = echo

    def connection_made(self, connection: Secured) -> None:
        self.connection = connection

    def data_received(self, data: bytes) -> None:
        self.got += data
        if self._echo and self.connection is not None:
            self.connection.write(data)

    def pause_writing(self) -> None:
        self.told.append("pause")

    def resume_writing(self) -> None:
        self.told.append("resume")

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.append(exc)

    def say(self, data: bytes) -> None:
        assert self.connection is not None
        self.connection.write(data)


class Place:
    """A listener, and who came."""

    def __init__(self, folder: Path, echo: bool = False) -> None:
        self.folder, self.authority = folder, Authority(folder / "authority")
        self.ears: list[Ear] = []
        self.server: Listener = serve(self._make, HOST, self.identity("vpc-proxy", "p1"))
        self.mine: list[Ear] = []
        self._echo = echo

    def _make(self) -> Ear:
        self.ears.append(Ear(self._echo))
        return self.ears[-1]

    def identity(self, role: str, name: str) -> Identity:
        return identity(self.authority, self.folder, role, name)

    async def dial(self, who: Identity | None = None) -> Ear:
        ear = Ear()
        self.mine.append(ear)
        await connect(lambda: ear, port_of(self.server), who or self.identity("node", "n1"))
        return ear

    async def both(self) -> tuple[Ear, Ear]:
        near = await self.dial()
        await until(lambda: self.ears and self.ears[-1].connection)
        return near, self.ears[-1]


@contextlib.asynccontextmanager
async def place(folder: Path, echo: bool = False) -> AsyncIterator[Place]:
    made = Place(folder, echo)
    try:
        yield made
    finally:
        made.server.close()
        for ear in (*made.ears, *made.mine):
            if ear.connection is not None:
                ear.connection.abort()


@in_loop
async def test_each_side_knows_the_other_and_what_is_said_comes_whole(tmp_path: Path) -> None:
    chance = random.Random(3)
    async with place(tmp_path, echo=True) as made:
        near, far = await made.both()
        assert near.connection is not None
        assert far.connection is not None
        assert (near.connection.peer.role, near.connection.peer.name) == ("vpc-proxy", "p1")
        assert (far.connection.peer.role, far.connection.peer.name) == ("node", "n1")
        said = bytearray()
        for _ in range(200):
            part = chance.randbytes(chance.choice((0, 1, 7, 16_383, 16_384, 16_385, 70_000)))
            said += part
            near.say(part)
            if chance.random() < 0.2:
                await asyncio.sleep(0)
        await until(lambda: len(near.got) >= len(said), "the echo is back")
        assert far.got == said
        assert near.got == said


@in_loop
async def test_who_writes_to_one_that_does_not_read_is_told_and_told_again_once_it_does(tmp_path: Path) -> None:
    async with place(tmp_path) as made:
        near, far = await made.both()
        assert near.connection is not None
        assert far.connection is not None
        far.connection.pause_reading()
        said = random.Random(4).randbytes(64 << 10)
        count = 0
        while not near.told:
            near.say(said)
            count += 1
            await asyncio.sleep(0)
            assert count < 1000
        assert near.connection.waiting > CONGESTED
        assert near.told == ["pause"]
        far.connection.resume_reading()
        await until(lambda: len(far.got) == count * len(said))
        assert far.got == said * count
        assert near.told == ["pause", "resume"]
        assert not near.connection.waiting


@in_loop
async def test_an_end_is_said_once_and_never_to_who_made_it(tmp_path: Path) -> None:
    async with place(tmp_path) as made:
        near, far = await made.both()
        assert near.connection is not None
        near.connection.abort()
        near.connection.abort()
        near.say(b"nobody hears this")
        await until(lambda: far.lost)
        far.say(b"nor this")
        await asyncio.sleep(0.02)
        assert (len(far.lost), near.lost, bytes(far.got)) == (1, [], b"")


@in_loop
async def test_asyncios_tls_is_understood_and_its_goodbye_too(tmp_path: Path) -> None:
    async with place(tmp_path, echo=True) as made:
        raw = await hostile(port_of(made.server), made.identity("node", "n1"))
        raw.transport.write(b"x" * 300_000)
        await until(lambda: len(raw.got) == 300_000)
        raw.transport.close()
        await until(lambda: made.ears[0].lost)
        assert made.ears[0].lost == [None]


@in_loop
async def test_who_breaks_tls_after_the_handshake_is_cut_off(tmp_path: Path) -> None:
    async with place(tmp_path) as made:
        near, far = await made.both()
        assert near.connection is not None
        near.connection._sock.send(b"\x17\x03\x03\x00\x20" + bytes(32))  # a record nobody encrypted
        await until(lambda: far.lost)
        assert isinstance(far.lost[0], ssl.SSLError)
        await until(lambda: near.lost, "the other side hears of it")


# -- handshakes


@in_loop
async def test_another_clusters_member_is_nobody_on_either_side(tmp_path: Path) -> None:
    async with place(tmp_path) as made:
        other = Authority(tmp_path / "other")
        with pytest.raises(ssl.SSLError):
            await made.dial(identity(other, tmp_path, "node", "n1"))
        trusting = identity(other, tmp_path, "node", "n2")
        trusting.client.load_verify_locations(cadata=made.authority.pem)  # it believes the proxy, which does not believe it
        ear = await made.dial(trusting)
        await until(lambda: ear.lost)
        assert isinstance(ear.lost[0], ssl.SSLError)
        assert not made.ears
        await made.both()


@in_loop
async def test_nobody_dials_without_a_certificate_and_nobody_listens(tmp_path: Path) -> None:
    async with place(tmp_path) as made:
        with pytest.raises(NotTrusted, match="has not joined"):
            await connect(Ear, port_of(made.server), None)
        with pytest.raises(NotTrusted, match="has not joined"):
            serve(Ear, HOST, None)


@pytest.mark.parametrize("words", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01", b""], ids=["no TLS", "half a record", "nothing"])
@in_loop
async def test_who_says_no_hello_is_cut_off_in_time_and_the_next_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: bytes
) -> None:
    monkeypatch.setattr(handshakes, "HANDSHAKE_TIMEOUT_S", 2.0)
    async with place(tmp_path) as made:
        reader, writer = await asyncio.open_connection(LOOPBACK, port_of(made.server).port)
        writer.write(words)
        with contextlib.suppress(ConnectionResetError):
            async with asyncio.timeout(30):
                while await reader.read(1000):  # an alert, perhaps
                    pass
        writer.close()
        assert not made.ears
        monkeypatch.setattr(handshakes, "HANDSHAKE_TIMEOUT_S", 30.0)  # the next one is not what this is about
        await made.both()


@in_loop
async def test_a_server_that_never_answers_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handshakes, "HANDSHAKE_TIMEOUT_S", 0.1)
    async with place(tmp_path) as made:
        with socket.create_server((LOOPBACK, 0)) as deaf:
            at = HostPort(LOOPBACK, deaf.getsockname()[1])
            with pytest.raises(TimeoutError, match="no TLS handshake"):
                await connect(Ear, at, made.identity("node", "n1"))
        with pytest.raises(ConnectionRefusedError):
            await connect(Ear, at, made.identity("node", "n1"))


@in_loop
async def test_many_that_never_shake_hands_keep_nobody_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handshakes, "UNDER_WAY", 4)
    monkeypatch.setattr(handshakes, "HANDSHAKE_TIMEOUT_S", 300.0)
    async with place(tmp_path) as made:
        silent = [await asyncio.open_connection(LOOPBACK, port_of(made.server).port) for _ in range(20)]
        await made.both()
        async with asyncio.timeout(30):
            for reader, _ in silent[:16]:  # the oldest had to go, far before their time is up
                with contextlib.suppress(ConnectionResetError):
                    assert await reader.read(1) == b""
        made.server.close()  # with the rest under way
        for reader, writer in silent:
            with contextlib.suppress(ConnectionResetError):
                assert await asyncio.wait_for(reader.read(1), 30) == b""
            writer.close()
