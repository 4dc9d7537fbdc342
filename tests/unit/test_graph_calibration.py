"""Predictions beside outcomes, and what starts and idling came to."""

import itertools
import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graph.calibration import KEPT, Calibration, merged
from graph.costs import Costs
from graph.plans import Outcome, Prices


def filled(pairs):
    held = Calibration()
    for predicted, came in pairs:
        held.add(predicted, came)
    return held


def test_what_comes_as_often_as_predicted_has_a_small_error_and_what_does_not_has_a_large_one():
    source = random.Random(1)
    shares = [source.random() for _ in range(4000)]
    right = filled((share, source.random() < share) for share in shares)
    wrong = filled((share, source.random() < share**3) for share in shares)
    assert right.error() < 0.03
    assert wrong.error() > 0.15
    assert right.brier() == pytest.approx(1 / 6, abs=0.01)  # of a uniform share: the mean of p (1 - p)


def test_the_bins_have_equal_mass():
    source = random.Random(2)
    held = filled((source.random() ** 4, False) for _ in range(1000))
    assert [one.count for one in held.bins()] == [100] * 10
    assert Calibration().bins() == []
    assert (Calibration().error(), Calibration().brier()) == (None, None)


@given(st.lists(st.tuples(st.floats(0, 1, width=32), st.booleans()), min_size=1, max_size=300))
def test_every_prediction_is_in_one_bin_and_bins_rise(pairs):
    held = filled(pairs)
    bins = held.bins()
    assert sum(one.count for one in bins) == len(pairs)
    assert len(bins) <= 10
    assert sum(one.observed * one.count for one in bins) == pytest.approx(sum(came for _, came in pairs))
    assert all(one.low <= one.predicted + 1e-9 <= one.high + 2e-9 for one in bins)
    assert all(before.high < after.low for before, after in itertools.pairwise(bins))
    assert 0.0 <= held.error() <= 1.0
    assert held.brier() == pytest.approx(sum((share - came) ** 2 for share, came in pairs) / len(pairs), abs=1e-6)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(held), type=Calibration) == held


def test_only_the_latest_are_remembered_and_parts_add_up():
    held = filled([(0.9, False)] * 100 + [(0.2, True)] * KEPT)
    assert len(held.bins()) == 1
    assert held.error() == pytest.approx(0.8)
    assert merged([filled([(0.5, True)]), filled([(0.5, False)])]).error() == pytest.approx(0.0)
    with pytest.raises(ValueError, match="predicted: 1"):
        held.add(1.5, True)


def test_costs_add_up_by_outcome():
    costs = Costs()
    costs.ended(Outcome.HIT, 512, 0.5, saved_s=0.03)
    costs.ended(Outcome.LATE, 512, 0.0, saved_s=0.01, waited_s=0.02)
    costs.ended(Outcome.WASTED, 1024, 4.0)
    costs.ended(Outcome.CANCELLED, 1024, 0.0)
    costs.waited(0.03)
    assert (costs.hits, costs.late, costs.wasted, costs.cancelled, costs.unprepared) == (1, 1, 1, 1, 1)
    assert (costs.waited_s, costs.saved_s, costs.idle_s, costs.idle_gb_s, costs.wasted_s) == (0.05, 0.04, 4.5, 4.25, 4.0)
    assert costs.at(Prices(2.0, 10.0)) == (0.5, 8.5)
    with pytest.raises(ValueError, match="outcome: 'ready'"):
        costs.ended(Outcome.READY, 128, 0.0)
