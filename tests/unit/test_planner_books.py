"""The planner's books: promises add up, decisions end once and are told in order, runs show as trees, state survives."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from graph.calls import StartKind
from graph.ids import FunctionId, TenantId, VersionId
from graph.plans import DeployDecision, EdgeSource, Evidence, Outcome, PrewarmDecision, PrewarmPlan, Trigger
from orchestrator.planner import log, promises, runs, state
from orchestrator.planner.answers import decision_json
from orchestrator.planner.log import DecisionLog, LogEntry
from orchestrator.planner.promises import LIVE_RUNS, RUN_S, Promises
from orchestrator.planner.runs import RunBook
from orchestrator.planner.state import FORMAT, PlannerState, load, save
from tracing.records import InvocationRecord, Timings
from workers.rpc.messages import DecisionUpdate

ACME = TenantId("acme")
FUNCTIONS = [FunctionId(f"acme/{name}") for name in "abc"]
EVIDENCE = Evidence(EdgeSource.LEARNED, 0.9, 0.9, 12, lead_s=0.25, start_s=0.1, trace_ids=("t1",))


# -- promises


class PromiseBooks(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.promises = Promises()
        self.now = 0.0
        self.live: dict[str, promises.LiveRun] = {}

    @rule(trace=st.sampled_from("uvwxyz"), pause=st.sampled_from([0.0, 1.0, RUN_S / 3]))
    def begin(self, trace: str, pause: float) -> None:
        self.now += pause
        self.live[trace] = self.promises.begin(trace, ACME, FUNCTIONS[0], self.now)
        self.live = {name: run for name, run in self.live.items() if run.began >= self.now - RUN_S}

    @rule(trace=st.sampled_from("uvwxyz"), function=st.sampled_from(FUNCTIONS), count=st.integers(1, 3))
    def promise(self, trace: str, function: FunctionId, count: int) -> None:
        run = self.promises.get(trace)
        if run is not None:
            self.promises.promise(run, function, count)

    @rule(trace=st.sampled_from("uvwxyz"), function=st.sampled_from(FUNCTIONS))
    def a_stage_starts(self, trace: str, function: FunctionId) -> None:
        run = self.promises.get(trace)
        if run is not None:
            held = run.promised[function]
            self.promises.started(run, function, self.now)
            assert run.promised[function] == max(0, held - 1)
            assert run.seen[-1] == function

    @rule(trace=st.sampled_from("uvwxyz"), functions=st.sets(st.sampled_from(FUNCTIONS)))
    def expectations_change(self, trace: str, functions: set[FunctionId]) -> None:
        run = self.promises.get(trace)
        if run is not None:
            self.promises.keep_only(run, functions)
            assert set(run.promised) <= functions

    @rule(trace=st.sampled_from("uvwxyz"))
    def end(self, trace: str) -> None:
        assert self.promises.end(trace) is self.live.pop(trace, None)

    @invariant()
    def live_runs_are_those_that_began_and_did_not_end(self) -> None:
        assert len(self.promises) == len(self.live)
        assert all(self.promises.get(trace) is run for trace, run in self.live.items())

    @invariant()
    def totals_are_the_sum_of_what_live_runs_hold(self) -> None:
        for function in FUNCTIONS:
            assert self.promises.total(function) == sum(run.promised[function] for run in self.live.values())


PromiseBooks.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestPromiseBooks = PromiseBooks.TestCase


def test_no_more_runs_are_held_than_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(promises, "LIVE_RUNS", 3)
    book = Promises()
    for number in range(5):
        book.promise(book.begin(f"t{number}", ACME, FUNCTIONS[0], 0.0), FUNCTIONS[1], 1)
    assert (len(book), book.total(FUNCTIONS[1]), book.get("t1")) == (3, 3, None)
    assert LIVE_RUNS == 10_000


# -- decisions


def plan_of(number: int = 1, tenant: str = "acme", trace: str = "tr") -> PrewarmPlan:
    return PrewarmPlan(
        f"p{number}", TenantId(tenant), FunctionId(f"{tenant}/entry"), Trigger.INVOCATION, "path", float(number), trace_id=trace
    )


def decision(ident: str, name: str = "a", tenant: str = "acme") -> PrewarmDecision:
    return PrewarmDecision(ident, FunctionId(f"{tenant}/{name}"), 1, 256, 0.0, 60.0, "because", EVIDENCE)


def test_a_decision_runs_from_pending_over_ready_to_one_end() -> None:
    book = DecisionLog()
    book.add(plan_of(), decision("d1"), "acme/a:3", "n1")
    assert book.unready("d1")
    assert [one.decision_id for one in book.open_of("acme")] == ["d1"]
    ready = book.update(DecisionUpdate("d1", "ready", 5.0, start_s=0.2, timings=Timings(init=7.0)))
    assert ready is not None
    assert (ready.outcome, ready.ready_at, ready.start_s, ready.timings.init) == (Outcome.READY, 5.0, 0.2, 7.0)
    assert not book.unready("d1")
    assert len(book.open_of("acme")) == 1
    hit = book.update(DecisionUpdate("d1", "hit", 6.0, start_s=1.0, invocation_id="i1"))
    assert hit is not None
    assert (hit.outcome, hit.ended_at, hit.invocation_id, hit.start_s) == (Outcome.HIT, 6.0, "i1", 0.2)
    assert book.open_of("acme") == []
    for late in ("wasted", "cancelled", "ready", "hit"):
        assert book.update(DecisionUpdate("d1", late, 9.0)) is None
    assert book.entries()[0].outcome is Outcome.HIT
    assert book.update(DecisionUpdate("unknown", "hit", 9.0)) is None


def test_a_reader_follows_by_revision_and_misses_nothing() -> None:
    book = DecisionLog()
    seen: dict[str, str] = {}
    after = 0

    def follow() -> None:
        nonlocal after
        for entry in book.read("acme", limit=2, after=after):
            assert entry.revision > after
            after = entry.revision
            seen[entry.decision_id] = entry.outcome

    for number in range(5):
        book.add(plan_of(number), decision(f"d{number}"), "acme/a:1", "n1")
        follow()
    for number in (3, 0, 4):
        book.update(DecisionUpdate(f"d{number}", "ready", 1.0))
        book.update(DecisionUpdate(f"d{number}", "wasted", 2.0))
    for _ in range(4):
        follow()
    assert seen == {"d0": "wasted", "d1": "pending", "d2": "pending", "d3": "wasted", "d4": "wasted"}
    assert after == book.revision


def test_reading_is_by_tenant_function_and_run_newest_last() -> None:
    book = DecisionLog()
    book.add(plan_of(1), decision("d1", "a"), "acme/a:1", "n1")
    book.add(plan_of(2, trace="other"), decision("d2", "b"), "acme/b:1", "n1")
    book.add(plan_of(3, tenant="other"), decision("d3", "a", tenant="other"), "other/a:1", "n1")

    def ids(**what: object) -> list[str]:
        return [one.decision_id for one in book.read(**what)]  # type: ignore[arg-type]

    assert ids(tenant="acme") == ["d1", "d2"]
    assert ids(tenant="acme", function="a") == ["d1"]
    assert ids(tenant="acme", run="other") == ["d2"]
    assert ids(tenant="acme", limit=1) == ["d2"]
    assert ids(tenant="other") == ["d3"]
    assert ids(tenant="nobody") == []


def test_a_lost_node_takes_its_open_decisions_with_it() -> None:
    book = DecisionLog()
    book.add(plan_of(), decision("d1"), "acme/a:1", "n1")
    book.add(plan_of(), decision("d2"), "acme/a:1", "n2")
    book.add(plan_of(), decision("d3"), "acme/a:1", "n1")
    book.update(DecisionUpdate("d3", "ready", 5.0))
    book.lost_node("n1", 9.0)
    assert [one.outcome for one in book.entries()] == [Outcome.CANCELLED, Outcome.PENDING, Outcome.WASTED]
    assert [one.decision_id for one in book.open_of("acme")] == ["d2"]


@pytest.mark.parametrize(("until", "idle_s"), [(103.0, 3.0), (3_700.0, 65.0), (90.0, 0.0)])
def test_a_clock_that_is_set_does_not_make_anything_idle_longer_than_it_may(until: float, idle_s: float) -> None:
    """The bucket of a tenant would be empty for as many busy seconds."""
    book = DecisionLog()
    book.add(plan_of(), decision("d1"), "acme/a:1", "n1")
    assert decision("d1").expires_s == 60.0
    book.update(DecisionUpdate("d1", "ready", 100.0, 0.1), "n1")
    ended = book.update(DecisionUpdate("d1", "wasted", until, 0.1), "n1")
    assert ended is not None
    assert ended.idle_s == idle_s


def test_a_node_speaks_of_its_own_decisions_only() -> None:
    book = DecisionLog()
    book.add(plan_of(), decision("d1"), "acme/a:1", "n1")
    assert book.update(DecisionUpdate("d1", "wasted", 5.0), "n2") is None
    assert book.unready("d1")
    assert book.update(DecisionUpdate("d1", "ready", 5.0), "n1") is not None


def test_only_the_newest_are_kept_and_an_open_one_that_goes_is_not_counted_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "KEPT", 3)
    book = DecisionLog()
    for number in range(5):
        book.add(plan_of(number), decision(f"d{number}"), "acme/a:1", "n1")
    assert [one.decision_id for one in book.entries()] == ["d2", "d3", "d4"]
    assert len(book.open_of("acme")) == 3
    assert book.update(DecisionUpdate("d0", "hit", 1.0)) is None


def test_a_restarted_planner_knows_what_it_decided_and_counts_on_nothing_open() -> None:
    book = DecisionLog()
    for ident, outcome in [("d1", "hit"), ("d2", "ready"), ("d3", "")]:
        book.add(plan_of(), decision(ident), "acme/a:1", "n1")
        if outcome:
            book.update(DecisionUpdate(ident, outcome, 1.0))
    again = DecisionLog([LogEntry(**{name: getattr(one, name) for name in one.__struct_fields__}) for one in book.entries()])
    assert [one.outcome for one in again.entries()] == [Outcome.HIT, Outcome.WASTED, Outcome.CANCELLED]
    assert "restarted" in again.entries()[1].detail
    assert again.open_of("acme") == []
    assert again.add(plan_of(), decision("d4"), "acme/a:1", "n1").revision > book.revision


def test_json_speaks_of_names_without_tenant_and_milliseconds() -> None:
    book = DecisionLog()
    book.add(plan_of(), decision("d1"), "acme/a:3", "n1")
    told = decision_json(book.entries()[0])
    assert (told["function"], told["entry"], told["version"], told["evidence"]["lead_ms"]) == ("a", "entry", 3, 250.0)
    assert (told["ready_at"], told["ended_at"], told["outcome"]) == (None, None, "pending")


# -- runs


def record(ident: str, parent: str = "", trace: str = "tr", tenant: str = "acme", sent_at: float = 0.0) -> InvocationRecord:
    return InvocationRecord(
        tenant, trace, ident, parent, f"{tenant}/f{ident}", 1, sent_at, sent_at + 1.0, StartKind.WARM, "ok", Timings(queue=2.0)
    )


def test_a_run_is_a_tree_of_its_invocations_in_the_order_they_were_sent() -> None:
    book = RunBook()
    for ident, parent, sent_at in [("c", "b", 3.0), ("d", "a", 1.5), ("b", "a", 2.0), ("a", "", 1.0)]:
        book.add(record(ident, parent, sent_at=sent_at))
    tree = book.tree("acme", "tr")
    assert tree is not None
    root = tree["root"]
    assert [child["function"] for child in root["children"]] == ["fd", "fb"]
    assert root["children"][1]["children"][0]["offset_ms"] == 2000.0
    assert (tree["invocations"], tree["starts"], tree["entry"], root["wait_ms"]) == (4, {"warm": 4}, "fa", 2.0)


def test_unfinished_unknown_and_other_peoples_runs_are_not_there() -> None:
    book = RunBook()
    book.add(record("b", "a"))
    assert (book.tree("acme", "tr"), book.list("acme", 10)) == (None, [])
    book.add(record("a"))
    assert book.tree("acme", "tr") is not None
    assert book.tree("other", "tr") is None
    assert book.tree("acme", "unknown") is None
    assert book.list("other", 10) == []


def test_orphans_and_loops_do_not_break_the_tree() -> None:
    book = RunBook()
    for one in [record("a"), record("b", "gone"), record("c", "d"), record("d", "c"), record("a2", "a")]:
        book.add(one)
    tree = book.tree("acme", "tr")
    assert tree is not None
    assert [child["invocation_id"] for child in tree["root"]["children"]] == ["a2"]
    for number in range(1500):
        book.add(record(f"x{number}", f"x{number - 1}" if number else "a"))
    assert book.tree("acme", "tr") is not None


def test_runs_and_records_are_bounded_and_what_is_cut_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "RUNS", 2)
    monkeypatch.setattr(runs, "RECORDS_PER_RUN", 3)
    book = RunBook()
    for trace in ("t1", "t2", "t3"):
        book.add(record("a", trace=trace))
    assert [run["trace_id"] for run in book.list("acme", 10)] == ["t2", "t3"]
    assert [run["trace_id"] for run in book.list("acme", 1)] == ["t3"]
    for number in range(5):
        book.add(record(f"b{number}", "a", trace="t3"))
    assert (len(book.records("t3")), book.cut) == (3, 3)


# -- state


@given(st.binary(max_size=50), st.dictionaries(st.text(max_size=5), st.sampled_from(["path", "off"]), max_size=3))
def test_what_is_saved_is_loaded(graph: bytes, policies: dict[str, str]) -> None:
    book = DecisionLog()
    book.add(plan_of(), decision("d1"), "acme/a:1", "n1")
    whole = PlannerState(FORMAT, graph, book.entries(), {"tr": [record("a")]}, policies)
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder) / "deep" / "state", whole)
        assert load(Path(folder) / "deep" / "state") == whole
        assert [path.name for path in (Path(folder) / "deep").iterdir()] == ["state"]


@pytest.mark.parametrize("content", [None, b"", b"garbage", b"\x81\xa6format\x01", b"\x82\xa6format\x63\xa5graph\xc4\x00"])
def test_what_cannot_be_read_is_a_fresh_start_and_never_an_end(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "state"
    if content is not None:
        path.write_bytes(content)
    assert load(path) is None


def test_a_full_disk_leaves_the_old_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, old = tmp_path / "state", PlannerState(FORMAT, b"old")
    save(path, old)

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(state.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        save(path, PlannerState(FORMAT, b"new"))
    monkeypatch.undo()
    assert load(path) == old
    assert [one.name for one in tmp_path.iterdir()] == ["state"]


# -- instances that a version asked for


def test_an_instance_a_version_asked_for_is_in_the_log_and_takes_nothing_from_the_budget() -> None:
    book = DecisionLog()
    ordered = DeployDecision(VersionId("acme/a:3"), 256, "a1", 2).decision_id
    entry = book.update(DecisionUpdate(ordered, "ready", 5.0, start_s=0.2), "n1")
    assert entry is not None
    assert (entry.tenant, entry.function, entry.version, entry.ordinal) == ("acme", "acme/a", "acme/a:3", 2)
    assert (entry.trigger, entry.node, entry.memory_mb, entry.created_at) == ("deploy", "n1", 256, 4.8)
    assert "initial_instances" in decision_json(entry)["reason"]
    assert book.open_of("acme") == []
    assert [one.decision_id for one in book.read("acme", function="a")] == [ordered]
    assert book.read("rival") == []
    book.update(DecisionUpdate(ordered, "hit", 6.0, invocation_id="i1"))
    assert book.entries()[0].outcome is Outcome.HIT
    assert book.update(DecisionUpdate(ordered, "wasted", 9.0)) is None
    restarted = DecisionLog(book.entries())
    assert restarted.update(DecisionUpdate(ordered, "wasted", 9.0)) is None


def test_one_that_failed_and_one_whose_node_was_lost_end() -> None:
    book = DecisionLog()
    for number, outcome in ((1, "cancelled"), (2, "ready")):
        book.update(DecisionUpdate(DeployDecision(VersionId("acme/a:3"), 256, "a1", number).decision_id, outcome, 5.0), "n1")
    book.lost_node("n1", 6.0)
    assert [one.outcome for one in book.entries()] == [Outcome.CANCELLED, Outcome.WASTED]
