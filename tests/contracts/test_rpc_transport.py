"""The same promises over a unix socket and over mutual TLS, and what hostile peers get: nothing."""

import asyncio
import contextlib
import hashlib
import os
import socket
import ssl
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from doubles.cluster import LOOPBACK, identity, port_of
from doubles.loop import in_loop, until
from doubles.peers import hello_frame

from orchestrator.authority import Authority
from workers.rpc import connection as connections
from workers.rpc import transport
from workers.rpc.connection import Answerer, Connection, Listening, RpcError, dial, listen
from workers.rpc.messages import Drain, Hello, Rpc
from workers.rpc.transport import Address, HostPort, Identity, Peer, parse_address

SECRET = "s3cret"
HELLO = Hello("gateway", "g1", SECRET)
NODE = Peer("node", "n1")


class Ear:
    def __init__(self) -> None:
        self.opened: list[Connection] = []
        self.messages: list[tuple[int, int, Any, bytes]] = []
        self.losses: list[str] = []

    def on_open(self, connection: Connection) -> None:
        self.opened.append(connection)

    def on_lost(self, connection: Connection, why: str) -> None:
        self.losses.append(why)

    def on_message(self, connection: Connection, kind: int, ident: int, message: Any, body: bytes) -> None:
        self.messages.append((kind, ident, message, body))


