"""From triggers to orders, with the real graph and a fleet in memory: what is decided, what is not, what is taken back."""

import random

import pytest
from doubles.fleets import ACME, Bench, fid
from doubles.gateways import route
from doubles.nodes import spec
from hypothesis import given, settings
from hypothesis import strategies as st

from graph.ids import FunctionId
from graph.plans import Budget, EdgeSource, Evidence, Trigger
from graph.spending import Spending
from orchestrator.catalog.routes import TenantRoute
from orchestrator.planner.dispatch import needed_in
from orchestrator.planner.purses import Purses
from orchestrator.quotas import OwnQuotas
from tracing.records import InvocationRecord, StartKind, Timings
from workers.rpc.messages import TriggerEvent


@pytest.fixture
def bench() -> Bench:
    return Bench()


# -- the first request


def test_the_first_request_of_declared_calls_prepares_the_whole_path_in_one_batch(bench: Bench) -> None:
    bench.deploy("entry", "a", "b")
    bench.deploy("a", "c")
    bench.deploy("b")
    bench.deploy("c")
    bench.starts("entry")
    assert sorted(bench.node.names) == ["a", "b", "c"]
    assert len(bench.node.batches) == 1
    entries = bench.log.entries()
    assert {one.decision_id for one in entries} == {item.decision_id for item in bench.node.ordered}
    for one in entries:
        assert (one.trigger, one.trace_id, one.entry, one.node, one.outcome) == (
            "invocation",
            "tr",
            fid("entry"),
            "n1",
            "pending",
        )
        assert one.evidence.source is EdgeSource.DECLARED
        assert "declares" in one.reason


def test_a_learned_path_needs_three_runs(bench: Bench) -> None:
    for name in ("entry", "a"):
        bench.deploy(name)
    bench.learn("entry", "a", times=2)
    bench.starts("entry", "early")
    assert bench.node.ordered == []
    bench.learn("entry", "a")
    bench.loop.forecasts.forget()  # kept for a quarter of a second
    bench.starts("entry", "late")
    assert bench.node.names == ["a"]
    assert bench.log.entries()[0].evidence.samples == 3


def test_what_is_not_deployed_is_named_and_left_out(bench: Bench) -> None:
    bench.deploy("entry", "a", "missing")
    bench.deploy("a")
    bench.starts("entry")
    assert bench.node.names == ["a"]
    shown = bench.loop.show(ACME, fid("entry"))
    assert [(one.function, one.why) for one in shown.skipped] == [(fid("missing"), "not deployed")]


def test_nothing_is_known_nothing_is_done(bench: Bench) -> None:
    bench.deploy("alone")
    bench.starts("alone")
    bench.starts("unknown-to-all")
    bench.calls("child-of-nobody", "never-began")
    bench.ends("never-began")
    assert (bench.node.batches, bench.log.entries()) == ([], [])


# -- while it runs


def test_stages_that_start_order_nothing_again(bench: Bench) -> None:
    bench.deploy("entry", "a")
    bench.deploy("a", "b")
    bench.deploy("b", "c")
    bench.deploy("c")
    bench.starts("entry")
    for name in ("a", "b", "c"):
        bench.calls(name)
    assert sorted(bench.node.names) == ["a", "b", "c"]
    assert bench.node.revoked == []
    bench.ends()
    assert [bench.loop.promises.total(fid(name)) for name in "abc"] == [0, 0, 0]


def test_what_is_idle_is_counted_on_and_not_prepared(bench: Bench) -> None:
    bench.deploy("entry", "a", "b")
    bench.deploy("a")
    bench.deploy("b")
    bench.node.have["acme/a:1"] = 1
    assert bench.loop.show(ACME, fid("entry")).ready == (fid("a"),)
    bench.starts("entry")
    assert bench.node.names == ["b"]


def test_two_runs_at_once_never_count_on_the_same_instance(bench: Bench) -> None:
    bench.deploy("entry", "a")
    bench.deploy("a")
    bench.node.have["acme/a:1"] = 1
    bench.starts("entry", "one")
    assert bench.node.names == []
    bench.starts("entry", "two")
    assert bench.node.names == ["a"]
    bench.starts("entry", "three")
    assert bench.node.names == ["a", "a"]
    bench.ends("one")  # it called nothing: its instance is free again
    bench.starts("entry", "four")
    assert bench.node.names == ["a", "a"]


