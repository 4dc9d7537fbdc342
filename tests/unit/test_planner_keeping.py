"""Keep-alive by price in the planner: what is learned, what nodes are told and when, what a live plan holds."""

import time
from pathlib import Path

import pytest
from doubles.fleets import ACME, Bench, FakeNode, fid
from doubles.gateways import running_gateway
from doubles.loop import in_loop, until
from doubles.nodes import running_node, spec
from doubles.planners import deploy, running_planner
from hypothesis import given, settings
from hypothesis import strategies as st

from graph.calls import StartKind
from graph.keeping import worth_keeping_s
from orchestrator.planner.anticipation import GOES_S
from orchestrator.planner.keeping import LONGEST_S, LOOK_S, REPEAT_S
from tracing.records import InvocationRecord, Timings

NOW = 1_000_000.0


@pytest.fixture
def bench() -> Bench:
    return Bench(policy="priced")


def record(name: str, at: float, took_s: float = 0.1, status: str = "ok") -> InvocationRecord:
    return InvocationRecord("acme", "t" * 32, "i" * 16, "", fid(name), 1, at, at + took_s, StartKind.WARM, status, Timings())


def called(bench: Bench, name: str, *gaps: float, start_s: float = 0.5) -> None:
    """Deployed, its starts take so long, and it was called after standing idle for so long each time."""
    bench.deploy(name)
    bench.takes(name, start_s)
    at = NOW - 100_000.0
    found = []
    for gap in (0.0, *gaps):
        at += gap
        found.append(record(name, at))
        at += 0.1
    bench.loop.keeping.observe(found)


def tables(node: FakeNode) -> list[dict[str, float]]:
    return [keep_s for _, keep_s, _, _, _ in node.keeps if keep_s is not None]


def test_it_is_kept_for_calls_that_come_soon_and_not_for_the_next_hour(bench: Bench) -> None:
    called(bench, "soon", *[0.5] * 10)
    called(bench, "late", *[3000.0] * 10)
    called(bench, "unknown", 1.0)
    bench.loop.keeping.tick(NOW)
    (table,) = tables(bench.node)
    assert table["acme/late:1"] == 0.0
    assert 0.4 < table["acme/soon:1"] < 1.0
    assert "acme/unknown:1" not in table, "too little is known of it: the node's own keep-alive holds"
    assert bench.loop.keeping.count == 2
    why = {name: bench.loop.keeping.why(fid(name)) for name in ("soon", "late", "unknown")}
    assert "next calls (10 seen) come within 10 minutes, half of them within 0.49" in why["soon"]
    assert "a start takes 500 ms, 128 MB idle meanwhile" in why["soon"]
    assert why["late"].startswith("0% of ")
    assert why["unknown"] == "too few calls to tell when the next one comes"
    bench.loop.policies["acme"] = "path"
    assert bench.loop.keeping.why(fid("soon")) == "", "it is not weighed"


def test_only_changes_are_told_at_a_calm_rate_and_repeated_before_nodes_forget(bench: Bench) -> None:
    called(bench, "soon", *[0.5] * 10)
    bench.loop.keeping.tick(NOW)
    assert len(tables(bench.node)) == 1
    bench.loop.keeping.observe([record("soon", NOW - 1.0)])
    bench.loop.keeping.tick(NOW + 0.1)
    bench.loop.keeping.tick(NOW + LOOK_S)
    assert len(tables(bench.node)) == 1
    called(bench, "late", *[3000.0] * 10)
    bench.loop.keeping.tick(NOW + 1.5 * LOOK_S)
    assert len(tables(bench.node)) == 1, "not yet"
    bench.loop.keeping.tick(NOW + 2 * LOOK_S)
    assert len(tables(bench.node)) == 2
    bench.loop.keeping.tick(NOW + 2 * LOOK_S + REPEAT_S)
    assert tables(bench.node)[1:] == [tables(bench.node)[1]] * 2


def test_a_node_that_comes_again_is_told_again(bench: Bench) -> None:
    called(bench, "late", *[3000.0] * 10)
    bench.loop.keeping.tick(NOW)
    bench.loop.keeping.node_came(bench.node)  # type: ignore[arg-type]
    bench.loop.keeping.tick(NOW + 0.1)
    assert tables(bench.node) == [{"acme/late:1": 0.0}] * 2


def test_switched_back_to_another_policy_the_nodes_keep_as_they_did(bench: Bench) -> None:
    called(bench, "late", *[3000.0] * 10)
    bench.loop.keeping.tick(NOW)
    bench.loop.policies["acme"] = "path"
    bench.loop.keeping.tick(NOW + LOOK_S)
    bench.loop.keeping.tick(NOW + 2 * LOOK_S)
    assert tables(bench.node) == [{"acme/late:1": 0.0}, {}]
    assert bench.loop.keeping.of(fid("late")) is None


@pytest.mark.parametrize("policy", ["path", "off"])
def test_only_tenants_of_the_policy_priced(policy: str) -> None:
    bench = Bench(policy=policy)
    called(bench, "late", *[3000.0] * 10)
    bench.loop.keeping.tick(NOW)
    assert bench.node.keeps == []


