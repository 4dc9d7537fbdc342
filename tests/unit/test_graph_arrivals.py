"""When an entry is called next."""

import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graph.arrivals import BELOW_MINUTE, RANGE_S, Arrivals, Kind, bin_of, edges, expected, path_after, predicted, samples_of
from graph.keepalive import window
from graph.keeping import worth_keeping_s
from graph.planning import plan
from graph.plans import Budget, EdgeSource, ExpectedCall, Prices, Trigger
from graph.starts import StartTimes


def after(gaps, busy=0.1):
    """The state once the function was idle for each of `gaps`, and the time it then is."""
    state, now = Arrivals(), 1000.0
    for gap in gaps:
        state.started(now)
        state.ended(now + busy)
        now += busy + gap
    state.started(now)
    state.ended(now + busy)
    return state, now + busy


@given(st.floats(0.0, RANGE_S - 1))
def test_each_idle_time_lies_in_its_bin(gap):
    low, high = edges(bin_of(gap))
    assert low - 1e-9 <= gap < high + 1e-9
    assert edges(bin_of(gap) + 1)[0] == pytest.approx(high, abs=1e-9)


def test_the_bins_are_logarithmic_below_a_minute_and_minutes_above():
    assert edges(0)[0] == 0.0
    assert edges(bin_of(0.02))[1] / edges(bin_of(0.02))[0] == pytest.approx(2**0.25)
    assert edges(BELOW_MINUTE - 1)[1] == 60.0
    assert edges(BELOW_MINUTE) == (60.0, 120.0)
    assert bin_of(RANGE_S - 1) == BELOW_MINUTE + 238


def test_nothing_is_foretold_before_it_came_back_three_times_nor_while_it_runs():
    state, now = after([1.0, 2.0])
    assert predicted(state, now) is None
    state, now = after([1.0, 2.0, 4.0])
    assert predicted(state, now) is not None
    state.started(now)
    assert predicted(state, now) is None


def test_the_samples_are_those_of_the_idle_times():
    source = random.Random(3)
    gaps = [source.lognormvariate(1.0, 0.8) for _ in range(400)]
    state, now = after(gaps)
    forecast = predicted(state, now)
    assert forecast.kind is Kind.HISTOGRAM
    assert forecast.probability > 0.99
    ordered = sorted(gaps)
    for share in (0.1, 0.5, 0.9):
        assert forecast.after_s[int(share * 64)] == pytest.approx(ordered[int(share * 400)], rel=0.15)
    assert list(forecast.after_s) == sorted(forecast.after_s)


def test_a_timer_is_recognised_and_forgotten_when_it_stops():
    source = random.Random(1)
    state, now = after([59.9 + source.uniform(-0.5, 0.5) for _ in range(12)])
    forecast = predicted(state, now)
    assert forecast.kind is Kind.TIMER
    assert all(59.0 < one < 61.5 for one in forecast.after_s)
    assert forecast.since == pytest.approx(now - 0.1)
    assert predicted(state, now + 100.0).kind is Kind.TIMER
    assert predicted(state, now + 200.0).kind is Kind.HISTOGRAM


def test_a_timers_next_run_is_prepared_just_before_it_and_its_path_with_it():
    state, now = after([30.0] * 12)
    forecast = predicted(state, now + 1.0)
    starts = StartTimes()
    starts.add(0.5)
    entry = expected(forecast, "t/tick", 512, starts)
    path = [ExpectedCall("t/next", 1.0, (1.0,), (0.2,) * 64, 50, 50.0, EdgeSource.LEARNED, 512, 0.05)]
    made = plan(
        [entry, *path_after(entry, path)],
        Prices(),
        Budget(),
        {},
        now,
        tenant="t",
        entry="t/tick",
        trigger=Trigger.PREDICTED,
        policy="priced",
        elapsed_s=now + 1.0 - forecast.since,
    )
    by_name = {one.function: one for one in made.decisions}
    assert by_name["t/tick"].start_in_s == pytest.approx(28.5, abs=0.11)
    assert by_name["t/next"].start_in_s == pytest.approx(29.15, abs=0.11)
    assert by_name["t/tick"].reason.startswith("tick is called again in 92 % of the times it paused this long")


