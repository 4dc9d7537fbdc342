"""Intervals of the benchmarks: they hold the value, shrink with samples, and follow what they are told about pairs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import estimates

SAMPLES = st.lists(st.floats(0.1, 1000), min_size=2, max_size=40)


@settings(max_examples=25, deadline=None)
@given(SAMPLES, st.sampled_from([0.5, 0.99]))
def test_a_quantile_lies_in_its_interval_and_in_its_samples(samples, q):
    found = estimates.quantile(samples, q)
    assert min(samples) <= found.low <= found.high <= max(samples)
    assert found.low <= found.value * (1 + 1e-9)
    assert found.n == len(samples)


def test_the_same_samples_give_the_same_interval():
    samples = np.random.default_rng(3).normal(10, 2, 50)
    assert estimates.mean(samples) == estimates.mean(samples)


def test_more_samples_make_the_interval_smaller():
    drawn = np.random.default_rng(3).normal(10, 2, 2000)
    few, many = estimates.mean(drawn[:20]), estimates.mean(drawn)
    assert many.high - many.low < (few.high - few.low) / 4
    assert many.low < 10 < many.high


def test_one_sample_has_no_spread():
    found = estimates.quantile([4.2], 0.5)
    assert (found.value, found.low, found.high, found.n) == (4.2, 4.2, 4.2, 1)


def test_pairs_cancel_what_they_share():
    """The machine is slow in some rounds, for both sides alike: paired samples see the true ratio, unpaired ones do not."""
    slow = np.exp(np.random.default_rng(5).normal(0, 1.0, 60))
    paired = estimates.bootstrap([2 * slow, slow], lambda groups: groups[0].mean() / groups[1].mean(), paired=True)
    apart = estimates.bootstrap([2 * slow, slow], lambda groups: groups[0].mean() / groups[1].mean())
    assert paired.high - paired.low < 1e-9
    assert apart.high - apart.low > 0.2


def test_a_ratio_of_equals_is_one():
    samples = np.random.default_rng(7).normal(50, 1, 200)
    found = estimates.ratio_of_quantiles(samples, samples[::-1], 0.5)
    assert found.value == pytest.approx(1)
    assert found.low < 1 < found.high


def test_a_slope_is_growth_per_unit():
    found = estimates.slope({10: [120.0, 121.0, 119.0], 40: [210.0], 100: [390.0, 390.0]})
    assert found.value == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("groups", "paired"), [([], False), ([[]], False), ([[1.0], []], False), ([[1.0], [1.0, 2.0]], True), ([[[1.0]]], False)]
)
def test_what_cannot_be_estimated_is_refused(groups, paired):
    with pytest.raises(ValueError, match="group"):
        estimates.bootstrap(groups, lambda found: 0.0, paired=paired)


def test_a_slope_needs_two_places():
    with pytest.raises(ValueError, match="two places"):
        estimates.slope({1.0: [1.0, 2.0]})