def test_a_branch_not_taken_is_revoked_with_a_reason(bench: Bench) -> None:
    for name in ("entry", "choose", "left", "right"):
        bench.deploy(name)
    for number in range(60):
        bench.learn("entry", "choose", "left" if number % 2 else "right", "left" if number % 2 else "right")
    bench.starts("entry")
    assert {"choose", "left", "right"} <= set(bench.node.names)
    bench.calls("choose")
    assert bench.node.revoked == []
    bench.calls("left")
    assert {one for one, _ in bench.node.revoked} == {bench.decision("right")}
    assert "right" not in bench.node.revoked[0][1]
    assert "after left" in bench.node.revoked[0][1]


def test_a_ready_one_is_not_revoked_it_has_its_lifetime(bench: Bench) -> None:
    for name in ("entry", "left", "right"):
        bench.deploy(name)
    for number in range(60):
        bench.learn("entry", "left" if number % 2 else "right")
    bench.starts("entry")
    bench.tell(bench.decision("right"), "ready", start_s=0.1)
    bench.calls("left")
    bench.ends()
    assert bench.decision("right") not in {one for one, _ in bench.node.revoked}


def test_the_end_of_a_run_takes_back_what_it_did_not_reach(bench: Bench) -> None:
    bench.deploy("entry", "a", "b")
    bench.deploy("a")
    bench.deploy("b")
    bench.starts("entry")
    bench.tell(bench.decision("a"), "hit", invocation_id="i")
    bench.ends()
    assert bench.node.revoked == [(bench.decision("b"), "the run ended without it")]
    bench.ends()
    assert len(bench.node.revoked) == 1


def test_what_a_branch_does_not_need_is_there_for_the_next_run(bench: Bench) -> None:
    for name in ("entry", "left", "right"):
        bench.deploy(name)
    for number in range(60):
        bench.learn("entry", "left" if number % 2 else "right")
    bench.node.have.update({"acme/left:1": 2, "acme/right:1": 1})
    bench.starts("entry", "one")
    bench.calls("left", "one")
    bench.starts("entry", "two")
    assert bench.node.names == []


def test_counting_on_an_idle_one_again_and_again_is_counting_on_one(bench: Bench) -> None:
    bench.deploy("entry", "a", "b", "c")
    for name in "abc":
        bench.deploy(name)
        bench.node.have[f"acme/{name}:1"] = 1
    bench.starts("entry")
    for name in ("b", "c"):
        bench.calls(name)
        assert bench.loop.promises.total(fid("a")) == 1


# -- bounds


def test_the_budget_holds_over_all_runs_of_a_tenant() -> None:
    bench = Bench(Budget(instances=3))
    bench.deploy("entry", "a", "b")
    bench.deploy("a")
    bench.deploy("b")
    for number in range(5):
        bench.starts("entry", f"t{number}")
    assert len(bench.node.ordered) == 3
    bench.tell(bench.decision("a"), "hit")
    bench.starts("entry", "after")
    assert len(bench.node.ordered) == 4


def test_the_budget_of_memory_holds_too_and_the_plan_says_what_it_left_out() -> None:
    bench = Bench(Budget(memory_mb=600))
    bench.deploy("entry", "small", "large")
    bench.deploy("small")
    bench.deploy("large", memory_mb=512)
    bench.starts("entry")
    assert len(bench.node.ordered) == 1
    for number in range(9):
        bench.starts("entry", f"t{number}")
    assert sum({"small": 128, "large": 512}[name] for name in bench.node.names) <= 600
    left_out = bench.loop.show(ACME, fid("entry")).skipped
    assert any("MB" in one.why for one in left_out)


