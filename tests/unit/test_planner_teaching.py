"""What the planner says of traces of elsewhere: taught, counted, named."""

import asyncio
from pathlib import Path

import msgspec
import pytest

from graph.callgraph import CallGraph
from graph.calls import Call, Trace
from graph.ids import FunctionId, TenantId
from orchestrator.catalog.watch import RouteTable
from orchestrator.planner import naming
from orchestrator.planner.learning import Learner
from orchestrator.planner.naming import Names
from orchestrator.planner.runs import RunBook
from orchestrator.planner.state import FORMAT, PlannerState, load, save
from orchestrator.planner.teaching import Teaching
from tracing.assembly import Assembler
from workers.rpc.connection import RpcError

T = TenantId("t")


class Desk:
    def __init__(self) -> None:
        self.graph = CallGraph()
        self.names = Names()
        self.assembler = Assembler(names=self.names.of)
        learner = Learner(self.graph, RunBook(None))
        self.teaching = Teaching(self.graph, RouteTable(), learner, self.assembler, self.names)

    def ask(self, what: str, **args: object) -> dict:
        return asyncio.run(self.teaching.answers()[what]({"tenant": T, **args}))  # type: ignore[arg-type]


def trace(entry: str, *callees: str, tenant: str = "t") -> Trace:
    calls = tuple(Call(FunctionId(f"t/{entry}"), FunctionId(f"t/{one}"), -1, 0.1, 0.2) for one in callees)
    return Trace(TenantId(tenant), entry, FunctionId(f"t/{entry}"), 1.0, calls)


def packed(*traces: Trace) -> bytes:
    return msgspec.msgpack.encode(traces)


def test_imported_traces_are_learned_and_counted_with_what_their_reading_left_out() -> None:
    desk = Desk()
    wrong = msgspec.structs.replace(trace("c", "d"), calls=(Call(FunctionId("t/x"), FunctionId("t/d"), -1, 0.0, 0.0),))
    told = desk.ask("observe", traces=packed(trace("a", "b"), wrong), decay=False, spans=9, left_out={"orphan": 2})
    assert told == {"observed": 1}
    assert desk.ask("intake") == {
        "spans": 9,
        "traces": 2,
        "early": 0,
        "waiting_spans": 0,
        "left_out": {"orphan": 2, "nothing to learn from": 1},
    }
    with pytest.raises(RpcError, match="another tenant"):
        desk.ask("observe", traces=packed(trace("a", tenant="u")))


def test_observed_functions_are_listed_with_their_names_page_by_page() -> None:
    desk = Desk()
    desk.ask("observe", traces=packed(trace("a", "b", "c")))
    assert desk.ask("name", map={"b": "pay", "z": "zoo", "gone": None})["map"] == {"b": "pay", "z": "zoo"}
    names = desk.ask("names")["names"]
    assert [(one["observed"], one["function"], one["learned"]) for one in names] == [
        ("a", None, True),
        ("b", "pay", True),
        ("c", None, True),
        ("z", "zoo", False),
    ]
    page = desk.ask("names", after="a", limit=2)
    assert ([one["observed"] for one in page["names"]], page["map"]) == (["b", "c"], {"b": "pay"})
    assert desk.ask("names", limit=1, all=True)["map"] == {"b": "pay", "z": "zoo"}
    assert desk.ask("name", map={"b": None})["map"] == {"z": "zoo"}


def test_names_have_a_bound_and_go_with_their_tenant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(naming, "MOST", 2)
    desk = Desk()
    desk.ask("name", map={"a": "x", "b": "y"})
    with pytest.raises(RpcError, match="3 names, the limit is 2"):
        desk.ask("name", map={"c": "z"})
    desk.ask("name", map={"a": None, "c": "z"})
    revision = desk.names.revision
    desk.names.forget_tenant(T)
    assert (desk.names.of, desk.names.revision) == ({}, revision + 1)


def test_names_outlive_the_planner_and_states_from_before_there_were_any_are_read(tmp_path: Path) -> None:
    save(tmp_path / "state", PlannerState(FORMAT, b"", names={"t": {"a": "x"}}))
    stored = load(tmp_path / "state")
    assert stored is not None
    assert Names(stored.names).of == {"t": {"a": "x"}}
    (tmp_path / "old").write_bytes(msgspec.msgpack.encode({"format": FORMAT, "graph": b""}))
    old = load(tmp_path / "old")
    assert old is not None
    assert old.names == {}
