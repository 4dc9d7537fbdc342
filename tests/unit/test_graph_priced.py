"""The priced policy: what it costs, what it never exceeds, and how a plan is revised."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graph.planning import plan, revise
from graph.plans import Budget, EdgeSource, ExpectedCall, Held, Level, Prices, Standbys, Trigger

NO_BOUND = Budget(instances=10_000, memory_mb=10_000_000)


def call(name, reach=1.0, offsets=(), starts=(), concurrent=None, memory_mb=1024, start_s=None, **more):
    return ExpectedCall(
        function=f"t/{name}",
        reach=reach,
        concurrent=concurrent or (reach,),
        offsets_s=tuple(sorted(offsets)),
        samples=143,
        weight=143.0,
        source=EdgeSource.LEARNED,
        memory_mb=memory_mb,
        start_s=(sum(starts) / len(starts) if starts else 0.03) if start_s is None else start_s,
        starts_s=tuple(sorted(starts)),
        **more,
    )


def make(expected, prices=None, budget=NO_BOUND, idle=None, **more):
    more = {"tenant": "t", "entry": "t/checkout", "trigger": Trigger.INVOCATION, "plan_id": "p", "policy": "priced"} | more
    return plan(expected, prices or Prices(), budget, idle or {}, 100.0, **more)


def again(open_decisions, expected, prices=None, budget=NO_BOUND, idle=None, now=100.0, **more):
    more = {"tenant": "t", "entry": "t/checkout", "trigger": Trigger.INVOCATION, "plan_id": "q", "policy": "priced"} | more
    return revise(open_decisions, expected, prices or Prices(), budget, idle or {}, now, **more)


# -- an independent reference: costs by enumerating every sample and every start


def reference_points(starts, mean):
    if len(starts) < 4:
        return [mean] * 4
    ordered = sorted(starts)
    return [ordered[math.floor((part + 0.5) / 4 * len(ordered))] for part in range(4)]


def reference_cost(at, needed, samples, points, idle_price, late):
    """Of preparing `at` seconds from now; None: never."""
    total, mean = 0.0, sum(points) / len(points)
    for start in points:
        for sample in samples:
            if at is None:
                total += needed * late * mean
                continue
            ready = at + start
            if sample < at:
                waits, idles = mean, 0.0
            elif sample < ready:
                waits, idles = ready - sample, 0.0
            else:
                waits, idles = 0.0, sample - ready
            total += needed * (late * waits + idle_price * idles)
            total += (1 - needed) * idle_price * max(0.0, max(samples) + 0.05 - ready)
    return total / len(points) / len(samples)


times = st.floats(0.001, 5.0)
shares = st.floats(0.001, 1.0)
money = st.floats(0.01, 100.0)
starts_s = st.lists(st.floats(0.001, 1.0), min_size=1, max_size=12)


@st.composite
def calls(draw, most=8):
    made = []
    for number in range(draw(st.integers(1, most))):
        tail = sorted(draw(st.lists(shares, min_size=1, max_size=3)), reverse=True)
        made.append(
            call(
                f"f{number}",
                tail[0],
                draw(st.lists(times, max_size=20)),
                draw(starts_s),
                tuple(tail),
                draw(st.sampled_from([128, 512, 2048])),
                standby_s=draw(st.none() | st.floats(0.0005, 0.5)),
            )
        )
    return made


@settings(deadline=None)
@given(shares, st.lists(times, min_size=1, max_size=20), starts_s, money, money, st.sampled_from([128, 1024]))
def test_the_chosen_moment_costs_no_more_than_now_never_or_any_sample_point(reach, samples, starts, idle, late, memory_mb):
    prices = Prices(idle, late)
    made = make([call("a", reach, samples, starts, memory_mb=memory_mb)], prices)
    points = reference_points(starts, sum(starts) / len(starts))
    idle_price, mean = idle * memory_mb / 1024, sum(points) / 4
    moments = [None, 0.0] + [max(0.0, sample - mean) for sample in samples]
    costs = {at: reference_cost(at, reach, samples, points, idle_price, late) for at in moments}
    never = costs[None]
    if not made.decisions:
        assert min(costs.values()) >= never - 1e-6 * (1 + never)
        return
    [decision] = made.decisions
    evidence = decision.evidence
    chosen = reference_cost(decision.start_in_s, reach, samples, points, idle_price, late)
    assert chosen <= min(costs.values()) + 1e-6 * (1 + chosen)
    assert evidence.wait_cost + evidence.idle_cost == pytest.approx(chosen, rel=1e-6, abs=1e-9)
    assert evidence.price == pytest.approx(chosen - never, rel=1e-6, abs=1e-6 * (1 + never))
    for alternative in evidence.alternatives:
        at = alternative.start_in_s
        assert alternative.cost == pytest.approx(reference_cost(at, reach, samples, points, idle_price, late), rel=1e-6, abs=1e-9)
        assert alternative.cost >= chosen - 1e-9


@settings(deadline=None)
@given(calls(), money, st.floats(1.0, 50.0), st.integers(0, 10))
def test_a_higher_price_of_idling_never_prepares_more_nor_earlier(expected, idle, times_dearer, count):
    budget = Budget(instances=count, memory_mb=10_000_000)
    cheap, dear = make(expected, Prices(idle), budget), make(expected, Prices(idle * times_dearer), budget)
    assert len(dear.decisions) <= len(cheap.decisions)
    cheap, dear = make(expected, Prices(idle)), make(expected, Prices(idle * times_dearer))
    before = {(one.function, one.ordinal): one for one in cheap.decisions}
    for one in dear.decisions:
        assert (one.function, one.ordinal) in before
        assert one.start_in_s >= before[one.function, one.ordinal].start_in_s - 1e-9
    assert dear.expected_idle_s <= cheap.expected_idle_s + 1e-9


@settings(deadline=None)
@given(
    calls(),
    st.integers(0, 6),
    st.integers(0, 6000),
    st.floats(0.0, 3.0),
    st.booleans(),
    st.dictionaries(st.integers(0, 8), st.integers(0, 3)),
    st.floats(0.0, 6.0),
)
def test_a_plan_is_within_its_budget_takes_idle_ones_off_and_is_the_same_again(
    expected, count, memory, idle_s, shared, held, elapsed
):
    budget = Budget(instances=count, memory_mb=memory, idle_s=idle_s)
    idle = {f"t/f{number}": free for number, free in held.items()}
    standbys = Standbys(0.004) if shared else None
    made = make(expected, budget=budget, idle=idle, standbys=standbys, elapsed_s=elapsed)
    assert made == make(expected, budget=budget, idle=idle, standbys=standbys, elapsed_s=elapsed)
    assert len(made.decisions) <= count
    assert sum(one.memory_mb for one in made.decisions) <= memory
    assert made.expected_idle_s <= idle_s + 1e-9
    assert [one.decision_id for one in made.decisions] == [f"p-{n}" for n in range(1, len(made.decisions) + 1)]
    for one in made.decisions:
        assert one.start_in_s >= 0.0
        assert 0.0 < one.expires_s <= budget.unused_s
        assert 0.0 <= one.evidence.reach <= 1.0
        assert one.evidence.price < 0.0
        if one.level is Level.READY:
            assert one.ordinal > idle.get(one.function, 0)
        else:
            assert shared
            assert one.covers
    told = {one.function for one in made.decisions} | set(made.ready) | {one.function for one in made.skipped}
    told |= {function for one in made.decisions for function in one.covers}
    left_to_free_ones = {one.function for one in expected if one.standby_s is not None} if shared else set()
    assert {one.function for one in expected} - left_to_free_ones <= told


@settings(deadline=None)
@given(calls(), st.booleans(), st.floats(0.0, 2.0))
def test_revising_at_once_gives_nothing_up(expected, shared, elapsed):
    standbys = Standbys(0.004) if shared else None
    made = make(expected, standbys=standbys, elapsed_s=elapsed)
    held = [Held(one, 100.0) for one in made.decisions]
    revised = again(held, expected, standbys=standbys, elapsed_s=elapsed)
    assert sorted(revised.kept) == sorted(one.decision_id for one in made.decisions)
    assert revised.cancelled == ()
    if not shared:  # with standbys that are there by now, what is left may be worth sharing otherwise
        assert revised.plan.decisions == ()


@settings(deadline=None)
@given(calls(), calls(), st.floats(0.0, 4.0), st.integers(0, 6), st.lists(st.booleans(), min_size=30, max_size=30))
def test_every_open_decision_is_kept_or_cancelled_and_the_bounds_hold_for_both_together(before, after, passed, count, states):
    made = make(before, standbys=Standbys(0.004))
    held = []
    for one, ready in zip(made.decisions, states, strict=False):
        late = one.start_in_s + 0.5 <= passed
        held.append(Held(one, 100.0, ready_at=100.0 + passed if late and ready else None))
    budget = Budget(instances=count, memory_mb=10_000_000)
    revised = again(held, after, budget=budget, now=100.0 + passed, elapsed_s=passed, standbys=Standbys(0.004))
    gone = [decision_id for decision_id, _ in revised.cancelled]
    assert sorted([*gone, *revised.kept]) == sorted(one.decision.decision_id for one in held)
    assert len(revised.plan.decisions) <= max(0, count - len(revised.kept))
    assert all(why for _, why in revised.cancelled)


# -- single cases


def test_what_is_needed_late_is_begun_late_and_what_is_needed_soon_at_once():
    late = [2.0 + 0.01 * n for n in range(20)]
    made = make([call("late", 1.0, late), call("soon", 1.0, [0.01, 0.02, 0.03])])
    by_name = {one.function: one for one in made.decisions}
    assert by_name["t/soon"].start_in_s == 0.0
    assert 1.9 < by_name["t/late"].start_in_s < 1.98
    assert by_name["t/late"].reason == (
        "checkout reaches late in 100 % of 143 traces, about 2.1 s after it starts; "
        "begun in 2.0 s, so that it is ready for it and no earlier"
    )
    assert by_name["t/late"].expires_s < 60.0


def test_the_quantile_rule_is_among_the_alternatives_and_is_the_newsvendors():
    samples = [1.5 + 0.01 * n for n in range(64)]
    prices = Prices(1.0, 4.0)
    [decision] = make([call("a", 0.8, samples, start_s=0.7)], prices).decisions
    rule = [one for one in decision.evidence.alternatives if one.what == "rule"] or [None]
    kappa = 1.0 / 5.0
    assert decision.evidence.kappa == pytest.approx(kappa)
    place = int(kappa / 0.8 * 64)
    at = decision.start_in_s if rule[0] is None else rule[0].start_in_s
    assert at == pytest.approx(samples[place] - 0.7, abs=0.011)


def test_an_improbable_call_is_skipped_with_its_price():
    made = make([call("rare", 0.001, [5.0, 6.0])])
    assert made.decisions == ()
    assert made.skipped[0].why.startswith("reach 0.001 is under 0.050")
    made = make([call("far", 0.07, [5.0, 6.0])])
    assert "a start on demand" in made.skipped[0].why


def test_a_call_that_did_not_come_in_its_time_is_expected_less_and_later():
    samples = [0.1 * n for n in range(1, 10)]
    expected = [call("a", 0.5, samples)]
    on_time, overdue = make(expected).decisions[0], make(expected, elapsed_s=0.85)
    assert on_time.evidence.concurrent == 0.5
    assert all(one.evidence.concurrent < 0.3 for one in overdue.decisions)
    assert make(expected, elapsed_s=0.15).decisions[0].evidence.concurrent == 0.5  # by less than it and a start are late
    certain = make([call("a", 1.0, samples)], elapsed_s=5.0)
    assert certain.decisions[0].start_in_s == 0.0  # it must come, and any moment


def test_a_loser_is_given_up_also_when_it_is_ready_and_the_reason_names_the_stage():
    made = make([call("left", 0.5, [0.3, 0.4]), call("right", 0.5, [0.3, 0.4])])
    held = [Held(one, 100.0, ready_at=100.1) for one in made.decisions]
    taken = [one for one in held if one.decision.function == "t/right"]
    revised = again(taken, [call("left", 0.9, [0.3, 0.4])], now=100.3, elapsed_s=0.25, seen=["t/left"])
    assert revised.cancelled == ((taken[0].decision.decision_id, "not expected any more after left"),)


def test_a_delayed_one_is_moved_when_the_run_is_late():
    [decision] = make([call("a", 1.0, [1.0, 1.1])]).decisions
    revised = again([Held(decision, 100.0)], [call("a", 1.0, [3.0, 3.1])], now=100.2, elapsed_s=0.2)
    assert [decision_id for decision_id, _ in revised.cancelled] == ["p-1"]
    assert revised.cancelled[0][1].startswith("moved: it is better begun in 2.8 s")
    [moved] = revised.plan.decisions
    assert moved.start_in_s == pytest.approx(2.77, abs=0.01)


def test_one_in_flight_is_kept_while_it_is_worth_more_than_a_start_on_demand():
    [decision] = make([call("a", 1.0, [0.1, 0.2])]).decisions
    revised = again([Held(decision, 100.0, started=True)], [call("a", 1.0, [0.1, 0.2])], now=100.02, elapsed_s=0.02)
    assert (revised.kept, revised.cancelled, revised.plan.decisions) == (("p-1",), (), ())


def exclusive(branches, runs=64):
    """One of so many branches is taken in each run."""
    made = []
    for branch in range(branches):
        bits = 0
        for number in range(runs):
            bits = bits << 1 | (number % branches == branch)
        share = sum(number % branches == branch for number in range(runs)) / runs
        made.append(
            call(
                f"b{branch}",
                share,
                [0.2 + 0.003 * n for n in range(32)],
                memory_mb=512,
                start_s=0.03,
                standby_s=0.003,
                in_runs=bits.to_bytes(runs // 8, "big"),
            )
        )
    return made


def test_one_standby_stands_for_branches_that_exclude_each_other():
    made = make(exclusive(8), Prices(1.0, 19.0), standbys=Standbys(0.01))
    assert [(one.level, one.ordinal, len(one.covers)) for one in made.decisions] == [(Level.STANDBY, 1, 8)]
    [one] = made.decisions
    assert one.evidence.reach == pytest.approx(1.0)
    assert one.memory_mb == 512
    assert one.reason == "a standby for whichever of b0, b1, b2 and 5 more is called: one of them in 100 %"
    alone = make(exclusive(8), Prices(1.0, 19.0))
    assert len(alone.decisions) == 8
    assert one.evidence.idle_s < alone.expected_idle_s / 5
    costs = {each.what: each.cost for each in one.evidence.alternatives}
    assert one.evidence.wait_cost + one.evidence.idle_cost < costs["instances"] < costs["never"]


def test_branches_that_come_together_need_a_standby_each_or_their_own():
    bits = exclusive(2)[0].in_runs
    at, more = exclusive(2)[0].offsets_s, {"memory_mb": 512, "start_s": 0.03, "standby_s": 0.003}
    together = [call(f"b{n}", 0.5, at, in_runs=bits, **more) for n in range(2)]
    made = make(together, Prices(4.0, 19.0), standbys=Standbys(0.01))
    covered = [one for one in made.decisions if one.level is Level.STANDBY]
    assert len(covered) in (0, 2)
    assert len(made.decisions) == 2


def test_what_is_certain_gets_an_instance_of_its_own():
    made = make([call(f"c{n}", 1.0, [0.1 * n + 0.1] * 4, standby_s=0.003) for n in range(4)], standbys=Standbys(0.01))
    assert [one.level for one in made.decisions] == [Level.READY] * 4


def test_standbys_that_stand_ready_are_counted_on():
    made = make(exclusive(8), standbys=Standbys(0.01, {512: 1}))
    assert made.decisions == ()


def test_a_standby_is_given_up_when_nothing_competes_for_it_any_more():
    [decision] = make(exclusive(8), standbys=Standbys(0.01)).decisions
    held = [Held(decision, 100.0, ready_at=100.1)]
    kept = again(held, exclusive(8), now=100.1, elapsed_s=0.1, standbys=Standbys(0.01))
    assert kept.kept == ("p-1",)
    assert kept.plan.decisions == ()
    gone = again(held, [call("end", 1.0, [0.9])], now=100.3, elapsed_s=0.3, standbys=Standbys(0.01), seen=["t/b1"])
    assert gone.cancelled == (("p-1", "nothing competes for it any more after b1"),)


def test_a_run_without_anything_known_of_its_times_prepares_at_once_what_is_declared():
    made = make([call("a", 1.0, start_s=0.1), call("b", 1.0, start_s=0.1)])
    assert [(one.start_in_s, one.expires_s) for one in made.decisions] == [(0.0, 60.0)] * 2
    assert make([]).decisions == ()
