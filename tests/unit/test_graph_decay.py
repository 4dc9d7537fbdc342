"""How fast shares follow the world, and how little they move when it stands still."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graph.callgraph import CallGraph
from graph.calls import Call, Trace
from graph.decay import SLOW, RunClock, Share, cautious, prior_weight
from graph.ids import function_id
from graph.prediction import predict


def follow(outcomes, decay=True):
    """The share after each outcome."""
    clock, share, values = RunClock(), Share(), []
    for happened in outcomes:
        clock.advance(decay)
        if happened:
            share.hit(clock, decay)
        values.append(share.value(clock))
    return values


@pytest.mark.parametrize("before", [3, 10, 50, 300, 1000])
def test_what_always_happened_and_stops_is_under_a_twentieth_within_200_runs(before):
    values = follow([True] * before + [False] * 200)
    assert values[before - 1] == pytest.approx(1.0)
    assert values[-1] < 0.05


def test_without_the_change_detector_it_would_take_865_runs():
    steady_state = 1.0
    runs = math.ceil(math.log(0.05 / steady_state) / math.log(SLOW))
    assert runs == 865


@pytest.mark.parametrize("probability", [0.02, 0.1, 0.3, 0.5, 0.8, 0.95, 1.0])
def test_in_a_steady_world_the_share_is_as_exact_as_the_half_life_allows(probability):
    source = random.Random(7)
    ideal = math.sqrt(probability * (1 - probability) * (1 - SLOW) / (1 + SLOW))
    squares = []
    for _ in range(30):
        values = follow(source.random() < probability for _ in range(1500))
        squares += [(value - probability) ** 2 for value in values[300:]]
    assert math.sqrt(sum(squares) / len(squares)) <= 1.35 * ideal + 1e-9


def test_a_share_that_drops_to_another_level_is_there_within_100_runs():
    source = random.Random(1)
    values = follow([True] * 400 + [source.random() < 0.4 for _ in range(100)])
    assert abs(values[-1] - 0.4) < 0.2


def test_a_new_happening_is_noticed_after_a_few_runs_of_many():
    values = follow([False] * 500 + [True] * 10)
    assert values[-1] > 0.25


@given(st.lists(st.booleans(), min_size=1, max_size=200))
def test_without_decay_the_share_is_the_plain_fraction(outcomes):
    values = follow(outcomes, decay=False)
    assert values[-1] == pytest.approx(sum(outcomes) / len(outcomes))


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=300))
def test_a_share_is_a_probability_whatever_the_mix_of_imports_and_live_runs(runs):
    clock, share = RunClock(), Share()
    for happened, decay in runs:
        clock.advance(decay)
        if happened:
            share.hit(clock, decay)
        assert 0.0 <= share.value(clock) <= 1.0
    assert clock.runs == len(runs)


def test_imported_runs_are_not_mistaken_for_a_change():
    clock, share = RunClock(), Share()
    for run in range(200):
        clock.advance(False)
        if run < 20:
            share.hit(clock, False)
    assert share.value(clock) == pytest.approx(0.1)
    clock.advance(True)
    share.hit(clock, True)
    assert share.value(clock) == pytest.approx(0.1, abs=0.02)


@given(st.integers(0, 19), st.integers(1, 19))
def test_the_cautious_share_is_a_lower_bound_and_never_negligible_for_what_always_happened(hits, runs):
    hits = min(hits, runs)
    bound = cautious(hits / runs, runs)
    assert 0.0 < bound < (hits + 1) / (runs + 1)
    if hits == runs:
        assert bound >= 0.05
    assert cautious(hits / runs, 20) == hits / runs


def test_the_cautious_share_is_the_20_percent_quantile_of_the_posterior():
    assert cautious(1.0, 3) == pytest.approx(0.2 ** (1 / 4), abs=1e-6)  # Beta(4, 1) has the distribution x ** 4
    assert cautious(0.0, 3) == pytest.approx(1 - 0.8 ** (1 / 4), abs=1e-6)  # Beta(1, 4)


def test_a_declaration_counts_for_20_runs_and_fades():
    assert prior_weight(0) == 20.0
    assert prior_weight(50) == pytest.approx(10.0)
    assert prior_weight(200) < 2.0


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 2**32),
    st.integers(3, 700),
    st.booleans(),
    st.booleans(),
    st.integers(0, 2),
    st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]),
)
def test_a_call_that_always_came_and_stops_is_under_a_twentieth_within_200_traces_whatever_was_declared(
    seed, before, declared, declared_late, imported, beside
):
    """Through predict(), as an edge and given the stage before; `imported`: none, the first half, all of the runs undecayed."""
    source, graph = random.Random(seed), CallGraph()
    entry, first, stops, other = (function_id("t", name) for name in ("e", "first", "stops", "other"))
    if declared:
        graph.declare(entry, [first, stops], 128, 0.0)

    def observe(number, comes, decay):
        calls = [Call(entry, first, -1, 0.1, 0.1)]
        if comes:
            calls.append(Call(entry, stops, -1, 0.3, 0.1))
        if source.random() < beside:
            calls.append(Call(entry, other, -1, 0.4, 0.1))
        graph.observe(Trace("t", f"{number:032x}", entry, 0.5, tuple(calls)), float(number), decay)

    for number in range(before):
        observe(number, True, not (imported == 2 or (imported == 1 and number < before // 2)))
    if declared_late:  # the strongest prior there is: weight 20, of which nothing has decayed
        graph.declare(entry, [first, stops], 128, 0.0)
    assert reach_of(stops, predict(graph, entry)) > 0.2
    for number in range(before, before + 200):
        observe(number, False, True)
    assert reach_of(stops, predict(graph, entry)) < 0.05
    assert reach_of(stops, predict(graph, entry, [first])) < 0.05
    assert all(edge.probability < 0.05 for edge in graph.edges("t") if edge.callee == stops)
    assert reach_of(first, predict(graph, entry)) > 0.99


def reach_of(function, expected):
    return next((call.reach for call in expected if call.function == function), 0.0)


def test_a_steady_call_of_three_runs_in_ten_is_rarely_taken_for_a_change():
    shares = []
    for seed in range(60):
        source = random.Random(seed)
        clock, share, changing = RunClock(), Share(), 0
        for _ in range(2000):
            clock.advance(True)
            if source.random() < 0.3:
                share.hit(clock, True)
            changing += share.changing(clock)
        shares.append(changing / 2000)
    assert sum(shares) / len(shares) < 0.02
    assert sum(share == 0.0 for share in shares) > 40
