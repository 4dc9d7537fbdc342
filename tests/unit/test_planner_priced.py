"""The policy `priced` in the planner's loop: delayed orders, standbys, what is moved, released, backed off and taken again."""

import random
import time

import msgspec
import pytest
from doubles.fleets import ACME, Bench, fid
from hypothesis import given, settings
from hypothesis import strategies as st

from graph import backoff
from graph.backoff import LONGEST_S
from graph.calls import StartKind
from graph.plans import Budget
from orchestrator.planner.dispatch import TRAVEL_S
from orchestrator.planner.foresight import Foresight
from orchestrator.planner.learned import Learned
from orchestrator.planner.log import DecisionLog, LogEntry
from orchestrator.planner.setbacks import Setbacks
from tracing.records import InvocationRecord, Timings
from workers.rpc.messages import DecisionUpdate


@pytest.fixture
def bench() -> Bench:
    return Bench(policy="priced")


def chain(bench: Bench, *names: str, every_s: float = 2.0, times: int = 40, start_s: float = 0.1) -> None:
    """`entry` calls these one after the other; their starts take `start_s`."""
    for name in ("entry", *names):
        bench.deploy(name)
    bench.learn("entry", *names, times=times, every_s=every_s)
    for name in names:
        bench.takes(name, start_s)


# -- in time


def test_what_is_needed_later_is_ordered_with_a_delay(bench: Bench) -> None:
    chain(bench, "first", "second")
    bench.starts("entry")
    delays = dict(zip(bench.node.names, [item.delay_s for item in bench.node.ordered], strict=True))
    assert delays["first"] == 0.0
    assert 1.5 < delays["second"] < 2.0, "it is called after 2 s and takes 0.1 s"
    assert {item.trace_id for item in bench.node.ordered} == {"tr"}
    one = next(one for one in bench.log.entries() if one.function == fid("second"))
    assert one.start_in_s == pytest.approx(delays["second"] + TRAVEL_S)
    assert len(one.evidence.lead_quantiles_s) == 5
    assert one.evidence.alternatives
    assert one.evidence.kappa > 0


def test_an_order_for_later_is_not_counted_as_an_instance_and_not_ordered_twice(bench: Bench) -> None:
    chain(bench, "first", "second")
    bench.starts("entry")
    assert bench.node.have["acme/second:1"] == 0
    bench.calls("first")
    bench.calls("first", "nobody's")
    taken_back = {one for one, _ in bench.node.revoked}
    assert len([one for one in bench.log.open_of("acme") if one.decision_id not in taken_back]) == 2
    bench.starts("entry", "other")
    assert bench.node.names.count("second") >= 2, "another run does not count on it"
    bench.ends()
    bench.ends("other")
    assert bench.loop.promises.total(fid("second")) == 0


def test_when_a_stage_is_late_what_follows_is_moved(bench: Bench) -> None:
    chain(bench, "first", "second", "third")
    bench.starts("entry")
    before = {item.decision_id: item.delay_s for item in bench.node.ordered}
    run = bench.loop.promises.get("tr")
    assert run is not None
    run.began -= 3.0  # three seconds have passed, and `second` was due after two
    for one in bench.log.entries():
        one.created_at -= 3.0
    bench.calls("first")
    moved = [why for one, why in bench.node.revoked if one in before and "moved" in why]
    again = [item for item in bench.node.ordered if item.decision_id not in before]
    assert {item.version for item in again} <= {"acme/second:1", "acme/third:1"}
    assert len(moved) == len(again)


def test_the_losers_of_a_branch_are_released_even_when_they_are_ready() -> None:
    bench = Bench(policy="priced")
    for name in ("entry", "choose", "left", "right"):
        bench.deploy(name)
        bench.takes(name, 1.0)
    for number in range(60):
        bench.learn("entry", "choose", "left" if number % 2 else "right", every_s=0.2)
    bench.starts("entry")
    assert {"left", "right"} <= set(bench.node.names)
    bench.tell(bench.decision("right"), "ready", start_s=0.1, source="clone")
    bench.calls("choose")
    bench.calls("left")
    assert bench.decision("right") in bench.node.released
    bench.tell(bench.decision("right"), "wasted")
    bench.ends()
    assert bench.decision("right") not in bench.node.released[bench.node.released.index(bench.decision("right")) + 1 :]


