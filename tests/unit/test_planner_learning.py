"""What the planner learns from: whole runs, once each, a little after their end; nothing that contradicts itself stops it."""

import asyncio
from pathlib import Path

import msgspec
import pytest
from doubles.gateways import running_gateway
from doubles.loop import in_loop, until
from doubles.nodes import SECRET, running_node, spec

from graph.callgraph import CallGraph
from graph.calls import Call, StartKind, Trace
from graph.ids import FunctionId, TenantId
from orchestrator.planner import learning, runs
from orchestrator.planner.learning import GRACE_S, Learner
from orchestrator.planner.peers import Fleet, NodePeer
from orchestrator.planner.places import Places
from orchestrator.planner.runs import RunBook
from tracing.records import InvocationRecord, Timings
from workers.rpc.connection import RpcError
from workers.rpc.messages import Hello, PrepareItem

ACME = TenantId("acme")
IDS = {name: f"{number:016x}" for number, name in enumerate(("entry", "a", "b"), start=1)}


def fid(name: str) -> FunctionId:
    return FunctionId(f"acme/{name}")


def record(name: str, parent: str = "", trace: str = "1", status: str = "ok", sent_at: float = 100.0) -> InvocationRecord:
    start = StartKind.UNKNOWN if status == "refused" else StartKind.WARM
    caller = IDS[parent] if parent else ""
    return InvocationRecord(
        "acme", trace.zfill(32), IDS[name], caller, f"acme/{name}", 1, sent_at, sent_at + 1.0, start, status, Timings()
    )


def made() -> tuple[Learner, CallGraph]:
    graph = CallGraph()
    return Learner(graph, RunBook()), graph


def edges(graph: CallGraph) -> dict[tuple[str, str], int]:
    return {(one.caller.partition("/")[2], one.callee.partition("/")[2]): one.traces for one in graph.edges(ACME)}


def test_a_run_is_learned_once_after_its_grace_with_what_came_late() -> None:
    learner, graph = made()
    learner.add([record("a", "entry", sent_at=100.1)], 0, now=0.0)
    learner.settle(100.0)
    assert edges(graph) == {}, "a run without its end is not learned"
    learner.add([record("entry")], 0, now=0.0)
    learner.settle(GRACE_S / 2)
    assert edges(graph) == {}
    learner.add([record("b", "entry", sent_at=100.2)], 0, now=GRACE_S / 2)
    for now in (GRACE_S, GRACE_S + 1, GRACE_S + 2):
        learner.settle(now)
        assert edges(graph) == {("entry", "a"): 1, ("entry", "b"): 1}
    assert (learner.counters.observed, learner.counters.records) == (1, 3)


def test_a_refused_run_teaches_nothing() -> None:
    learner, graph = made()
    for number in range(5):
        learner.add([record("entry", trace=f"{number}"), record("a", "entry", trace=f"{number}")], 0, now=0.0)
    learner.settle(9.0)
    before = graph.edges(ACME)
    for number in range(50):
        learner.add([record("entry", trace=f"1{number}", status="refused")], 0, now=9.0)
    learner.settle(99.0)
    assert graph.edges(ACME) == before


def test_records_that_contradict_themselves_are_counted_and_end_nothing() -> None:
    learner, graph = made()
    broken = msgspec.structs.replace(record("entry", trace="2"), parent_id="")
    orphan = msgspec.structs.replace(record("a", trace="3"), parent_id="f" * 16)
    loop = msgspec.structs.replace(record("b", trace="2"), parent_id=IDS["b"])
    learner.add([broken, orphan, loop, record("entry", trace="4"), record("a", "entry", trace="4")], 0, now=0.0)
    learner.settle(9.0)
    assert ("entry", "a") in edges(graph)


def test_traces_that_contradict_themselves_are_counted_and_the_others_learned() -> None:
    learner, graph = made()
    good = Trace(ACME, "t1", fid("entry"), 1.0, (Call(fid("entry"), fid("a"), -1, 0.1, 0.1),))
    bad = Trace(ACME, "t2", fid("entry"), 1.0, (Call(fid("other"), fid("a"), 7, 0.1, 0.1),))
    assert learner.observe([bad, good], 1.0) == 1
    assert (learner.counters.observed, learner.counters.refused) == (1, 1)
    assert edges(graph) == {("entry", "a"): 1}


def test_what_waits_is_bounded_and_what_gateways_dropped_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning, "WAITING", 3)
    learner, _ = made()
    learner.add([record("entry", trace=f"{number}") for number in range(5)], 17, now=0.0)
    assert (learner.counters.dropped_waiting, learner.counters.dropped_by_gateways) == (2, 17)
    learner.settle(9.0)
    assert learner.counters.observed == 3


def test_runs_that_newer_ones_pushed_out_before_they_were_learned_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "RUNS", 3)
    learner, _ = made()
    learner.add([record("entry", trace=f"{number}") for number in range(5)], 0, now=0.0)
    learner.settle(9.0)
    assert (learner.counters.observed, learner.counters.dropped_waiting) == (3, 2)


# -- peers


class Quiet:
    """A listener that only keeps what it hears."""

    def __init__(self) -> None:
        self.ups: list[bool] = []
        self.outcomes: list[str] = []

    def on_triggers(self, triggers: object) -> None: ...
    def on_records(self, records: object) -> None: ...
    def on_counts(self, node: object, counts: object) -> None: ...

    def on_outcomes(self, node: str, updates: object) -> None:
        self.outcomes += [one.outcome for one in updates]  # type: ignore[attr-defined]

    def on_node(self, node: NodePeer, up: bool) -> None:
        self.ups.append(up)


@in_loop
async def test_an_order_counts_as_on_its_way_until_the_node_says_better(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig:
        quiet, one = Quiet(), spec("echo")
        peer = NodePeer(rig.path, Hello("planner", "p", SECRET), quiet)
        running = asyncio.ensure_future(peer.run())
        await until(lambda: peer.free_mb == 4096)
        rig.driver.init_turn.close()
        peer.define(one)
        peer.prepare([PrepareItem("d1", one.version), PrepareItem("d2", one.version), PrepareItem("", one.version, level="code")])
        assert (peer.idle(one.version), peer.idle("acme/other:1")) == (2, 0), "before the node has said a word"
        await until(lambda: peer.counts[one.version].preparing == 2 and len(rig.driver.initialising) == 2)
        rig.driver.init_turn.open()
        await until(lambda: peer.counts[one.version].idle == 2)
        peer.drain(one.version)
        await until(lambda: peer.idle(one.version) == 0)
        assert quiet.outcomes == ["ready", "ready", "wasted", "wasted"]
        for connection in list(rig.node._connections):
            connection._transport.abort()  # type: ignore[union-attr]
        await until(lambda: quiet.ups == [True, False, True])
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@in_loop
async def test_asking_all_nodes_is_asking_those_that_are_there(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig, running_gateway(rig):
        hello = Hello("planner", "p", SECRET)
        fleet = Fleet([NodePeer(rig.path, hello, Quiet()), NodePeer(tmp_path / "gone.sock", hello, Quiet())])
        with pytest.raises(RpcError, match="no node is reachable"):
            await fleet.ask_all("isolation")
        assert Places(fleet).choose(spec("echo")) is None
        running = [asyncio.ensure_future(node.run()) for node in fleet.nodes]
        await until(fleet.up)
        (answer,) = await fleet.ask_all("isolation")
        assert answer["driver"] == "double"
        assert Places(fleet).choose(spec("echo")) is fleet.nodes[0]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
