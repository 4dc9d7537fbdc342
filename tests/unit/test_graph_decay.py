"""How fast shares follow the world, and how little they move when it stands still."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graph.decay import SLOW, RunClock, Share, cautious, prior_weight


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