def test_what_is_idle_for_hours_is_rare():
    state, now = after([5 * 3600.0, 5.2 * 3600.0, 4.9 * 3600.0])
    forecast = predicted(state, now)
    assert (forecast.kind, forecast.gaps) == (Kind.RARE, 3)
    held = window(state)
    assert held.from_s == pytest.approx(0.85 * 5 * 3600)
    assert held.until_s == pytest.approx(1.15 * 5 * 3600)


def test_the_published_window_spans_head_to_tail_or_everything():
    source = random.Random(2)
    state, _ = after([source.uniform(600, 900) for _ in range(300)])
    held = window(state)
    assert held.from_s == pytest.approx(0.9 * 600, rel=0.1)
    assert held.until_s == pytest.approx(1.1 * 900, rel=0.05)
    assert window(Arrivals()).until_s == RANGE_S
    spread, _ = after([source.uniform(0, RANGE_S - 1) for _ in range(900)])
    assert (window(spread).from_s, window(spread).until_s) == (0.0, RANGE_S)


@given(st.lists(st.tuples(st.floats(0.0, 20_000.0), st.floats(0.0, 5.0), st.booleans()), max_size=120))
def test_any_history_is_told_as_a_distribution_and_survives_being_written_down(steps):
    state, now = Arrivals(), 0.0
    for gap, busy, both in steps:
        now += gap
        state.started(now)
        if both:
            state.started(now)
            state.ended(now)
        now += busy
        state.ended(now)
        assert state.counted <= 1024
        restored = msgspec.msgpack.decode(msgspec.msgpack.encode(state), type=Arrivals)
        assert restored == state
        forecast = predicted(state, now)
        if forecast is not None:
            assert 0.0 < forecast.probability < 1.0
            assert list(forecast.after_s) == sorted(forecast.after_s)
            assert forecast.after_s
        held = window(state)
        assert 0.0 <= held.from_s <= held.until_s


def test_counts_fade_so_that_a_new_rhythm_is_learned():
    state, now = after([2.0 + 0.5 * (n % 3) for n in range(1500)] + [60.0 * (1 + n % 3) for n in range(900)])
    forecast = predicted(state, now)
    assert forecast.after_s[32] >= 60.0
    assert len(state.counts) <= 16


def reference_keeping(gaps, share, keep, idle, late):
    """The expected cost of keeping for so long, gap by gap; a call that never comes leaves it idle for all of it."""
    called = sum(idle * min(gap, keep) + (late if gap > keep else 0.0) for gap in gaps) / len(gaps)
    return share * called + (1 - share) * idle * keep


@given(
    st.lists(st.floats(0.01, 9000.0), min_size=3, max_size=60),
    st.sampled_from([128, 2048]),
    st.floats(0.01, 10.0),
    st.floats(0.01, 50.0),
    st.floats(1.0, 20_000.0),
)
def test_no_other_time_is_cheaper_to_keep_an_instance_for(gaps, memory_mb, start_s, idle_gb_s, longest_s):
    state, _ = after(gaps)
    prices = Prices(idle_gb_s)
    keep = worth_keeping_s(state, prices, memory_mb, start_s, longest_s)
    known = samples_of(state)
    idle, late = idle_gb_s * memory_mb / 1024, prices.late_s * start_s
    cost = reference_keeping(known.after_s, known.probability, keep, idle, late)
    assert 0.0 <= keep <= longest_s
    for other in (0.0, longest_s, *(gap for gap in known.after_s if gap <= longest_s)):
        assert cost <= reference_keeping(known.after_s, known.probability, other, idle, late) * (1 + 1e-9) + 1e-9
    dearer = worth_keeping_s(state, Prices(idle_gb_s * 3), memory_mb, start_s, longest_s)
    assert dearer <= keep


def test_what_comes_back_within_its_run_is_kept_for_that_long_and_not_until_the_next_run():
    state, _ = after([0.2, 0.3, 900.0] * 40)
    assert 0.3 <= worth_keeping_s(state, Prices(), 1024, 0.1, 600.0) < 0.4
    assert worth_keeping_s(after([1.0, 2.0])[0], Prices(), 1024, 0.1, 600.0) is None
    assert worth_keeping_s(after([5 * 3600.0] * 5)[0], Prices(), 1024, 0.1, 600.0) == 0.0