class Side:
    """Both ends' identities over one wire, None on a unix socket."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind, self.folder = kind, folder
        self.listener: Identity | None = None
        self.dialler: Identity | None = None
        if kind == "tls":
            self.authority = Authority(folder / "authority")
            self.listener = identity(self.authority, folder, "node", "n1")
            self.dialler = identity(self.authority, folder, "gateway", "g1")

    @contextlib.asynccontextmanager
    async def listening(
        self, ear: Ear, answers: Mapping[str, Answerer] | None = None, admits: Callable[[Peer], str] = lambda peer: ""
    ) -> AsyncIterator[Address]:
        at: Address = HostPort(LOOPBACK, 0) if self.kind == "tls" else self.folder / "s"
        told = Listening("n1", "node", lambda: 7, admits)
        server = await listen(at, ear, SECRET, told, answers, self.listener)
        try:
            yield port_of(server) if self.kind == "tls" else at
        finally:
            server.close()
            for one in ear.opened:
                one.close()
            await until(lambda: all(one.closed for one in ear.opened), "the server's connections are closed")

    async def dial(self, at: Address, own: Ear, hello: Hello = HELLO, **more: Any) -> Connection:
        return await dial(
            at, own, hello, identity=more.pop("identity", self.dialler), expected=more.pop("expected", NODE), **more
        )


@pytest.fixture(params=["unix", "tls"])
def side(request: pytest.FixtureRequest, tmp_path: Path) -> Side:
    return Side(request.param, tmp_path)


@pytest.fixture
def secured(tmp_path: Path) -> Side:
    return Side("tls", tmp_path)


@in_loop
async def test_hello_and_welcome(side: Side) -> None:
    ear, own = Ear(), Ear()
    async with side.listening(ear) as at:
        connection = await side.dial(at, own)
        await until(lambda: ear.opened)
        assert connection.welcome is not None
        assert (connection.welcome.name, connection.welcome.role, connection.welcome.epoch) == ("n1", "node", 7)
        assert (ear.opened[0].peer.role, ear.opened[0].peer.name) == ("gateway", "g1")
        connection.close()
        await until(lambda: ear.losses and own.losses)


@in_loop
async def test_frames_and_questions_go_both_ways_whole_and_in_order(side: Side) -> None:
    async def double(args: Mapping[str, Any]) -> object:
        return args["n"] * 2

    ear, own = Ear(), Ear()
    async with side.listening(ear, {"double": double}) as at:
        connection = await side.dial(at, own)
        bodies = [os.urandom(size) for size in (0, 1, 70_000, 4 << 20, 3)]
        for number, body in enumerate(bodies):
            connection.send(Rpc.DRAIN, number, Drain("t/f:1"), body)
        assert await connection.ask("double", n=21) == 42
        await until(lambda: len(ear.messages) == len(bodies))
        assert [(ident, hashlib.sha256(body).digest()) for _, ident, _, body in ear.messages] == [
            (number, hashlib.sha256(body).digest()) for number, body in enumerate(bodies)
        ]
        ear.opened[0].send(Rpc.DRAIN, 9, Drain("t/f:2"), bodies[3])
        await until(lambda: own.messages)
        assert own.messages[0][3] == bodies[3]
        connection.close()


@in_loop
async def test_a_wrong_secret_opens_nothing(side: Side) -> None:
    ear, own = Ear(), Ear()
    async with side.listening(ear) as at:
        with pytest.raises(RpcError):
            await side.dial(at, own, Hello("gateway", "g1", "guess"))
    assert ear.opened == ear.losses == own.losses == []


@in_loop
async def test_a_listener_without_the_secret_is_refused_and_never_sees_it(side: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = bytearray()
    received = Connection.data_received

    def keeping(self: Connection, data: bytes) -> None:
        seen.extend(data)
        received(self, data)

    monkeypatch.setattr(Connection, "data_received", keeping)
    monkeypatch.setattr(Connection, "_check_proof", lambda self, what, shown, nonce: None)  # it lets everybody in ...
    async with side.listening(Ear()) as at:
        monkeypatch.undo()
        monkeypatch.setattr(Connection, "data_received", keeping)
        honest = Connection._check_proof
        monkeypatch.setattr(
            Connection, "_check_proof", lambda self, what, *rest: honest(self, what, *rest) if what == "welcome" else None
        )
        with pytest.raises(RpcError, match="wrong cluster key"):  # ... but cannot prove that it has what we have
            await side.dial(at, Ear(), Hello("gateway", "g1", "another cluster's secret"))
    assert b"another cluster's secret" not in seen
    assert seen


@in_loop
async def test_nobody_listens(side: Side) -> None:
    async with side.listening(Ear()) as at:
        pass
    if isinstance(at, Path):
        at.unlink(missing_ok=True)
    with pytest.raises(RpcError, match="cannot reach"):
        await side.dial(at, Ear())


@in_loop
async def test_a_listener_may_refuse_who_is_who_they_say_they_are(side: Side) -> None:
    ear = Ear()
    async with side.listening(ear, admits=lambda peer: "" if peer.role == "planner" else "no gateways here") as at:
        with pytest.raises(RpcError):
            await side.dial(at, Ear())
    assert ear.opened == []


# -- TLS: who is turned away


@in_loop
async def test_no_certificate_no_connection(secured: Side) -> None:
    ear = Ear()
    async with secured.listening(ear) as at:
        assert isinstance(at, HostPort)
        with pytest.raises(RpcError, match="has not joined"):
            await dial(at, Ear(), HELLO)
        anonymous = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        anonymous.check_hostname, anonymous.verify_mode = False, ssl.CERT_NONE
        await _rejected(at, anonymous)
    assert ear.opened == []


async def _rejected(at: HostPort, context: ssl.SSLContext) -> None:
    """A good hello over this TLS gets no answer."""
    try:
        reader, writer = await asyncio.open_connection(at.host, at.port, ssl=context)
        writer.write(hello_frame(HELLO))
        assert await asyncio.wait_for(reader.read(), 30) == b""
        writer.close()
    except (OSError, ssl.SSLError):
        pass


@in_loop
async def test_another_authoritys_certificate_is_no_certificate(secured: Side, tmp_path: Path) -> None:
    ear = Ear()
    foreign = identity(Authority(tmp_path / "foreign"), tmp_path, "gateway", "g1")
    async with secured.listening(ear) as at:
        assert isinstance(at, HostPort)
        with pytest.raises(RpcError, match=r"CERTIFICATE_VERIFY_FAILED|certificate verify failed"):
            await secured.dial(at, Ear(), identity=foreign)  # it does not trust the listener either
        foreign.client.verify_mode = ssl.CERT_NONE
        await _rejected(at, foreign.client)
    assert ear.opened == []


@pytest.mark.parametrize("who", ["listener", "dialler"])
@in_loop
async def test_an_expired_certificate_is_refused(secured: Side, tmp_path: Path, who: str) -> None:
    ear = Ear()
    past = time.time() - 10 * 86400
    if who == "listener":
        secured.listener = identity(secured.authority, tmp_path, "node", "n1", past, days=1)
    else:
        secured.dialler = identity(secured.authority, tmp_path, "gateway", "g1", past, days=1)
    async with secured.listening(ear) as at:
        with pytest.raises(RpcError):
            await secured.dial(at, Ear())
    assert ear.opened == []


@pytest.mark.parametrize(
    "wanted", [Peer("node", "n2"), Peer("planner", "n1"), Peer("node", "n1", "0" * 64)], ids=["name", "role", "removed"]
)
@in_loop
async def test_who_dials_finds_whom_it_wanted_or_says_nothing(secured: Side, wanted: Peer) -> None:
    ear = Ear()
    async with secured.listening(ear) as at:
        with pytest.raises(RpcError, match=r"not (node|planner)|does not count"):
            await secured.dial(at, Ear(), expected=wanted)
    assert ear.opened == []


@pytest.mark.parametrize("claim", [Hello("planner", "g1", SECRET), Hello("gateway", "g2", SECRET)], ids=["role", "name"])
@in_loop
async def test_nobody_says_to_be_another_than_the_certificate_names(secured: Side, claim: Hello) -> None:
    ear = Ear()
    async with secured.listening(ear) as at:
        with pytest.raises(RpcError):
            await secured.dial(at, Ear(), claim)
    assert ear.opened == []


@in_loop
async def test_plaintext_to_the_tls_port_gets_nothing_and_others_go_on(secured: Side) -> None:
    ear = Ear()
    async with secured.listening(ear) as at:
        assert isinstance(at, HostPort)
        for first in (hello_frame(HELLO), b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", os.urandom(300)):
            reader, writer = await asyncio.open_connection(at.host, at.port)
            writer.write(first)
            with contextlib.suppress(ConnectionError):
                assert hello_frame(HELLO)[:4] not in await asyncio.wait_for(reader.read(), 30)
            writer.close()
        good = await secured.dial(at, Ear())
        good.close()
        await until(lambda: len(ear.losses) == 1)
    assert len(ear.opened) == 1


@in_loop
async def test_who_connects_and_says_nothing_is_not_waited_for(secured: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "HANDSHAKE_TIMEOUT_S", 0.2)
    async with secured.listening(Ear()) as at:
        assert isinstance(at, HostPort)
        reader, writer = await asyncio.open_connection(at.host, at.port)
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(), 30) == b""
        writer.close()


@in_loop
async def test_a_handshake_without_a_hello_is_not_waited_for(secured: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HELLO_TIMEOUT_S", 0.2)
    async with secured.listening(Ear()) as at:
        assert isinstance(at, HostPort)
        assert secured.dialler is not None
        reader, writer = await asyncio.open_connection(at.host, at.port, ssl=secured.dialler.client)
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(), 30) == b""
        writer.close()


@in_loop
async def test_a_listener_that_never_speaks_is_given_up(secured: Side) -> None:
    mute = socket.create_server((LOOPBACK, 0))
    try:
        with pytest.raises(RpcError, match="timed out"):
            await secured.dial(HostPort(LOOPBACK, mute.getsockname()[1]), Ear(), timeout_s=0.2)
    finally:
        mute.close()


@in_loop
async def test_connections_between_hosts_notice_a_dead_host(secured: Side) -> None:
    ear = Ear()
    async with secured.listening(ear) as at:
        connection = await secured.dial(at, Ear())
        await until(lambda: ear.opened)
        for one in (connection, ear.opened[0]):
            sock = one._transport.get_extra_info("socket")  # type: ignore[union-attr]
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == transport.USER_TIMEOUT_MS
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        connection.close()


# -- unix sockets: the other side's user


@pytest.mark.needs_root
@in_loop
async def test_a_listener_of_another_user_is_told_nothing() -> None:
    script = (
        "import os,socket,sys; s=socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); os.chmod(sys.argv[1], 0o666); s.listen()\n"
        "print('up', flush=True); c,_=s.accept(); c.settimeout(5)\n"
        "try: sys.exit(len(c.recv(1)))\n"
        "except OSError: sys.exit(0)"
    )
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        path = Path(folder) / "s"
        process = await asyncio.create_subprocess_exec(
            *("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "/usr/bin/python3", "-c", script, str(path)),
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        assert await asyncio.wait_for(process.stdout.readline(), 10) == b"up\n"
        with pytest.raises(RpcError, match="another user"):
            await dial(path, Ear(), HELLO)
        assert await asyncio.wait_for(process.wait(), 10) == 0


# -- addresses


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("/run/x/node.sock", Path("/run/x/node.sock")),
        ("10.0.0.2:8703", HostPort("10.0.0.2", 8703)),
        ("[fd00::2]:8703", HostPort("fd00::2", 8703)),
        ("host-a:0", HostPort("host-a", 0)),
    ],
)
def test_addresses_read_as_they_are_written(text: str, address: Address) -> None:
    assert parse_address(text) == address
    assert parse_address(str(address)) == address


@pytest.mark.parametrize("text", ["", "host", ":8703", "host:", "host:99999", "host:8x", "fd00::2:8703", "host:-1", "host:٣"])
def test_what_is_no_address_says_so(text: str) -> None:
    with pytest.raises(ValueError, match="no address"):
        parse_address(text)
