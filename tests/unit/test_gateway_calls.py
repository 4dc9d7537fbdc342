"""Functions that call functions, through a gateway and its nodes: admitted, bounded, cancelled with their parent."""

import asyncio
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from doubles.gateways import Gate, running_gateway
from doubles.loop import in_loop, settle, until
from doubles.nodes import running_node, spec
from doubles.sandboxes import DoubleClone
from doubles.stories import Story, path_of

from workers.drivers.frames import FromGuest, ToGuest
from workers.framing import Frame
from workers.rpc.messages import ChildCall, InvokeResult

ENTRY, MIDDLE, LEAF = (spec(name, timeout_s=60.0) for name in ("entry", "middle", "leaf"))


def tree(gate: Gate) -> list[tuple[str, str, str]]:
    """(function, its caller, status) of every record, by the time they were sent."""
    records = sorted(gate.reports._records, key=lambda one: one.sent_at)
    names = {one.invocation_id: one.function.partition("/")[2] for one in records}
    return [(names[one.invocation_id], names.get(one.parent_id, ""), one.status) for one in records]


@in_loop
async def test_a_call_runs_as_a_child_in_the_same_trace(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig, running_gateway(rig) as gate:
        gate.serve(ENTRY, MIDDLE, LEAF)
        story = Story(rig, entry=["middle", "leaf"], middle=["leaf:1"])
        answer = await gate.post("entry")
        assert (answer.status_code, answer.content) == (200, b"entry")
        assert tree(gate) == [("entry", "", "ok"), ("middle", "entry", "ok"), ("leaf", "middle", "ok"), ("leaf", "entry", "ok")]
        assert len({record.trace_id for record in gate.reports._records}) == 1
        assert [(name, meta["status"], body) for name, meta, body in story.answers] == [
            ("middle", "ok", b"leaf"),
            ("entry", "ok", b"middle"),
            ("entry", "ok", b"leaf"),
        ]


@pytest.mark.parametrize(
    ("target", "content", "status", "words"),
    [
        ("nobody", b"", "not-found", "no function 'nobody'"),
        ("leaf:9", b"", "not-found", "no version"),
        ("leaf:" + "9" * 240, b"", "not-found", "over 200 characters"),
        ("../other/leaf", b"", "not-found", "no function"),
        ("", b"", "not-found", "no function"),
        ("leaf", bytes(1001), "too-large", "over 1000 bytes"),
    ],
)
@in_loop
async def test_a_call_that_cannot_be_is_answered_with_why(
    tmp_path: Path, target: str, content: bytes, status: str, words: str
) -> None:
    async with running_node(tmp_path) as rig, running_gateway(rig, max_payload=1000) as gate:
        gate.serve(ENTRY, LEAF, spec("leaf", tenant="other"))
        story = Story(rig, entry=[target])
        story.content = content
        assert (await gate.post("entry")).status_code == 200
        ((_, meta, _),) = story.answers
        assert meta["status"] == status
        assert words in meta["error"]["message"]  # type: ignore[index]
        assert tree(gate) == [("entry", "", "ok")]


@in_loop
async def test_a_call_asked_for_later_is_refused_in_words(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig, running_gateway(rig) as gate:
        gate.serve(ENTRY, LEAF)

        def handle(clone: DoubleClone, frame: Frame) -> None:
            clone.say(FromGuest.CALL, 1, {"invocation": frame.id, "function": "leaf", "asynchronous": True})

        rig.driver.handler = handle
        running = asyncio.ensure_future(gate.post("entry"))
        await until(lambda: rig.driver.instances and any(one.kind == ToGuest.CALL_RESULT for one in rig.driver.instances[0].sent))
        refused = next(one for one in rig.driver.instances[0].sent if one.kind == ToGuest.CALL_RESULT)
        assert msgspec.json.decode(refused.meta)["status"] == "refused"
        rig.driver.instances[0].answer(1)
        assert (await running).status_code == 200


@in_loop
async def test_a_path_deeper_than_the_limit_ends_there(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig, running_gateway(rig, max_depth=3) as gate:
        gate.serve(spec("again"))
        story = Story(rig, again=["again"])
        assert (await gate.post("again")).status_code == 200
        assert len(story.seen) == 4
        assert [meta["status"] for _, meta, _ in story.answers] == ["too-deep", "ok", "ok", "ok"]


@in_loop
async def test_a_child_has_no_more_time_than_its_parent(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig, running_gateway(rig) as gate:
        gate.serve(spec("entry", timeout_s=2.0), spec("leaf", timeout_s=60.0))
        story = Story(rig, entry=["leaf"])
        story.silent = {"leaf"}
        answer = await gate.post("entry")
        assert answer.status_code == 504
        told = [msgspec.json.decode(one.invocations()[0].meta)["deadline_s"] for one in rig.driver.clones]
        assert 2.0 >= told[0] >= told[1] > 0
        await until(lambda: len(gate.reports._records) == 2)
        assert {status for name, _, status in tree(gate) if name == "leaf"} <= {"timeout", "cancelled"}
        await until(lambda: rig.driver.instances == [])


@pytest.mark.parametrize("end", ["parent answers", "parent dies", "node lost"])
@in_loop
async def test_children_are_cancelled_with_their_parent_and_run_on_nowhere(tmp_path: Path, end: str) -> None:
    """With two nodes, the child of a lost node's invocation would go on elsewhere, for nobody."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    async with (
        running_node(tmp_path / "a", memory_mb=150) as first,
        running_node(tmp_path / "b", memory_mb=150) as second,
        running_gateway(first, second) as gate,
    ):
        gate.serve(ENTRY, LEAF)
        rigs = [first, second]
        stories = [Story(rig, entry=["leaf"]) for rig in rigs]
        for story in stories:
            story.silent = {"leaf"}
        running = asyncio.ensure_future(gate.post("entry"))
        await until(lambda: any("leaf" in story.seen for story in stories))
        home = next(rig for rig in rigs if any(path_of(clone) == "entry" for clone in rig.driver.instances))
        clone = next(clone for clone in home.driver.instances if path_of(clone) == "entry")
        assert sum(len(rig.driver.instances) for rig in rigs) == 2
        assert len(home.driver.instances) == 1, "the child did not fit beside its parent"
        if end == "parent answers":
            clone.answer(1, b"without it")
        elif end == "parent dies":
            clone.die("killed")
        else:
            for connection in list(home.node._connections):
                connection._transport.abort()  # type: ignore[union-attr]
        answer = await running
        assert answer.status_code == (200 if end == "parent answers" else 502)
        await until(lambda: not any(path_of(one) == "leaf" for rig in rigs for one in rig.driver.instances))
        await until(lambda: len(gate.runs) == 0 and not gate.runs._children)


@in_loop
async def test_a_child_still_waiting_for_capacity_ends_with_its_parent(tmp_path: Path) -> None:
    async with running_node(tmp_path, memory_mb=150) as rig, running_gateway(rig, max_waiting=0) as gate:
        gate.serve(ENTRY, LEAF)
        story = Story(rig, entry=["leaf"])
        running = asyncio.ensure_future(gate.post("entry"))
        await until(lambda: len(gate.runs._waiting) == 1, "its place is reserved: no place is left for others")
        rig.driver.instances[0].answer(1)
        assert (await running).status_code == 200
        await until(lambda: len(gate.runs) == 0)
        assert (len(gate.runs._waiting), story.seen) == (0, ["entry"])


@in_loop
async def test_a_call_the_guest_gives_up_is_cancelled_while_its_parent_goes_on(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig, running_gateway(rig) as gate:
        gate.serve(ENTRY, LEAF)
        story = Story(rig, entry=["leaf"])
        story.silent = {"leaf"}
        running = asyncio.ensure_future(gate.post("entry"))
        await until(lambda: "leaf" in story.seen)
        parent = next(clone for clone in rig.driver.instances if path_of(clone) == "entry")
        parent.say(FromGuest.CANCEL_CALL, 1001)
        await until(lambda: [path_of(clone) for clone in rig.driver.instances] == ["entry"])
        assert not running.done()
        parent.answer(1)
        assert (await running).status_code == 200


class Stranger:
    """Another node's link, on which somebody speaks for what does not run there."""

    def __init__(self) -> None:
        self.told: list[InvokeResult] = []

    @property
    def connection(self) -> "Stranger":
        return self

    def send(self, kind: int, ident: int, result: InvokeResult, body: bytes) -> None:
        self.told.append(result)


@in_loop
async def test_a_node_cannot_call_for_what_runs_on_another(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig, running_gateway(rig) as gate:
        gate.serve(ENTRY, LEAF)
        story = Story(rig, entry=["leaf"])
        story.silent = {"leaf"}
        running = asyncio.ensure_future(gate.post("entry"))
        await until(lambda: "leaf" in story.seen)
        stranger = Stranger()
        (entry,) = [run.invocation_id for run in gate.runs._live.values() if not run.parent_id]
        gate.runs.on_call(cast(Any, stranger), 1, ChildCall(entry, "leaf", "application/json"), b"{}")
        await until(lambda: bool(stranger.told))
        assert stranger.told[0].error is not None
        assert stranger.told[0].error.type == "CallRefused"
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@in_loop
async def test_a_node_that_forgot_a_version_is_told_again(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig, running_gateway(rig) as gate:
        gate.serve(ENTRY)
        assert (await gate.post("entry")).status_code == 200
        rig.node._specs.clear()
        assert (await gate.post("entry")).status_code == 200


@in_loop
async def test_a_node_that_came_back_counts_its_calls_from_one_and_confuses_nobody(tmp_path: Path) -> None:
    async with running_gateway(tmp_path / "node.sock") as gate:
        gate.serve(ENTRY, LEAF)
        for _ in range(2):
            async with running_node(tmp_path) as rig:
                await until(lambda: gate.runs.links[0].up)
                story = Story(rig, entry=["leaf"])
                story.silent = {"leaf"}
                running = asyncio.ensure_future(gate.post("entry"))
                await until(lambda story=story: "leaf" in story.seen)
                for clone in rig.driver.instances:
                    if path_of(clone) == "entry":
                        clone.answer(1)
                assert (await running).status_code == 200
                await until(lambda rig=rig: not any(path_of(clone) == "leaf" for clone in rig.driver.instances))
                await settle()
        assert gate.runs._children == {}


@in_loop
async def test_parents_that_fill_the_node_leave_room_for_their_children(tmp_path: Path) -> None:
    """A tenth of the memory is for children only, so that parents who wait for them come to an end."""
    async with running_node(tmp_path, memory_mb=1280) as rig, running_gateway(rig) as gate:
        gate.serve(ENTRY, LEAF)
        Story(rig, entry=["leaf"])
        answers = await asyncio.gather(*(gate.post("entry") for _ in range(20)))
        assert [answer.status_code for answer in answers] == [200] * 20


@in_loop
async def test_full_on_one_node_is_tried_on_the_next(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    async with (
        running_node(tmp_path / "a", memory_mb=150) as first,
        running_node(tmp_path / "b", memory_mb=150) as second,
        running_gateway(first, second, max_waiting=0) as gate,
    ):
        gate.serve(spec("one"), spec("two"), spec("three"))
        for rig in (first, second):
            rig.driver.handler = lambda _clone, _frame: None
        running = [asyncio.ensure_future(gate.post(name)) for name in ("one", "two")]
        await until(lambda: sum(len(clone.invocations()) for rig in (first, second) for clone in rig.driver.instances) == 2)
        assert len(first.driver.instances) == len(second.driver.instances) == 1
        assert (await gate.post("three")).status_code == 429
        for rig in (first, second):
            rig.driver.instances[0].answer(1)
        assert [(await one).status_code for one in running] == [200, 200]