def test_it_goes_out_under_the_lease_and_not_while_another_planner_decides() -> None:
    right: list[tuple[str, int] | None] = [None]
    bench = Bench(policy="priced", right=lambda tenant: right[0])
    called(bench, "late", *[3000.0] * 10)
    bench.loop.keeping.tick(NOW)
    assert bench.node.keeps == []
    right[0] = ("planner/0", 7)
    bench.loop.keeping.took_over()
    bench.loop.keeping.tick(NOW + 0.1)
    assert bench.node.keeps == [("acme", {"acme/late:1": 0.0}, {}, "planner/0", 7)]


def test_a_version_or_tenant_that_is_gone_is_not_told(bench: Bench) -> None:
    called(bench, "late", *[3000.0] * 10)
    bench.loop.keeping.tick(NOW)
    bench.table.put(fid("late"), None)
    bench.loop.keeping.tick(NOW + LOOK_S)
    assert tables(bench.node)[-1] == {}
    bench.loop.forget_tenant("acme")
    assert bench.loop.keeping.idle_times.first() == {}
    assert bench.loop.keeping.count == 0


def test_what_a_live_plan_counts_on_is_held_until_its_call_may_come(bench: Bench) -> None:
    for name in ("entry", "first", "second"):
        bench.deploy(name)
    bench.learn("entry", "first", "second", times=40, every_s=2.0)
    called(bench, "second", *[3000.0] * 10)
    bench.loop.keeping.tick(NOW)
    bench.node.have["acme/second:1"] = 1
    bench.starts("entry")
    ((tenant, keep_s, needed_s, _, _),) = [one for one in bench.node.keeps if one[2]]
    assert (tenant, keep_s) == (ACME, None)
    assert needed_s.keys() == {"acme/second:1"}
    assert 2.0 < needed_s["acme/second:1"] < 6.0, "it is called after 2 s"


def test_calls_at_the_same_time_are_no_idle_times(bench: Bench) -> None:
    bench.deploy("busy")
    long = record("busy", NOW - 100.0, took_s=90.0)
    bench.loop.keeping.observe([long, *[record("busy", NOW - 50.0 + number) for number in range(5)]])
    assert bench.loop.keeping.idle_times.first()[fid("busy")].counted == 0
    bench.loop.keeping.observe([record("busy", NOW - 5.0)])
    assert bench.loop.keeping.idle_times.first()[fid("busy")].gaps == (pytest.approx(5.0),)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(0.0, 20_000.0), min_size=0, max_size=30),
    st.floats(0.001, 100.0),
    st.lists(st.booleans(), max_size=30),
)
def test_whatever_came_what_is_told_is_a_time_no_longer_than_the_longest(
    gaps: list[float], start_s: float, refused: list[bool]
) -> None:
    bench = Bench(policy="priced")
    called(bench, "any", *gaps, start_s=start_s)
    bench.loop.keeping.observe(record("any", NOW, status="refused") for _ in refused)
    bench.loop.keeping.tick(NOW)
    for table in tables(bench.node):
        assert all(0.0 <= seconds <= LONGEST_S for seconds in table.values())
    known = bench.loop.keeping.idle_times.first()[fid("any")]
    prices = bench.loop.means.prices
    told = worth_keeping_s(known, prices, 128, bench.loop.forecasts.start_s(fid("any")), LONGEST_S)
    assert bench.loop.keeping.of(fid("any")) == told


@in_loop
async def test_told_over_the_wire_an_instance_goes_early_and_an_open_decision_does_not(tmp_path: Path) -> None:
    late = spec("late")
    async with (
        running_node(tmp_path) as rig,
        running_gateway(rig) as gate,
        running_planner(gate, tmp_path, rig, prewarm="priced") as mind,
    ):
        deploy(gate, mind, late)
        assert (await gate.post("late")).status_code == 200
        keeping = mind.planner.loop.keeping
        keeping.observe([record("late", NOW - 3000.0 * number) for number in range(10, 0, -1)])
        keeping.tick(NOW)
        await until(lambda: rig.node.idling.keeps.of(late.version, time.monotonic()) == 0.0, "the node was told")
        rig.node.idling.sweep(600.0)
        assert len(rig.node.instances.table) == 0
        assert rig.node.idling.ended["price"] == 1


def test_an_entry_that_was_found_idle_is_looked_at_again_when_its_instance_is_gone(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    called(bench, "entry", *[60.0] * 10)
    now = NOW - 1000.0
    monkeypatch.setattr(time, "time", lambda: now)
    for number in range(10):
        bench.starts("entry", f"r{number}")
        now += 0.1
        bench.ends(f"r{number}")
        now += 60.0
    bench.loop.keeping.tick(now)
    kept_s = bench.loop.keeping.of(fid("entry"))
    assert kept_s is not None
    bench.starts("entry", "last")
    bench.node.have["acme/entry:1"] = 1
    bench.node.batches.clear()
    bench.ends("last")
    assert bench.node.ordered == [], "it is idle now"
    bench.node.have.clear()
    now += kept_s + GOES_S + 0.1
    bench.loop.ahead.tick(now)
    now += 60.0 - kept_s - GOES_S - 0.8
    bench.loop.ahead.tick(now)
    assert bench.node.names == ["entry"]