def test_a_run_that_ends_releases_all_it_did_not_use(bench: Bench) -> None:
    chain(bench, "first", "second")
    bench.starts("entry")
    bench.tell(bench.decision("first"), "ready", start_s=0.1, source="clone")
    bench.ends()
    assert set(bench.node.released) == {bench.decision("first"), bench.decision("second")}


# -- standbys


def branching(bench: Bench, ways: int = 4, standby_s: float = 0.01) -> list[str]:
    names = [f"way{number}" for number in range(ways)]
    for name in ("entry", *names):
        bench.deploy(name)
    for number in range(80):
        bench.learn("entry", names[number % ways])
    for name in names:
        bench.takes(name, 0.2)
        bench.takes(name, standby_s, "process/standby")
        bench.loop.accounts.sources._add(fid(name), "process/clone/tier1", 0.2)
    bench.loop.accounts.sources._clone_s["process"] = 0.02
    return names


def test_branches_that_compete_share_a_standby_for_their_run(bench: Bench) -> None:
    names = branching(bench)
    bench.starts("entry")
    levels = {item.level for item in bench.node.ordered}
    assert levels == {"standby"}, [(one.function, one.reason) for one in bench.log.entries()]
    one = bench.log.entries()[0]
    assert (one.level, set(one.covers)) == ("standby", {fid(name) for name in names})
    assert bench.node.have == {}, "it is an instance of nothing yet"
    bench.tell(one.decision_id, "ready", source="standby")
    bench.calls("way1")
    assert one.decision_id not in bench.node.released, "the stage is about to take it"
    bench.tell(one.decision_id, "hit", invocation_id="i", became="acme/way1:1")
    run = bench.loop.promises.get("tr")
    assert run is not None
    assert run.used == {fid("way1"): 1}
    bench.ends()
    assert (bench.node.released, bench.log.open) == ([], 0)


def test_standbys_that_are_free_anyhow_are_counted_on(bench: Bench) -> None:
    branching(bench)
    bench.node.free_standbys = {("acme", 128): 2, ("other", 128): 9}
    bench.starts("entry")
    assert bench.node.ordered == []


def test_a_function_with_a_template_needs_no_standby(bench: Bench) -> None:
    for name in branching(bench):
        bench.loop.accounts.sources._add(fid(name), "process/template", 0.004)
    bench.starts("entry")
    assert "standby" not in {item.level for item in bench.node.ordered}


# -- what goes wrong


def test_a_function_whose_init_keeps_failing_rests_and_the_plan_says_so(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backoff, "FIRST_S", 60.0)
    chain(bench, "first")
    for number in range(2):
        bench.starts("entry", f"t{number}")
        bench.tell(bench.decision("first", number), "cancelled", detail="init-failed: ImportError: no such thing")
        bench.node.have.clear()
        bench.ends(f"t{number}")
    ordered = len(bench.node.ordered)
    bench.starts("entry", "t3")
    assert len(bench.node.ordered) == ordered
    why = next(one.why for one in bench.loop.show(ACME, fid("entry")).skipped)
    assert "failed 2 times in a row" in why
    assert "ImportError" in why
    record = InvocationRecord("acme", "x", "i", "", "acme/first", 1, 0.0, 1.0, StartKind.COLD, "ok", Timings(), "n1")
    bench.loop.accounts.records([record])
    bench.starts("entry", "t4")
    assert len(bench.node.ordered) == ordered + 1


def test_setbacks_rest_longer_each_time_up_to_a_bound_and_each_try_waits_for_its_outcome() -> None:
    setbacks, now, rests = Setbacks(), 0.0, []
    for _ in range(14):
        assert setbacks.resting("acme/f:1", now) == ""
        setbacks.tried("acme/f:1", now)
        setbacks.failed("acme/f:1", "no", now)
        rest = 0.0
        while setbacks.resting("acme/f:1", now + rest):
            rest += 1.0
        rests.append(rest)
        now += rest
    assert rests[0] == 0.0, "one failure may be chance"
    assert rests[1] > 0.0
    assert rests == sorted(rests)
    assert rests[-1] <= LONGEST_S
    setbacks.tried("acme/f:1", now)
    assert setbacks.resting("acme/f:1", now), "one at a time"
    assert setbacks.resting("acme/f:2", now) == ""


