"""Who has the cluster key and says anything at all on the RPC socket: its own connection ends at most, and nothing grows."""

import asyncio
import itertools
import tempfile
from pathlib import Path

import msgspec
from doubles.loop import in_loop, until
from doubles.nodes import SECRET, running_node, spec
from doubles.profiles import dear
from hypothesis import given
from hypothesis import strategies as st

from workers.framing import HEADER, encode
from workers.rpc.messages import Rpc

ECHO = spec("echo")
odd_numbers = st.sampled_from([0, 1, -1, 0.0, 0.001, float("nan"), float("inf"), float("-inf"), 1e300, 2**31, 2**63, -(2**63)])
odd_texts = st.sampled_from(["", "acme/echo:1", "acme/echo:2", "acme", "/", ":", "ready", "code", "\0", "x" * 5000])
fields = st.recursive(
    odd_numbers | odd_texts | st.none() | st.booleans() | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["tenant", "function", "names", "limit"]), inner),
    max_leaves=10,
)
times = st.sampled_from([0.0, 0.001, 1.0, -1.0, float("nan"), float("inf"), float("-inf"), 1e300, 2**63])
epochs = st.sampled_from([0, 0, 0, -1, 5, 2**63])
versions = st.sampled_from([ECHO.version, ECHO.version, "acme/echo:2", "", "/", ":", "\0"])
decisions = st.sampled_from(["d1", "d2", "", "x" * 5000])
invocations = st.tuples(versions, st.just("1"), st.just("t"), st.just(""), st.integers(-1, 20), times, odd_texts)
items = st.tuples(decisions, versions, st.sampled_from(["ready", "code", "?"]), times, times, times)
SHAPES = {
    Rpc.DEFINE: st.just(msgspec.to_builtins(ECHO)),
    Rpc.INVOKE: invocations,
    Rpc.PREPARE: st.tuples(st.lists(items, max_size=4), epochs),
    Rpc.REVOKE: st.tuples(st.lists(decisions, max_size=3), odd_texts, epochs),
    Rpc.DRAIN: st.tuples(versions),
    Rpc.KEEP: st.tuples(
        st.sampled_from(["acme", ""]), st.none() | st.dictionaries(versions, times), st.dictionaries(versions, times), epochs
    ),
    Rpc.ASK: st.tuples(st.sampled_from(["logs", "cool", "counts", "state", "isolation", "?"]), fields),
    Rpc.CALL_RESULT: st.tuples(odd_texts),
}
DEEP = b"\x91" * 5000
NESTED = b"\x92\xa5state\x81\xa1x" + DEEP  # a question with an argument like that


@st.composite
def frames(draw: st.DrawFn) -> bytes:
    kind = draw(st.sampled_from([*SHAPES, *SHAPES, *Rpc, 0, 255]))
    way = draw(st.sampled_from(["shape"] * 5 + ["any", "bytes", "deep", "empty"]))
    if way == "shape" and kind in SHAPES:
        meta = msgspec.msgpack.encode(draw(SHAPES[Rpc(kind)]))
    elif way == "deep":
        meta = NESTED if kind == Rpc.ASK else DEEP
    else:
        meta = b"" if way == "empty" else draw(st.binary(max_size=30)) if way == "bytes" else msgspec.msgpack.encode(draw(fields))
    return encode(kind, draw(st.integers(0, 3)), meta, draw(st.binary(max_size=10)), draw(st.sampled_from([0, 0, 1, 255])))


defined = st.just(encode(Rpc.DEFINE, 0, msgspec.msgpack.encode(ECHO)))
streams = st.lists(
    defined | frames() | frames() | frames() | st.binary(max_size=20) | st.just(HEADER.pack(11, 0, 0, 1, 2**32 - 1, 0)),
    max_size=8,
)


@dear(120)
@given(stream=streams, at=st.lists(st.integers(0, 10_000), max_size=6))
def test_any_stream_of_bytes_ends_its_own_connection_at_most(stream: list[bytes], at: list[int]) -> None:
    sent = b"".join(stream)
    places = [0, *sorted(place % (len(sent) + 1) for place in at), len(sent)]

    @in_loop
    async def body() -> None:
        with tempfile.TemporaryDirectory() as folder:
            async with running_node(Path(folder)) as rig:
                good, bad = await rig.caller(), await rig.caller()
                assert (await good.invoke(ECHO, b"before"))[1] == b"before"
                assert bad.connection._transport is not None
                for start, stop in itertools.pairwise(places):
                    bad.connection._transport.write(sent[start:stop])
                await good.caught_up()
                bad.connection.close()
                await until(lambda: len(rig.node._connections) == 1, "its connection is forgotten")
                rig.node.execution.draining.clear()  # it may drain what it likes: it has the key
                assert (await good.invoke(ECHO, b"after"))[1] == b"after"
                assert good.lost == ""
                await until(lambda: not rig.node.execution._streams, "nothing of it is left")

    body()


@dear(60)
@given(
    hello=st.binary(max_size=60) | frames() | st.builds(lambda meta: encode(Rpc.HELLO, 0, msgspec.msgpack.encode(meta)), fields)
)
def test_who_does_not_say_hello_is_not_let_in(hello: bytes) -> None:
    @in_loop
    async def body() -> None:
        with tempfile.TemporaryDirectory() as folder:
            async with running_node(Path(folder)) as rig:
                good = await rig.caller()
                reader, writer = await asyncio.open_unix_connection(str(rig.path))
                try:
                    writer.write(hello + encode(Rpc.ASK, 1, msgspec.msgpack.encode(("state", {}))))
                    writer.write_eof()
                    assert await asyncio.wait_for(reader.read(), 5.0) == b""
                except ConnectionError:
                    pass
                finally:
                    writer.close()
                await good.caught_up()
                assert good.lost == ""

    assert SECRET.encode() not in hello
    body()


@in_loop
async def test_a_question_nested_without_end_closes_its_own_connection(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig:
        good, bad = await rig.caller(), await rig.caller()
        assert bad.connection._transport is not None
        bad.connection._transport.write(encode(Rpc.ASK, 1, NESTED))
        await until(lambda: bad.lost, "it is closed")
        await good.caught_up()
        assert good.lost == ""
