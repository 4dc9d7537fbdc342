"""What one guest or one client can send must cost only itself: the link, the memory and the neighbours stay."""

from pathlib import Path

import pytest
from doubles.gateways import running_gateway
from doubles.loop import in_loop, until
from doubles.nodes import running_node, spec
from doubles.sandboxes import DoubleClone, echo, silent

from workers.drivers.frames import FromGuest
from workers.framing import MAX_META, Frame
from workers.rpc.messages import InvokeResult, Rpc

HOSTILE = spec("hostile")
NEIGHBOUR = spec("neighbour", tenant="other")

DEEP = b'{"x":' + b"[" * 200_000 + b"]" * 200_000 + b"}"
FRAMES = {
    "content type as long as a frame may be": (FromGuest.RESULT, b'{"content_type":"' + b"a" * (MAX_META - 20) + b'"}'),
    "status that fits nowhere": (FromGuest.RESULT, b'{"http":{"status":1000000000000000000000000000000}}'),
    "headers without end": (FromGuest.RESULT, b'{"http":{"headers":[' + b",".join([b'["a","b"]'] * 5000) + b"]}}"),
    "nesting without end": (FromGuest.RESULT, DEEP),
    "nesting in a log": (FromGuest.LOG, DEEP),
    "a call of a function as long as a frame": (
        FromGuest.CALL,
        b'{"invocation":1,"function":"' + b"f" * (MAX_META - 60) + b'"}',
    ),
    "a call with a content type as long as a frame": (
        FromGuest.CALL,
        b'{"invocation":1,"function":"f","content_type":"' + b"c" * (MAX_META - 70) + b'"}',
    ),
}


@pytest.mark.parametrize("what", FRAMES)
@in_loop
async def test_a_hostile_frame_ends_its_own_instance_and_nothing_else(tmp_path: Path, what: str) -> None:
    kind, meta = FRAMES[what]

    def handler(clone: DoubleClone, frame: Frame) -> None:
        if clone.work is not None and clone.work.version == HOSTILE.version:
            clone.say(kind, frame.id, meta)
        else:
            silent(clone, frame)

    async with running_node(tmp_path) as rig:
        caller = await rig.caller()
        rig.driver.handler = handler
        neighbour = caller.start(NEIGHBOUR)
        await until(lambda: any(one.invocations() for one in rig.driver.instances))
        assert await caller.start(HOSTILE).status() in ("killed", "error")
        victim = next(one for one in rig.driver.instances if one.work and one.work.version == NEIGHBOUR.version)
        victim.answer(victim.invocations()[-1].id)
        assert await neighbour.status() == "ok"
        assert caller.lost == ""
        await until(lambda: rig.node.instances.memory.used_mb == NEIGHBOUR.memory_mb)


@in_loop
async def test_whatever_goes_wrong_while_preparing_gives_the_memory_back(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig:
        caller = await rig.caller()
        rig.driver.init_error = RuntimeError("nobody thought of this")
        assert await caller.start(HOSTILE).status() == "killed"
        assert (rig.node.instances.memory.used_mb, len(rig.node.instances.table)) == (0, 0)
        rig.driver.init_error = None
        rig.driver.handler = echo
        assert await caller.start(HOSTILE).status() == "ok"


@in_loop
async def test_a_message_over_the_limit_of_the_wire_becomes_an_error_of_its_own(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig:
        caller = await rig.caller()
        rig.driver.handler = silent
        running = caller.start(HOSTILE)
        await until(lambda: rig.node.execution._streams)
        (invocation,) = rig.node.execution._streams.values()
        invocation.connection.send(Rpc.RESULT, invocation.stream, InvokeResult("ok", content_type="x" * (MAX_META + 1)))
        assert await running.status() == "error"
        assert caller.lost == ""


@in_loop
async def test_heads_that_must_not_travel_are_refused(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig, running_gateway(rig) as gate:
        gate.serve(spec("echo"))
        for headers, status in (
            ({"content-type": "x" * 300}, 431),
            ({"x-long": "y" * (65 << 10)}, 431),
            ({"upgrade": "h2c", "connection": "upgrade"}, 400),
        ):
            answer = await gate.client.post("/function/echo", content=b"1", headers=headers)
            assert answer.status_code == status, headers.keys()
        assert (await gate.post("echo")).status_code == 200