def test_what_is_open_for_one_tenant_is_not_taken_from_another() -> None:
    bench = Bench(Budget(instances=1))
    bench.deploy("entry", "a")
    bench.deploy("a")
    bench.table.put("other/entry", route(spec("entry", tenant="other")))
    bench.table.put("other/a", route(spec("a", tenant="other")))
    bench.graph.declare(FunctionId("other/entry"), [FunctionId("other/a")], 128, 0.0)
    bench.starts("entry")
    bench.loop.on_event(TriggerEvent("other/entry:1", "their", "i", "", 1.0))
    assert [item.version for item in bench.node.ordered] == ["acme/a:1", "other/a:1"]


# -- policy


def test_off_prepares_nothing_and_can_be_set_per_tenant(bench: Bench) -> None:
    bench.deploy("entry", "a")
    bench.deploy("a")
    bench.loop.policies["acme"] = "off"
    bench.starts("entry", "t1")
    bench.calls("a", "t1")
    bench.ends("t1")
    assert bench.node.batches == []
    assert bench.loop.show(ACME, fid("entry")).decisions == ()
    bench.loop.policies["acme"] = "path"
    bench.starts("entry", "t2")
    assert bench.node.names == ["a"]
    quiet = Bench(policy="off")
    quiet.deploy("entry", "a")
    quiet.deploy("a")
    quiet.starts("entry")
    assert quiet.node.batches == []


def test_warming_on_request_prepares_the_entry_and_its_path_whatever_the_policy(bench: Bench) -> None:
    bench.deploy("entry", "a")
    bench.deploy("a")
    bench.loop.policies["acme"] = "off"
    made = bench.loop.warm(ACME, fid("entry"), 3)
    assert sorted(bench.node.names) == ["a", "entry", "entry", "entry"]
    assert (made.trigger, {one.evidence.source for one in made.decisions if one.function == fid("entry")}) == (
        Trigger.WARM,
        {EdgeSource.REQUESTED},
    )
    again = bench.loop.warm(ACME, fid("entry"), 3)
    assert again.decisions == ()
    assert set(again.ready) == {fid("entry"), fid("a")}


def test_showing_a_plan_orders_nothing_and_promises_nothing(bench: Bench) -> None:
    bench.deploy("entry", "a")
    bench.deploy("a")
    shown = bench.loop.show(ACME, fid("entry"))
    assert [one.function for one in shown.decisions] == [fid("a")]
    assert (bench.node.batches, bench.log.entries(), bench.loop.promises.total(fid("a"))) == ([], [], 0)


# -- nodes


def test_without_a_node_nothing_is_decided(bench: Bench) -> None:
    bench.deploy("entry", "a")
    bench.deploy("a")
    bench.node.connection = None  # type: ignore[assignment]
    bench.starts("entry")
    assert (bench.node.batches, bench.log.entries()) == ([], [])


def test_revokes_reach_the_node_that_has_the_order() -> None:
    bench = Bench(nodes=3)
    bench.deploy("entry", "a")
    bench.deploy("a")
    bench.starts("entry")
    bench.ends()
    home = next(node for node in bench.nodes if node.ordered)
    assert [one for one, _ in home.revoked] == [home.ordered[0].decision_id]


def test_how_long_a_start_took_is_learned(bench: Bench) -> None:
    bench.deploy("entry", "a")
    bench.deploy("a")
    bench.starts("entry")
    before = bench.graph.start_s(fid("a"))
    bench.tell(bench.decision("a"), "ready", start_s=2.0)
    assert bench.graph.start_s(fid("a")) > before


# -- any story


STEPS = ["starts", "starts", "calls", "calls", "ends", "ready", "hit", "late", "cancelled", "wasted", "idle", "undeploy"]
steps = st.lists(
    st.tuples(
        st.sampled_from(STEPS),
        st.integers(0, 3),
        st.sampled_from(["a", "b", "c"]),
    ),
    max_size=40,
)


