"""One connection between two platform processes, over a real socket: hello, questions, messages, and every way it can end."""

import asyncio
import contextlib
import gc
import stat
import tempfile
import weakref
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
from doubles.loop import in_loop, settle, until
from doubles.peers import hello_frame, welcome_frame
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from workers.framing import FrameParser, encode
from workers.rpc import connection as connections
from workers.rpc.connection import WRITE_LIMIT, Answerer, Connection, RpcError, dial, listen
from workers.rpc.messages import PROTOCOL, Drain, Hello, Revoke, Rpc, TriggerEvent, Triggers, Welcome

SECRET = "s3cret"
HELLO = Hello("planner", "p1", SECRET)
QUICK = (Phase.explicit, Phase.reuse, Phase.generate)  # a failing example here takes its time limit: it is not shrunk


class Ear:
    """An owner that keeps what it hears."""

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


@contextlib.asynccontextmanager
async def listening(path: Path, ear: Ear, answers: Mapping[str, Answerer] | None = None) -> AsyncIterator[None]:
    server = await listen(path, ear, SECRET, "n1", answers)
    try:
        yield
    finally:
        server.close()
        for one in ear.opened:
            one.close()
        await until(lambda: all(one.closed for one in ear.opened), "the server's connections are closed")


@contextlib.asynccontextmanager
async def raw(path: Path) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A peer that speaks bytes, not the protocol."""
    reader, writer = await asyncio.open_unix_connection(str(path))
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def hello(message: object) -> bytes:
    if isinstance(message, Hello):
        return hello_frame(message)
    return encode(Rpc.HELLO, 0, msgspec.msgpack.encode(message))


# -- hello


@in_loop
async def test_both_sides_learn_who_the_other_is(tmp_path: Path) -> None:
    ear, own = Ear(), Ear()
    async with listening(tmp_path / "s", ear):
        connection = await dial(tmp_path / "s", own, Hello("planner", "p1", SECRET, epoch=7))
        await until(lambda: ear.opened)
        assert connection.welcome is not None
        assert connection.welcome.name == "n1"
        assert (ear.opened[0].peer.role, ear.opened[0].peer.name, ear.opened[0].peer.epoch) == ("planner", "p1", 7)
        connection.close()
        await until(lambda: ear.losses and own.losses)
    assert len(ear.losses) == len(own.losses) == 1


@in_loop
async def test_a_wrong_secret_is_turned_away_and_its_owner_never_hears_of_it(tmp_path: Path) -> None:
    ear, own = Ear(), Ear()
    async with listening(tmp_path / "s", ear):
        with pytest.raises(RpcError) as refused:
            await dial(tmp_path / "s", own, Hello("planner", "p1", "guess"))
    assert SECRET not in str(refused.value)
    assert ear.opened == ear.losses == own.losses == []


@pytest.mark.parametrize(
    "first",
    [
        hello(Hello("planner", "p1", SECRET, protocol=PROTOCOL + 1)),
        encode(Rpc.INVOKE, 1, b"\x90"),
        encode(Rpc.HELLO, 0),
        hello(["planner"]),
        hello({"role": "planner"}),
        encode(Rpc.SUBSCRIBE, 0),
        encode(Rpc.WELCOME, 0, msgspec.msgpack.encode(Welcome("x"))),
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
    ids=["protocol", "no-hello", "empty", "too-short", "map", "subscribe", "welcome", "http"],
)
@in_loop
async def test_anything_but_a_good_hello_closes_the_connection(tmp_path: Path, first: bytes) -> None:
    ear = Ear()
    async with listening(tmp_path / "s", ear), raw(tmp_path / "s") as (reader, writer):
        writer.write(first)
        with contextlib.suppress(ConnectionResetError):
            assert await asyncio.wait_for(reader.read(), 30) == b""
    assert ear.opened == ear.messages == ear.losses == []


@in_loop
async def test_who_says_nothing_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HELLO_TIMEOUT_S", 0.02)
    async with listening(tmp_path / "s", Ear()), raw(tmp_path / "s") as (reader, _):
        with contextlib.suppress(ConnectionResetError):
            assert await asyncio.wait_for(reader.read(), 30) == b""


@in_loop
async def test_a_listener_that_never_welcomes_is_given_up(tmp_path: Path) -> None:
    ends: list[asyncio.StreamWriter] = []
    server = await asyncio.start_unix_server(lambda _, writer: ends.append(writer), str(tmp_path / "s"))
    own = Ear()
    with pytest.raises(RpcError, match="timed out"):
        await dial(tmp_path / "s", own, HELLO, timeout_s=0.05)
    ends[0].write(encode(Rpc.WELCOME, 0, msgspec.msgpack.encode(Welcome("late"))))  # it must not come to life now
    await settle(20)
    assert own.losses == own.messages == []
    ends[0].close()
    server.close()


@in_loop
async def test_nobody_there_says_so_in_words(tmp_path: Path) -> None:
    with pytest.raises(RpcError, match=r"cannot reach nobody\.sock: .*No such file"):
        await dial(tmp_path / "nobody.sock", Ear(), HELLO)


@in_loop
async def test_a_peer_lost_right_after_its_welcome_is_an_error_of_the_dial(tmp_path: Path) -> None:
    """Otherwise its owner would wait for ever to hear that it is gone."""

    async def welcome(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await welcome_frame(reader, SECRET, "brief") + b"\xff" * 16)
        writer.close()

    server = await asyncio.start_unix_server(welcome, str(tmp_path / "s"))
    own = Ear()
    with pytest.raises(RpcError, match="right after its welcome"):
        await dial(tmp_path / "s", own, HELLO)
    assert own.losses == []
    server.close()


@in_loop
async def test_the_socket_is_this_users_only_and_replaces_a_dead_one(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_text("left behind")
    async with listening(path, Ear()):
        mode = path.stat().st_mode
        assert stat.S_ISSOCK(mode)
        assert stat.S_IMODE(mode) == 0o600


@pytest.mark.needs_root
@in_loop
async def test_a_process_of_another_user_is_turned_away_even_when_it_can_connect() -> None:
    script = (
        "import socket,sys; s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.settimeout(5)\n"
        "try: s.sendall(bytes.fromhex(sys.argv[2])); sys.exit(len(s.recv(1)))\n"
        "except ConnectionError: sys.exit(0)"
    )
    with tempfile.TemporaryDirectory() as folder:
        path, ear = Path(folder) / "s", Ear()
        async with listening(path, ear):
            Path(folder).chmod(0o711)
            path.chmod(0o666)
            process = await asyncio.create_subprocess_exec(
                *("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "/usr/bin/python3", "-c", script),
                *(str(path), hello(HELLO).hex()),
            )
            assert await asyncio.wait_for(process.wait(), 10) == 0
        assert ear.opened == []


@in_loop
async def test_a_connection_that_is_gone_is_kept_by_nobody(tmp_path: Path) -> None:
    """Neither its hello timer nor a question that ran out of time keeps it alive."""
    gone: list[weakref.ref[Connection]] = []

    async def never(args: Mapping[str, Any]) -> object:
        await asyncio.Event().wait()

    async with listening(tmp_path / "s", Ear(), {"never": never}):
        connection = await dial(tmp_path / "s", Ear(), HELLO)
        with pytest.raises(TimeoutError):
            await connection.ask("never", timeout_s=0.01)
        gone.append(weakref.ref(connection))
        connection.close()
        del connection
    for _ in range(3):
        with contextlib.suppress(RpcError):
            await dial(tmp_path / "nobody", Ear(), HELLO)
    await settle()
    gc.collect()
    assert [one() for one in gone] == [None]
    assert not [one for one in gc.get_objects() if isinstance(one, Connection) and not one.closed]


# -- messages


@in_loop
async def test_messages_and_bodies_arrive_in_order(tmp_path: Path) -> None:
    ear, own = Ear(), Ear()
    async with listening(tmp_path / "s", ear):
        connection = await dial(tmp_path / "s", own, HELLO)
        for number in range(100):
            connection.send(Rpc.DRAIN, number, Drain(f"t/f:{number}"), b"x" * number)
        await until(lambda: len(ear.messages) == 100)
        assert ear.messages == [(Rpc.DRAIN, number, Drain(f"t/f:{number}"), b"x" * number) for number in range(100)]
        ear.opened[0].send(Rpc.TRIGGERS, 0, Triggers([TriggerEvent("t/f:1", "tr", "in", "", 1.0)]))
        await until(lambda: own.messages)
        assert own.messages[0][2].events[0].version == "t/f:1"
        connection.close()


@in_loop
async def test_fields_a_newer_peer_adds_are_ignored_and_its_new_kinds_too(tmp_path: Path) -> None:
    ear = Ear()
    async with listening(tmp_path / "s", ear), raw(tmp_path / "s") as (_, writer):
        writer.write(hello(HELLO))
        writer.write(encode(Rpc.REVOKE, 0, msgspec.msgpack.encode([["d1"], "why", 3, "new", True, {"more": 1}])))
        writer.write(encode(200, 9, b"\xc1 not even msgpack", b"?"))
        await until(lambda: len(ear.messages) == 2)
        assert ear.messages[0][2] == Revoke(["d1"], "why", 3, "new", True)
        assert ear.messages[1] == (200, 9, None, b"?")


@pytest.mark.parametrize(
    "broken",
    [
        encode(Rpc.INVOKE, 1, b"\xc1"),
        encode(Rpc.INVOKE, 1),
        encode(Rpc.PREPARE, 0, msgspec.msgpack.encode([[["d", 7]]])),
        encode(Rpc.ASK, 1, b""),
        b"\x00\x00\xff\xff" + bytes(12),
    ],
    ids=["not-msgpack", "no-message", "wrong-type", "empty-ask", "frame"],
)
@in_loop
async def test_a_broken_message_ends_the_connection_and_the_owner_hears_why(tmp_path: Path, broken: bytes) -> None:
    ear = Ear()
    async with listening(tmp_path / "s", ear), raw(tmp_path / "s") as (_, writer):
        writer.write(hello(HELLO) + broken + encode(Rpc.DRAIN, 0, msgspec.msgpack.encode(["after"])))
        await until(lambda: ear.losses)
    assert "protocol error" in ear.losses[0]
    assert ear.messages == []
    assert len(ear.losses) == 1


@settings(max_examples=30, deadline=None, phases=QUICK, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(garbage=st.binary(min_size=1, max_size=300))
def test_garbage_after_the_hello_hurts_only_its_own_connection(tmp_path: Path, garbage: bytes) -> None:
    @in_loop
    async def body() -> None:
        ear = Ear()
        async with listening(tmp_path / "s", ear):
            good = await dial(tmp_path / "s", Ear(), HELLO)
            async with raw(tmp_path / "s") as (_, writer):
                writer.write(hello(HELLO) + garbage)
                with contextlib.suppress(OSError):
                    await writer.drain()
            await until(lambda: len(ear.losses) == 1)
            assert not good.closed
            good.close()

    body()


@in_loop
async def test_sending_on_a_lost_connection_does_nothing(tmp_path: Path) -> None:
    ear, own = Ear(), Ear()
    async with listening(tmp_path / "s", ear):
        connection = await dial(tmp_path / "s", own, HELLO)
        await until(lambda: ear.opened)
        ear.opened[0].close()
        await until(lambda: own.losses)
        connection.send(Rpc.DRAIN, 1, Drain("t/f:1"))
        with pytest.raises(RpcError, match="closed"):
            await connection.ask("anything")


@in_loop
async def test_a_peer_that_does_not_read_shows_as_congested_until_it_does(tmp_path: Path) -> None:
    reading = asyncio.Event()
    taken = 0

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal taken
        writer.write(await welcome_frame(reader, SECRET, "slow"))
        await reading.wait()
        while chunk := await reader.read(1 << 20):
            taken += len(chunk)
        writer.close()

    server = await asyncio.start_unix_server(slow, str(tmp_path / "s"))
    connection = await dial(tmp_path / "s", Ear(), HELLO)
    try:
        assert not connection.congested
        for _ in range(10):
            connection.send(Rpc.DRAIN, 0, Drain("t/f:1"), bytes(1 << 20))
        await settle()
        assert connection.congested
        reading.set()
        await until(lambda: not connection.congested)
        connection.close()
        await until(lambda: taken > WRITE_LIMIT)
    finally:
        reading.set()
        connection.close()
        server.close()


# -- questions


async def _double(args: Mapping[str, Any]) -> object:
    return {"twice": args["number"] * 2}


async def _raw_json(args: Mapping[str, Any]) -> object:
    return b'{"as":"it is"}'


async def _refuse(args: Mapping[str, Any]) -> object:
    raise RpcError("no such thing", 404)


async def _broken(args: Mapping[str, Any]) -> object:
    raise ZeroDivisionError("a fault of ours, with a secret in it")


async def _unsayable(args: Mapping[str, Any]) -> object:
    return object()


async def _slow_behind(args: Mapping[str, Any]) -> object:
    raise TimeoutError


async def _bad_bytes(args: Mapping[str, Any]) -> object:
    return msgspec.msgpack.decode(b"\xc1")


ANSWERS = {
    "double": _double,
    "raw": _raw_json,
    "refuse": _refuse,
    "broken": _broken,
    "unsayable": _unsayable,
    "slow-behind": _slow_behind,
    "bad-bytes": _bad_bytes,
}


@in_loop
async def test_questions_are_answered_in_both_directions(tmp_path: Path) -> None:
    ear = Ear()
    async with listening(tmp_path / "s", ear, ANSWERS):
        connection = await dial(tmp_path / "s", Ear(), HELLO, {"double": _double})
        assert await connection.ask("double", number=21) == {"twice": 42}
        assert await connection.ask_raw("raw") == b'{"as":"it is"}'
        assert await ear.opened[0].ask("double", number=4) == {"twice": 8}
        connection.close()


@pytest.mark.parametrize(
    ("what", "status"),
    [
        ("nothing-known", 404),
        ("refuse", 404),
        ("double", 400),
        ("broken", 500),
        ("unsayable", 400),
        ("slow-behind", 504),
        ("bad-bytes", 400),
    ],
)
@in_loop
async def test_every_question_gets_an_answer_whatever_happens_to_the_answerer(tmp_path: Path, what: str, status: int) -> None:
    async with listening(tmp_path / "s", Ear(), ANSWERS):
        connection = await dial(tmp_path / "s", Ear(), HELLO)
        with pytest.raises(RpcError) as refused:
            await connection.ask(what)
        assert refused.value.status == status
        assert "a secret" not in str(refused.value)
        assert await connection.ask("double", number=1) == {"twice": 2}
        connection.close()


@in_loop
async def test_a_late_answer_is_for_nobody_and_the_connection_goes_on(tmp_path: Path) -> None:
    release = asyncio.Event()

    async def slow(args: Mapping[str, Any]) -> object:
        await release.wait()
        return "late"

    async with listening(tmp_path / "s", Ear(), {**ANSWERS, "slow": slow}):
        connection = await dial(tmp_path / "s", Ear(), HELLO)
        with pytest.raises(TimeoutError):
            await connection.ask("slow", timeout_s=0.01)
        release.set()
        assert await connection.ask("double", number=1) == {"twice": 2}
        connection.close()


@in_loop
async def test_answers_find_their_questions_in_any_order(tmp_path: Path) -> None:
    release = {number: asyncio.Event() for number in range(10)}

    async def one(args: Mapping[str, Any]) -> object:
        await release[args["number"]].wait()
        return args["number"]

    async with listening(tmp_path / "s", Ear(), {"one": one}):
        connection = await dial(tmp_path / "s", Ear(), HELLO)
        asked = [asyncio.ensure_future(connection.ask("one", number=number)) for number in range(10)]
        await settle()
        for number in (7, 0, 9, 3, 1, 2, 8, 6, 5, 4):
            release[number].set()
            assert await asked[number] == number
        connection.close()


@pytest.mark.parametrize("side", ["listener", "dialler"])
@in_loop
async def test_a_peer_that_dies_while_asked_ends_the_question_and_its_answering(tmp_path: Path, side: str) -> None:
    began, cancelled = asyncio.Event(), asyncio.Event()

    async def never(args: Mapping[str, Any]) -> object:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    ear, own = Ear(), Ear()
    async with listening(tmp_path / "s", ear, {"never": never}):
        connection = await dial(tmp_path / "s", own, HELLO)
        asking = asyncio.ensure_future(connection.ask("never"))
        await asyncio.wait_for(began.wait(), 30)
        (ear.opened[0] if side == "listener" else connection).close()
        with pytest.raises(RpcError):
            await asking
        await asyncio.wait_for(cancelled.wait(), 30)
        await until(lambda: own.losses and ear.losses)


@in_loop
async def test_more_questions_than_the_bound_are_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MAX_ANSWERS", 3)
    release = asyncio.Event()

    async def slow(args: Mapping[str, Any]) -> object:
        await release.wait()
        return "done"

    async with listening(tmp_path / "s", Ear(), {"slow": slow}):
        connection = await dial(tmp_path / "s", Ear(), HELLO)
        asked = [asyncio.ensure_future(connection.ask("slow")) for _ in range(4)]
        with pytest.raises(RpcError) as refused:
            await asked[3]
        assert refused.value.status == 429
        release.set()
        assert await asyncio.gather(*asked[:3]) == ["done"] * 3
        connection.close()


# -- messages themselves


def test_every_message_travels_as_an_array_and_takes_more_fields_than_it_knows() -> None:
    """An older peer must understand a newer one: arrays, new fields at the end."""
    from workers.rpc.messages import MESSAGES
    from workers.versions import VersionSpec

    for message in set(MESSAGES.values()) - {VersionSpec}:
        assert message.__struct_config__.array_like, message
        assert not message.__struct_config__.forbid_unknown_fields, message


def test_kinds_are_distinct_and_fit_the_header() -> None:
    assert len({int(kind) for kind in Rpc}) == len(list(Rpc))
    assert all(0 < kind < 256 for kind in Rpc)
    frame = next(iter(FrameParser().feed(encode(Rpc.REFUSED, 1))))
    assert frame.kind == Rpc.REFUSED
