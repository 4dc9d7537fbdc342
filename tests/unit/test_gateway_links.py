"""The gateway's side of a node: one connection that comes back, and what placement goes by; what planners are told."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from doubles.gateways import running_gateway
from doubles.loop import in_loop, settle, until
from doubles.nodes import SECRET, running_node, spec
from doubles.peers import welcome_frame
from hypothesis import given
from hypothesis import strategies as st

from graph.calls import StartKind
from orchestrator.gateway import reports as reporting
from orchestrator.gateway.links import NodeLink
from orchestrator.gateway.reports import Reports
from orchestrator.placement import place
from tracing.records import InvocationRecord, Timings
from workers.rpc.connection import Connection, dial, listen
from workers.rpc.messages import Hello, InvokeRequest, PrepareItem, Rpc, TriggerEvent

HELLO = Hello("gateway", "gw", SECRET)


def ignore(*_: Any) -> None: ...


def link_to(path: Path) -> NodeLink:
    return NodeLink(path, HELLO, ignore, ignore)


@contextlib.asynccontextmanager
async def running(link: NodeLink) -> AsyncIterator[None]:
    task = asyncio.ensure_future(link.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task}, timeout=2.0)
        assert task.done()
    await until(lambda: link.connection is None or link.connection.closed, "its connection is closed")


# -- links


@in_loop
async def test_a_link_comes_up_when_its_node_does_and_again_after_a_loss(tmp_path: Path) -> None:
    link = link_to(tmp_path / "node.sock")
    async with running(link):
        assert (link.up, link.name) == (False, "node.sock")
        for _ in range(2):
            async with running_node(tmp_path):
                await until(lambda: link.up)
                assert link.name == "node-1"
            await until(lambda: not link.up)


@in_loop
async def test_a_node_that_welcomes_and_dies_at_once_is_dialled_again(tmp_path: Path) -> None:
    """A link that waited for the end of a connection which had ended already would be down for ever."""
    path, dialled = tmp_path / "node.sock", 0

    async def brief(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal dialled
        dialled += 1
        writer.write(await welcome_frame(reader, SECRET, "brief") + b"\xff" * 16)
        writer.close()

    server = await asyncio.start_unix_server(brief, str(path))
    link = link_to(path)
    async with running(link):
        await until(lambda: dialled >= 3)
        server.close()
        async with running_node(tmp_path):
            await until(lambda: link.up and link.name == "node-1")


@in_loop
async def test_a_node_that_does_not_read_is_full_and_nothing_piles_up(tmp_path: Path) -> None:
    reading = asyncio.Event()

    async def stuck(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await welcome_frame(reader, SECRET, "stuck"))
        await reading.wait()
        while await reader.read(1 << 20):
            pass
        writer.close()

    server = await asyncio.start_unix_server(stuck, str(tmp_path / "node.sock"))
    link, echo = link_to(tmp_path / "node.sock"), spec("echo")
    request = InvokeRequest(echo.version, "i" * 16, "t" * 32, "", 0, 60.0, "text/plain")
    try:
        async with running(link):
            await until(lambda: link.up)
            sent = [asyncio.ensure_future(link.invoke(echo, request, bytes(4 << 20))) for _ in range(10)]
            await until(lambda: any(one.done() for one in sent))
            assert {one.result()[0].status for one in sent if one.done()} == {"full"}
            assert sum(1 for one in sent if not one.done()) <= 4
            reading.set()
            await until(lambda: link.connection is not None and not link.connection.congested)
            for one in sent:
                one.cancel()
            await asyncio.gather(*sent, return_exceptions=True)
    finally:
        reading.set()
        server.close()


@pytest.mark.parametrize("there", [True, False])
@in_loop
async def test_a_link_ends_when_told_whatever_it_is_doing(tmp_path: Path, there: bool) -> None:
    async with running_node(tmp_path) if there else contextlib.nullcontext():
        for turns in range(25):
            task = asyncio.ensure_future(link_to(tmp_path / "node.sock").run())
            await settle(turns)
            task.cancel()
            await asyncio.wait({task}, timeout=2.0)
            assert task.cancelled(), turns


@in_loop
async def test_a_link_to_several_nodes_knows_what_is_idle_where(tmp_path: Path) -> None:
    link, echo = link_to(tmp_path / "node.sock"), spec("echo")
    link.set_alone(False)
    async with running_node(tmp_path) as rig, running(link):
        await until(lambda: link.free_mb == 4096)
        caller = await rig.caller()
        await caller.invoke(echo)
        await until(lambda: link.idle(echo.version) == 1)
        assert link.free_mb == 4096 - 128
        rig.driver.init_turn.close()
        caller.prepare(PrepareItem("d1", echo.version))
        await until(lambda: link.idle(echo.version) == 2, "what is on its way for nobody counts")
        await caller.connection.ask("cool", tenant="acme", names=["echo"])
        await until(lambda: link.idle(echo.version) == 0)
        assert link.idle("acme/unknown:1") == 0
        link._idle["acme/stale:1"] = 3
        await caller.subscribe()
        await until(lambda: link.idle("acme/stale:1") == 0, "the whole inventory says what there is not")


# -- placement


class View:
    def __init__(self, free_mb: int, idle: int, tenant: str = "") -> None:
        self.free_mb, self._idle, self._tenant = free_mb, idle, tenant

    def idle(self, _version: str) -> int:
        return self._idle

    def hosts(self, tenant: str) -> bool:
        return tenant == self._tenant if self._tenant else True


views = st.lists(st.builds(View, st.sampled_from([0, 64, 128, 500, 4000]), st.integers(0, 3)), max_size=8)


@given(views)
def test_every_node_is_tried_idle_first_then_those_with_room_then_by_memory(nodes: list[View]) -> None:
    order = place("acme/f:1", 128, nodes)
    assert sorted(map(id, order)) == sorted(map(id, nodes))
    ranks = [(node.idle("") == 0, node.free_mb < 128, -node.free_mb) for node in order]
    assert ranks == sorted(ranks)


# -- reports


class Planner:
    """A subscriber that keeps what it is told, in order."""

    def __init__(self) -> None:
        self.connection: Connection = None  # type: ignore[assignment]
        self.kinds: list[int] = []
        self.triggers: list[TriggerEvent] = []
        self.records: list[InvocationRecord] = []
        self.dropped = 0

    def on_open(self, connection: Connection) -> None: ...

    def on_lost(self, connection: Connection, why: str) -> None: ...

    def on_message(self, connection: Connection, kind: int, ident: int, message: Any, body: bytes) -> None:
        self.kinds.append(kind)
        if kind == Rpc.TRIGGERS:
            self.triggers.extend(message.events)
        elif kind == Rpc.RECORDS:
            self.records.extend(message.records)
            self.dropped = message.dropped


@contextlib.asynccontextmanager
async def reporting_to(path: Path, planners: int = 1) -> AsyncIterator[tuple[Reports, list[Planner]]]:
    reports, found = Reports(), [Planner() for _ in range(planners)]
    server = await listen(path, reports, SECRET, "gw")
    for one in found:
        one.connection = await dial(path, one, Hello("planner", "p", SECRET))
        one.connection.send(Rpc.SUBSCRIBE, 0)
    await until(lambda: len(reports._subscribers) == planners)
    try:
        yield reports, found
    finally:
        for one in found:
            one.connection.close()
        server.close()
        await until(lambda: not reports._subscribers)


def event(number: int) -> TriggerEvent:
    return TriggerEvent("acme/f:1", f"{number:032x}", f"{number:016x}", "", 1.0)


def record(number: int) -> InvocationRecord:
    return InvocationRecord(
        "acme", f"{number:032x}", f"{number:016x}", "", "acme/f", 1, 1.0, 2.0, StartKind.WARM, "ok", Timings()
    )


@in_loop
async def test_a_trigger_leaves_at_once_and_a_burst_together_ahead_of_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reporting, "TRIGGER_GAP_S", 0.5)  # the burst takes less, whoever else runs
    monkeypatch.setattr(reporting, "RECORD_GAP_S", 1.0)
    async with reporting_to(tmp_path / "s") as (reports, (planner,)):
        reports.record(record(0))
        for number in range(100):
            reports.trigger(event(number))
        await until(lambda: planner.triggers)
        assert planner.triggers[0] == event(0)
        await until(lambda: len(planner.triggers) == 100 and planner.records)
        assert planner.kinds == [Rpc.TRIGGERS, Rpc.TRIGGERS, Rpc.RECORDS]


@in_loop
async def test_every_planner_is_told_and_one_that_leaves_is_forgotten(tmp_path: Path) -> None:
    async with reporting_to(tmp_path / "s", planners=2) as (reports, (stays, leaves)):
        reports.trigger(event(1))
        reports.record(record(1))
        await until(lambda: stays.records and leaves.records and stays.triggers and leaves.triggers)
        leaves.connection.close()
        await until(lambda: len(reports._subscribers) == 1)
        reports.record(record(2))
        await until(lambda: len(stays.records) == 2)


@in_loop
async def test_with_nobody_there_records_wait_within_a_bound_and_triggers_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reporting, "LIMIT", 100)
    async with reporting_to(tmp_path / "s", planners=0) as (reports, _):
        for number in range(250):
            reports.record(record(number))
            reports.trigger(event(number))
        assert len(reports._records) <= 100
        planner = Planner()
        planner.connection = await dial(tmp_path / "s", planner, Hello("planner", "p", SECRET))
        planner.connection.send(Rpc.SUBSCRIBE, 0)
        await until(lambda: planner.records)
        assert planner.records[-1] == record(249)
        assert planner.dropped == 250 - len(planner.records)
        reports.trigger(event(1000))
        await until(lambda: planner.triggers)
        assert planner.triggers == [event(1000)]
        planner.connection.close()


@in_loop
async def test_many_records_go_out_in_batches_and_none_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporting, "BATCH", 10)
    async with reporting_to(tmp_path / "s") as (reports, (planner,)):
        for number in range(95):
            reports.record(record(number))
        await until(lambda: len(planner.records) == 95)
        assert planner.records == [record(number) for number in range(95)]
        assert planner.kinds == [Rpc.RECORDS] * 10


@in_loop
async def test_the_end_of_the_process_hands_out_what_is_left(tmp_path: Path) -> None:
    async with reporting_to(tmp_path / "s") as (reports, (planner,)):
        reports._triggers_sent_at = time.monotonic() + 1000
        reports.trigger(event(1))
        reports.record(record(1))
        reports.flush()
        await until(lambda: planner.records == [record(1)] and planner.triggers == [event(1)])


@in_loop
async def test_a_run_is_told_at_its_start_and_its_end(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig, running_gateway(rig) as gate:
        gate.serve(spec("echo"))
        server = await listen(tmp_path / "gw.sock", gate.reports, SECRET, "gw")
        planner = Planner()
        planner.connection = await dial(tmp_path / "gw.sock", planner, Hello("planner", "p", SECRET))
        planner.connection.send(Rpc.SUBSCRIBE, 0)
        await until(lambda: gate.reports._subscribers)
        answer = await gate.post("echo")
        await until(lambda: len(planner.triggers) == 2 and planner.records)
        begun, ended = planner.triggers
        assert (begun.version, begun.trace_id, begun.ended) == ("acme/echo:1", answer.headers["x-foreglow-trace"], False)
        assert (ended.trace_id, ended.ended, ended.invocation_id) == (begun.trace_id, True, begun.invocation_id)
        planner.connection.close()
        server.close()
        await until(lambda: not gate.reports._subscribers)