@settings(max_examples=80, deadline=None)
@given(story=steps, pick=st.randoms(use_true_random=False), limit=st.integers(0, 6))
def test_in_any_story_the_books_add_up(story: list[tuple[str, int, str]], pick: random.Random, limit: int) -> None:
    bench = Bench(Budget(instances=limit))
    bench.deploy("entry", "a", "b")
    bench.deploy("a", "c")
    bench.deploy("b")
    bench.deploy("c")
    began: set[str] = set()
    for what, number, name in story:
        trace = f"t{number}"
        if what == "starts" and trace not in began:
            bench.starts("entry", trace)
            began.add(trace)
        elif what == "calls":
            bench.calls(name, trace)
        elif what == "ends":
            bench.ends(trace)
            began.discard(trace)
        elif what == "idle":
            bench.node.have[f"acme/{name}:1"] += 1
        elif what == "undeploy" and name == "c":
            bench.table.put(fid("c"), None)
        elif what in ("ready", "hit", "late", "cancelled", "wasted") and bench.log.entries():
            bench.tell(pick.choice(bench.log.entries()).decision_id, what)
        assert len(bench.log.open_of("acme")) <= limit
        ids = [item.decision_id for item in bench.node.ordered]
        assert len(ids) == len(set(ids)) == len(bench.log.entries())
        assert set(bench.node.names) <= {"a", "b", "c"}
        for each in "abc":
            held = sum(run.promised[fid(each)] for run in bench.loop.promises._runs.values())
            assert bench.loop.promises.total(fid(each)) == held >= 0
    for trace in list(began):
        bench.ends(trace)
    assert len(bench.loop.promises) == 0
    assert all(bench.loop.promises.total(fid(each)) == 0 for each in "abc")
    pending = {one.decision_id for one in bench.log.entries() if one.outcome == "pending"}
    assert pending <= {one for one, _ in bench.node.revoked}, "what nobody waits for any more was taken back"


def test_an_unlikely_branch_is_prepared_behind_a_certain_stage_that_comes_a_little_later() -> None:
    def evidence(reach: float, lead_s: float | None) -> Evidence:
        return Evidence(EdgeSource.LEARNED, reach, reach, 100, lead_s)

    assert needed_in(evidence(1.0, 0.013)) < needed_in(evidence(0.25, 0.008))
    assert needed_in(evidence(1.0, 0.008)) < needed_in(evidence(1.0, 0.013))
    assert needed_in(evidence(1.0, None)) < needed_in(evidence(0.5, None))


# -- quotas


def test_a_tenants_own_rate_of_idle_seconds_is_what_it_earns(bench: Bench) -> None:
    bench.deploy("entry")
    accounts = bench.loop.accounts
    for rate, earned_s in ((None, 10.0), (0.5, 5.0), (3.0, 30.0), (0.0, 0.0)):
        bench.table.change("tenant", "acme", TenantRoute("acme", 1, OwnQuotas(prewarm_idle_s_per_busy_s=rate)))
        accounts.purses = bench.loop.means.purses = Purses({"acme": Spending(left_s=100.0)})
        ran = InvocationRecord(ACME, "tr", "i", "", fid("entry"), 1, 0.0, 10.0, StartKind.WARM, "ok", Timings(run=10_000.0))
        accounts.purses.earn([ran], bench.loop.means.whole(ACME))
        told = bench.loop.means.told(ACME)["spending"]
        assert told["idle_s_per_busy_s"] == (1.0 if rate is None else rate)
        assert told["left_s"] == (100.0 + earned_s if rate != 0.0 else 0.0)


def test_a_tenants_quota_of_prewarmed_instances_bounds_its_plans_and_says_so(bench: Bench) -> None:
    for name in "abc":
        bench.deploy(name)
    bench.deploy("entry", "a", "b", "c")
    bench.table.change("tenant", "acme", TenantRoute("acme", 1, OwnQuotas(prewarm_instances=2)))
    bench.starts("entry")
    assert len(bench.node.ordered) == 2
    shown = bench.loop.show(ACME, fid("entry"))
    assert {one.why for one in shown.skipped} == {"the budget of 0 instances is used up"}
    bench.table.change("tenant", "acme", TenantRoute("acme", 2, OwnQuotas(prewarm_instances=0)))
    bench.starts("entry", "tr2")
    assert len(bench.node.ordered) == 2
    bench.table.change("tenant", "acme", None)
    bench.starts("entry", "tr3")
    assert len(bench.node.ordered) > 2