def test_a_node_lost_while_an_order_waits_for_its_time_is_replaced_with_what_is_left_of_it() -> None:
    bench = Bench(policy="priced", nodes=2)
    chain(bench, "first", "second", every_s=30.0)
    bench.starts("entry")
    one = next(one for one in bench.log.entries() if one.function == fid("second"))
    one.created_at -= 10.0
    gone = next(node for node in bench.nodes if node.name == one.node)
    other = next(node for node in bench.nodes if node is not gone)
    gone.connection = None  # type: ignore[assignment]
    lost = bench.log.lost_node(gone.name, time.time())
    bench.loop.decide_again(lost, gone.name)
    again = next(item for item in other.ordered if item.decision_id.endswith("-again") and "second" in item.version)
    assert 15.0 < again.delay_s < one.start_in_s - 9.0
    bench.ends()
    assert again.decision_id in other.released
    assert bench.loop.promises.total(fid("second")) == 0


def test_without_another_node_nothing_is_counted_on_any_more(bench: Bench) -> None:
    chain(bench, "first", "second")
    bench.starts("entry")
    bench.node.connection = None  # type: ignore[assignment]
    bench.loop.decide_again(bench.log.lost_node("n1", time.time()), "n1")
    assert [bench.loop.promises.total(fid(name)) for name in ("first", "second")] == [0, 0]
    assert bench.log.open == 0


def test_while_another_planner_decides_nothing_is_ordered_moved_or_released() -> None:
    mine = [True]
    bench = Bench(policy="priced", right=lambda tenant: ("", 0) if mine[0] else None)
    chain(bench, "first", "second")
    bench.starts("entry")
    ordered, revoked = len(bench.node.ordered), len(bench.node.revoked)
    mine[0] = False
    bench.calls("first")
    bench.ends()
    bench.starts("entry", "later")
    assert (len(bench.node.ordered), len(bench.node.revoked)) == (ordered, revoked)
    assert bench.loop.promises.total(fid("second")) == 0


# -- what it comes to


def test_predictions_are_held_against_what_runs_did(bench: Bench) -> None:
    chain(bench, "first", "second")
    for number in range(30):
        bench.starts("entry", f"t{number}")
        bench.calls("first", f"t{number}")
        bench.calls("unforeseen", f"t{number}")
        bench.ends(f"t{number}")
    told = bench.loop.told("acme")
    of = {one["function"]: one for one in told["functions"]}
    assert of["first"]["runs"] == 30
    assert of["first"]["predicted"] == pytest.approx(1.0, abs=0.01)
    assert of["first"]["observed"] == 1.0
    assert of["second"]["observed"] == 0.0
    assert (of["unforeseen"]["predicted"], of["unforeseen"]["observed"]) == (0.0, 1.0)
    assert told["error"] > 0.5


def test_what_stood_idle_and_what_was_waited_for_has_a_price(bench: Bench) -> None:
    chain(bench, "first")
    bench.starts("entry")
    now = time.time()
    ident = bench.decision("first")
    updates = (DecisionUpdate(ident, "ready", now, 0.1, source="clone"), DecisionUpdate(ident, "wasted", now + 8.0))
    bench.loop.on_outcomes(updates)
    cold = Timings(clone=20.0, code=10.0, init=970.0, code_from="tier1")
    record = InvocationRecord("acme", "x", "i", "", "acme/first", 1, 0.0, 1.0, StartKind.COLD, "ok", cold, "n1")
    bench.loop.accounts.records([record])
    one = next(one for one in bench.loop.told("acme")["functions"] if one["function"] == "first")
    assert (one["idle_s"], one["wasted_s"], one["cold"]) == (pytest.approx(8.0), pytest.approx(8.0), 1)
    assert one["idle_cost"] == pytest.approx(8.0 * 128 / 1024)
    assert one["wait_cost"] == pytest.approx(19.0)
    assert bench.graph.starts(fid("first")).samples("process/clone/tier1")[-1] == pytest.approx(1.0)


# -- what may be spent


