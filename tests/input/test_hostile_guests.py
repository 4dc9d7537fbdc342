"""Whatever bytes a guest sends, in whatever pieces: its own invocations fail with a clear error, and the node goes on."""

import asyncio
import contextlib
import itertools
import json
import socket
import tempfile
from pathlib import Path
from typing import Any

from doubles.loop import in_loop, until
from doubles.nodes import running_node, spec
from doubles.profiles import dear
from doubles.sandboxes import DoubleClone, silent
from hypothesis import given
from hypothesis import strategies as st

from workers.drivers.frames import FromGuest
from workers.drivers.wire import Wire
from workers.framing import HEADER, MORE, Frame, encode

HOSTILE = spec("hostile", concurrency=4)
NEIGHBOUR = spec("neighbour", tenant="other")
ENDINGS = {"ok", "error", "bad-payload", "killed"}

idents = st.sampled_from([1, 2, 3, 4, 7, 2**32 - 1])
texts = st.sampled_from(
    ["", "text/plain", "a\r\nb: c", "\ud800", "\0", "é" * 300, "f" * 70_000, "child", "child:1", "../x"]
) | st.text(max_size=8)
numbers = st.sampled_from([0, 1, 2, 200, 999, 1000, -1, 2**32, 2**64, 10**400, 1.5, 1e308]) | st.integers()
names = st.sampled_from(["type", "http", "status", "headers", "x"])
anything = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)
responses = st.fixed_dictionaries({"status": numbers, "headers": st.lists(st.lists(texts, max_size=3), max_size=3)})
flags_ = st.booleans() | anything
FIELDS = {
    FromGuest.RESULT: {"content_type": texts, "http": responses | anything},
    FromGuest.ERROR: {"type": texts, "message": texts, "stack": texts, "payload": flags_},
    FromGuest.CALL: {"invocation": idents | numbers, "function": texts, "content_type": texts, "asynchronous": flags_},
    FromGuest.LOG: {"stream": st.sampled_from(["out", "err", "none"]) | anything},
}  # fmt: skip


@st.composite
def metas(draw: st.DrawFn, kind: int) -> bytes:
    """What the kind takes, something like it, or no JSON at all."""
    fields = FIELDS.get(kind, {})  # type: ignore[call-overload]
    way = draw(st.sampled_from(["fields", "fields", "fields", "any", "bytes", "deep", "empty"]))
    if way == "fields":
        given_ = {name: draw(value) for name, value in fields.items() if draw(st.integers(0, 3))}
        return json.dumps(given_).encode()
    if way == "any":
        return json.dumps(draw(anything)).encode()
    if way == "deep":
        return b'{"x":' + b"[" * 5000
    return b"" if way == "empty" else draw(st.binary(max_size=30))


@st.composite
def frames(draw: st.DrawFn) -> bytes:
    kind = draw(st.sampled_from([*FromGuest, 0, 2, 255]))
    flags = draw(st.sampled_from([0, 0, MORE, 255]))
    body = draw(st.binary(max_size=20) | st.sampled_from([b"x" * 70_000, b"\xff" * 9]))
    return encode(kind, draw(idents), draw(metas(kind)), body, flags)


streams = st.lists(
    frames() | st.binary(max_size=24) | st.builds(lambda size: HEADER.pack(18, 0, 0, 1, size, 0), st.integers(0, 2**32 - 1)),
    max_size=8,
)
pieces = st.lists(st.integers(0, 100_000), max_size=8)


@dear(120)
@given(stream=streams, at=pieces, live=st.integers(1, 4), dies=st.booleans())
def test_any_stream_of_bytes_ends_its_own_instance_at_most(stream: list[bytes], at: list[int], live: int, dies: bool) -> None:
    sent = b"".join(stream)
    places = [0, *sorted(place % (len(sent) + 1) for place in at), len(sent)]

    @in_loop
    async def body() -> None:
        with tempfile.TemporaryDirectory() as folder:
            async with running_node(Path(folder)) as rig:
                caller = await rig.caller()
                rig.driver.handler = silent
                neighbour = caller.start(NEIGHBOUR)
                await until(lambda: any(one.invocations() for one in rig.driver.instances))
                victims = [caller.start(HOSTILE) for _ in range(live)]
                await until(lambda: sum(len(one.invocations()) for one in rig.driver.instances) == live + 1)
                hostile = next(one for one in rig.driver.instances if one.work and one.work.version == HOSTILE.version)
                await speak(hostile, [sent[start:stop] for start, stop in itertools.pairwise(places)], dies)
                await caller.caught_up()
                for victim in victims:
                    if victim.done:
                        assert await victim.status() in ENDINGS
                    victim.cancel()
                other = next(one for one in rig.driver.instances if one.work and one.work.version == NEIGHBOUR.version)
                other.answer(other.invocations()[-1].id)
                assert await neighbour.status() == "ok"
                assert caller.lost == ""
                await until(lambda: not rig.node.execution._streams and not rig.node.execution.calls, "the books are empty")
                assert rig.node.instances.memory.used_mb <= HOSTILE.memory_mb + NEIGHBOUR.memory_mb

    body()


async def speak(clone: DoubleClone, chunks: list[bytes], dies: bool) -> None:
    """The bytes come over a real socket, through what reads a sandbox's channel."""
    ours, theirs = socket.socketpair()
    wire = Wire(ours, clone.on_frame, clone.die)
    theirs.setblocking(False)
    try:
        sending = asyncio.ensure_future(_send(theirs, chunks))
        await until(lambda: sending.done() or clone.ended, "it is all read, or nobody listens any more")
        sending.cancel()
        await asyncio.wait([sending])
        if dies:
            theirs.close()
            await until(lambda: clone.ended, "the end of its channel ends it")
    finally:
        wire.close()
        theirs.close()


async def _send(sock: socket.socket, chunks: list[bytes]) -> None:
    with contextlib.suppress(OSError):
        for chunk in chunks:
            await asyncio.get_running_loop().sock_sendall(sock, chunk)
            await asyncio.sleep(0)
        await asyncio.sleep(0.002)


@in_loop
async def test_a_result_in_very_small_parts_costs_the_node_what_it_weighs(tmp_path: Path) -> None:
    """A list of a million parts of a byte would cost fifty times their size, outside of the guest's own memory."""
    parts = 200_000

    def handler(clone: DoubleClone, frame: Frame) -> None:
        for _ in range(parts):
            clone.on_frame(Frame(FromGuest.RESULT, MORE, frame.id, b"", b"x"))

    async with running_node(tmp_path) as rig:
        caller = await rig.caller()
        rig.driver.handler = handler
        running = caller.start(HOSTILE)
        await until(lambda: rig.node.execution._streams)
        (invocation,) = rig.node.execution._streams.values()
        await until(lambda: invocation.dispatched)
        await until(lambda: held(invocation) >= parts)
        assert held(invocation) < 2 * parts
        rig.driver.instances[0].answer(1, b"", "text/plain")
        result, body = await running.result()
        assert (result.status, len(body)) == ("ok", parts)


def held(invocation: Any) -> int:
    return len(invocation.collected)
