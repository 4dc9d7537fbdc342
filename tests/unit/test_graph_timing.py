"""Offsets freed of waits, reservoirs, calls at once."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graph.calls import Call, Trace
from graph.timing import RESERVOIR, Reservoir, busy_at_once, quantile, smoothed_start, warm_offsets

seconds = st.floats(0.0, 5.0, allow_nan=False)


def trace(*calls, wait_s=0.0, duration_s=10.0):
    names = ["t/e"]
    built = []
    for callee, caller_index, offset, duration, *wait in calls:
        built.append(Call(names[caller_index + 1], f"t/{callee}", caller_index, offset, duration, *wait))
        names.append(f"t/{callee}")
    return Trace("t", "1" * 32, "t/e", duration_s, tuple(built), wait_s)


def test_warm_offsets_are_the_offsets_when_nothing_waited():
    assert warm_offsets(trace(("a", -1, 0.1, 0.2), ("b", 0, 0.15, 0.1), ("c", -1, 0.4, 0.1))) == [0.1, 0.15, 0.4]


def test_every_wait_on_the_way_to_a_call_is_taken_off():
    cold = trace(
        ("a", -1, 1.1, 1.3, 1.0),  # the entry waited 1 s, worked 0.1 s; a waits 1 s, works 0.3 s in all
        ("b", 0, 2.2, 0.1),  # 0.1 s into a's work
        ("c", -1, 2.5, 0.1),  # 0.1 s after a's answer
        wait_s=1.0,
    )
    assert warm_offsets(cold) == pytest.approx([0.1, 0.2, 0.5])


def test_calls_side_by_side_hide_each_others_waits():
    cold = trace(
        ("a", -1, 0.0, 1.1, 1.0),  # warm: 0.1
        ("b", -1, 0.0, 0.4, 0.0),  # warm: 0.4, so the join is at 0.4 and not at 0.1
        ("c", -1, 1.2, 0.1),  # 0.1 s after the join
    )
    assert warm_offsets(cold)[2] == pytest.approx(0.5)


@given(st.lists(st.tuples(seconds, seconds, seconds, seconds), min_size=1, max_size=8), seconds)
def test_a_cold_run_teaches_the_offsets_of_the_warm_one(stages, entry_wait):
    """Builds one run of stages one after the other, each calling one callee; once warm, once with waits; both must agree."""

    def run(waits_count):
        calls, now = [], entry_wait * waits_count
        for number, (gap, work, wait, inner_wait) in enumerate(stages):
            now += gap
            sent, parent = now, len(calls)
            start = sent + wait * waits_count
            inner_sent = start + work / 2
            inner = inner_wait * waits_count + work / 4
            end = inner_sent + inner + work / 4
            calls.append((f"s{number}", -1, sent, end - sent, wait * waits_count))
            calls.append((f"i{number}", parent, inner_sent, inner, inner_wait * waits_count))
            now = end
        return trace(*calls, wait_s=entry_wait * waits_count, duration_s=now)

    assert warm_offsets(run(1)) == pytest.approx([call.offset_s for call in run(0).calls], abs=1e-6)


@given(st.lists(seconds, max_size=300), st.booleans())
def test_a_reservoir_keeps_64_of_what_it_was_offered_and_always_the_same(samples, decay):
    first, second = Reservoir(), Reservoir()
    for sample in samples:
        first.offer(sample, decay)
        second.offer(sample, decay)
    assert first.samples() == second.samples()
    assert len(first.samples()) == min(len(samples), RESERVOIR)
    assert all(any(abs(kept - sample) < 1e-5 for sample in samples) for kept in first.samples())


def test_a_reservoir_follows_when_it_decays_and_stands_for_everything_when_not():
    follows, whole = Reservoir(), Reservoir()
    for number in range(2000):
        follows.offer(float(number >= 1000))
        whole.offer(float(number >= 1000), decay=False)
    assert sum(follows.samples()) >= 60
    assert 20 <= sum(whole.samples()) <= 44


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0.01, 5)), min_size=1, max_size=20))
def test_calls_at_once_against_counting_at_every_start(intervals):
    calls = [Call("t/e", "t/a", -1, begin, length) for begin, length in intervals]
    counted = max(sum(1 for b, n in intervals if b <= at < b + n - 2e-6) for at, _ in intervals)
    assert (
        counted
        <= busy_at_once(calls, range(len(calls)))
        <= max(sum(1 for b, n in intervals if b <= at <= b + n) for at, _ in intervals)
    )


def test_one_call_after_the_other_needs_one_instance_even_when_clocks_are_coarse():
    calls = [Call("t/e", "t/a", -1, 1.7e9 + 0.1 * n, 0.1 + 1e-7) for n in range(5)]
    assert busy_at_once(calls, range(5)) == 1


def test_waiting_for_an_instance_does_not_occupy_one():
    calls = [Call("t/e", "t/a", -1, 0.0, 1.0, 0.0), Call("t/e", "t/a", -1, 0.5, 1.0, 0.6)]
    assert busy_at_once(calls, [0, 1]) == 1


def test_quantiles_are_interpolated_and_need_samples():
    assert quantile((1.0, 2.0, 4.0), 0.5) == 2.0
    assert quantile((1.0, 2.0), 0.25) == 1.25
    assert quantile((1.0, 2.0), 7.0) == 2.0
    with pytest.raises(ValueError, match="sample"):
        quantile((), 0.5)


def test_the_first_measured_start_counts_whole_the_next_a_fifth():
    assert smoothed_start(None, 0.4) == 0.4
    assert smoothed_start(0.4, 0.9) == pytest.approx(0.5)