def test_a_tenant_that_spent_its_idle_seconds_prepares_no_more_until_it_was_busy(bench: Bench) -> None:
    for name in ("entry", "first"):
        bench.deploy(name)
    for number in range(40):  # nobody knows when it is called: whatever is prepared is going to idle
        bench.learn("entry", "unknown", "first", every_s=0.2 + number / 10)
    bench.takes("first", 0.5)
    bench.starts("entry")
    ident, now = bench.decision("first"), time.time()
    decided = bench.log.one("acme", ident)
    assert decided is not None
    decided.expires_s = 400.0
    idle_for = (DecisionUpdate(ident, "ready", now, 0.1, source="clone"), DecisionUpdate(ident, "wasted", now + 400.0))
    bench.loop.on_outcomes(idle_for)
    bench.ends()
    bench.node.have.clear()
    ordered = len(bench.node.ordered)
    told = bench.loop.means.told("acme")["spending"]
    assert (told["spent_s"], told["left_s"]) == (pytest.approx(400.0), 0.0)
    assert told["dearer"] > 1
    bench.starts("entry", "poor")
    assert len(bench.node.ordered) == ordered
    busy = InvocationRecord("acme", "x", "i", "", "acme/first", 1, 0.0, 150.0, StartKind.WARM, "ok", Timings(run=150_000.0), "n1")
    bench.loop.accounts.records([busy])
    bench.starts("entry", "rich")
    assert len(bench.node.ordered) == ordered + 1


def test_another_tenants_idling_costs_this_one_nothing(bench: Bench) -> None:
    chain(bench, "first")
    poor = bench.loop.accounts.purses
    bench.starts("entry")
    one = bench.log.entries()[0]
    poor.pay(msgspec.structs.replace(one, tenant="rival", ready_at=1.0, ended_at=1000.0, expires_s=1000.0))
    assert bench.loop.means.told("acme")["spending"]["spent_s"] == 0.0
    assert bench.loop.means.told("rival")["spending"]["left_s"] == 0.0


# -- before the request


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def returning(bench: Bench, gaps: list[float], monkeypatch: pytest.MonkeyPatch, entry: str = "entry") -> Clock:
    """The entry ran and came back after each of these gaps; the clock stands at the end of its last run."""
    clock = Clock()
    monkeypatch.setattr("orchestrator.planner.anticipation.time.time", clock)
    for number, gap in enumerate([0.0, *gaps]):
        clock.now += gap
        bench.starts(entry, f"past{number}")
        clock.now += 0.1
        bench.ends(f"past{number}")
    return clock


