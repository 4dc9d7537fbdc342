"""Idle times of the n-th instance: by how many are busy."""

import math

from hypothesis import given
from hypothesis import strategies as st

from graph.arrivals import Arrivals
from graph.levels import LEVELS, Levels, worths_keeping_s
from graph.plans import Prices

calls = st.lists(st.tuples(st.floats(0.0, 100.0), st.floats(0.01, 20.0)), min_size=1, max_size=60)


def learned(spans: list[tuple[float, float]], per: int = 1) -> Levels:
    """`spans`: start, and how long."""
    events = sorted([(start, 1) for start, _ in spans] + [(start + took, 0) for start, took in spans])
    levels = Levels()
    for at, begins in events:
        if begins:
            levels.started(at, per)
        else:
            levels.ended(at, per)
    return levels


@given(spans=calls)
def test_gaps_of_a_level_are_those_between_the_times_that_so_many_are_busy(spans: list[tuple[float, float]]) -> None:
    levels = learned(spans)
    events = sorted([(start, 1) for start, _ in spans] + [(start + took, 0) for start, took in spans])
    busy, peak, since, gaps = 0, 0, dict[int, float](), dict[int, int]()
    for at, begins in events:
        if begins:
            if busy in since and busy < LEVELS:
                gaps[busy] = gaps.get(busy, 0) + 1
            busy += 1
            peak = max(peak, busy)
        else:
            busy -= 1
            since[busy] = at
    assert len(levels.of) == min(peak, LEVELS)
    assert [one.counted for one in levels.of] == [gaps.get(level, 0) for level in range(len(levels.of))]
    assert levels.busy == 0


@given(spans=calls)
def test_the_first_level_is_the_function_as_a_whole(spans: list[tuple[float, float]]) -> None:
    whole, busy = Arrivals(), 0
    for at, begins in sorted([(start, 1) for start, _ in spans] + [(start + took, 0) for start, took in spans]):
        if begins and not busy:
            whole.started(at)
        busy += 1 if begins else -1
        if not busy:
            whole.ended(at)
    assert learned(spans).of[0].counts == whole.counts


@given(spans=calls, per=st.integers(2, 4))
def test_an_instance_that_takes_several_is_one_level(spans: list[tuple[float, float]], per: int) -> None:
    assert len(learned(spans, per).of) == min(LEVELS, math.ceil(len(learned(spans).of) / per)) or len(learned(spans).of) == LEVELS


@given(spans=calls)
def test_what_too_little_is_known_of_is_worth_what_the_one_below_is(spans: list[tuple[float, float]]) -> None:
    worths = worths_keeping_s(learned(spans), Prices(), 256, 0.15, 600.0)
    known = [worth is not None for worth in worths]
    assert known == sorted(known), "from the first that is known on, all are"
    assert all(worth is None or 0.0 <= worth <= 600.0 for worth in worths)


def test_the_second_is_not_kept_for_the_calls_of_the_first() -> None:
    """Calls every second, and two at once every 500 s."""
    spans = [(float(at), 0.1) for at in range(3000)] + [(at + 0.05, 0.1) for at in range(0, 3000, 500)]
    first, second = worths_keeping_s(learned(spans), Prices(), 256, 0.15, 600.0)
    assert first is not None
    assert second is not None
    assert first > 0.5
    assert second < 1.0


def test_lost_ends_leave_no_idle_time_under_way() -> None:
    levels = Levels()
    levels.started(1.0)
    levels.started(2.0)
    levels.lost_count()
    levels.started(50.0)
    assert [one.counted for one in levels.of] == [0, 0]
    assert levels.busy == 1