def test_an_entry_with_a_timer_is_prepared_just_before_it_fires(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.deploy("entry")
    bench.takes("entry", 0.5)
    clock = returning(bench, [60.0] * 12, monkeypatch)
    assert bench.node.ordered == []
    ended = clock.now
    for _ in range(600):
        clock.now += 0.1
        bench.loop.ahead.tick(clock.now)
        if bench.node.ordered:
            break
    (item,) = bench.node.ordered
    assert 54.0 < clock.now - ended + item.delay_s < 60.0, "it takes half a second, and is due a minute after the last start"
    (one,) = bench.log.entries()
    assert (one.trigger, one.function, one.evidence.source) == ("timer", fid("entry"), "predicted")
    bench.starts("entry", "it came")
    assert [what for what, why in bench.node.revoked] == ([item.decision_id] if item.delay_s else [])


def test_an_entry_that_comes_when_it_likes_is_not_prepared_for_hours(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.deploy("entry")
    bench.takes("entry", 0.05)
    clock = returning(bench, [10.0 * 3**number for number in range(6)], monkeypatch)
    idle = sum(item.expires_s for item in bench.node.ordered)
    for _ in range(200):
        clock.now += 5.0
        bench.loop.ahead.tick(clock.now)
    assert sum(item.expires_s for item in bench.node.ordered) - idle < 60.0


def test_only_the_priced_policy_plans_before_the_request(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.deploy("entry")
    bench.takes("entry", 0.5)
    bench.loop.policies["acme"] = "path"
    clock = returning(bench, [60.0] * 12, monkeypatch)
    for _ in range(130):
        clock.now += 0.5
        bench.loop.ahead.tick(clock.now)
    assert bench.node.ordered == []


def test_what_is_foreseen_outlives_the_planner(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.deploy("entry")
    returning(bench, [60.0] * 12, monkeypatch)
    written = msgspec.msgpack.decode(msgspec.msgpack.encode(bench.loop.learned()), type=Learned)
    again = Bench(policy="priced", kept=written)
    assert again.loop.ahead.foresight.all()[fid("entry")].counts == bench.loop.ahead.foresight.all()[fid("entry")].counts
    assert again.loop.ahead.foresight.forecast(fid("entry"), 1e9) is None, "how the last run ended was not seen"


@settings(max_examples=60, deadline=None)
@given(
    story=st.lists(
        st.tuples(st.sampled_from(["starts", "ends", "wake", "due"]), st.integers(0, 3), st.floats(0.0, 50.0)), max_size=60
    )
)
def test_each_is_looked_at_once_when_it_is_due_and_never_while_it_runs(story: list[tuple[str, int, float]]) -> None:
    foresight, now, due = Foresight(), 1000.0, dict[str, float]()
    for what, number, seconds in story:
        entry = fid(f"e{number}")
        if what == "starts":
            foresight.started(entry, now)
            due.pop(entry, None)
        elif what == "ends":
            foresight.ended(entry, now)
        elif what == "wake":
            foresight.wake(entry, now + seconds)
            if entry in foresight.all():
                due[entry] = now + seconds
        else:
            now += seconds
            found = foresight.due(now)
            assert sorted(found) == sorted(one for one, at in due.items() if at <= now)
            due = {one: at for one, at in due.items() if at > now}
        assert len(foresight._heap) <= 2 * len(due) + 65


# -- any story

STEPS = ["starts", "starts", "calls", "calls", "ends", "ready", "hit", "late", "cancelled", "wasted", "idle", "node", "policy"]
steps = st.lists(
    st.tuples(st.sampled_from(STEPS), st.integers(0, 3), st.sampled_from(["a", "b", "c"])),
    max_size=40,
)


@settings(max_examples=60, deadline=None)
@given(story=steps, pick=st.randoms(use_true_random=False), limit=st.integers(0, 6))
def test_in_any_story_no_count_goes_below_nothing_and_nothing_stays_open(
    story: list[tuple[str, int, str]], pick: random.Random, limit: int
) -> None:
    bench = Bench(Budget(instances=limit), policy="priced", nodes=2)
    for name in ("entry", "a", "b", "c"):
        bench.deploy(name)
        bench.takes(name, 0.3)
        bench.takes(name, 0.01, "process/standby")
        bench.loop.accounts.sources._add(fid(name), "process/clone/tier1", 0.3)
    bench.loop.accounts.sources._clone_s["process"] = 0.02
    for number in range(30):
        bench.learn("entry", "a", "b" if number % 3 else "c", every_s=0.5)
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
            pick.choice(bench.nodes).have[f"acme/{name}:1"] += 1
        elif what == "node":
            node = pick.choice(bench.nodes)
            if node.connection is not None:
                node.connection = None  # type: ignore[assignment]
                bench.loop.decide_again(bench.log.lost_node(node.name, time.time()), node.name)
            else:
                node.connection = object()
        elif what == "policy":
            bench.loop.policies["acme"] = pick.choice(["path", "priced", "off"])
        elif what in ("ready", "hit", "late", "cancelled", "wasted") and bench.log.entries():
            one = pick.choice(bench.log.entries())
            bench.tell(one.decision_id, what, became=f"{one.covers[0]}:1" if one.covers else "")
        given_up = {one for node in bench.nodes for one, _ in node.revoked}
        assert len([one for one in bench.log.open_of("acme") if one.decision_id not in given_up]) <= limit
        for each in "abc":
            held = [run.promised[fid(each)] for run in bench.loop.promises._runs.values()]
            assert min(held, default=0) >= 0
            assert bench.loop.promises.total(fid(each)) == sum(held)
    for trace in list(began):
        bench.ends(trace)
    assert len(bench.loop.promises) == 0
    assert all(bench.loop.promises.total(fid(each)) == 0 for each in "abc")
    taken_back = {one for node in bench.nodes for one, _ in node.revoked}
    left = {one.decision_id for one in bench.log.entries() if one.outcome == "pending" and one.trace_id}
    assert left <= taken_back, "what nobody waits for any more was taken back"


def test_a_planner_that_restarts_with_orders_for_later_pending_counts_on_none_of_them(bench: Bench) -> None:
    chain(bench, "first", "second")
    bench.starts("entry")
    again = Bench(policy="priced")
    again.log = DecisionLog(msgspec.msgpack.decode(msgspec.msgpack.encode(bench.log.entries()), type=list[LogEntry]))
    assert again.log.open_of("acme") == []
    assert {one.outcome for one in again.log.entries()} == {"cancelled"}
    assert {one.detail for one in again.log.entries()} == {"the planner restarted"}
    late = DecisionUpdate(bench.decision("second"), "ready", time.time(), 0.1, source="clone")
    assert again.log.update(late, "n1") is None, "what begins all the same is nobody's decision any more"
