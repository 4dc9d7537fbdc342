"""What a replay is summed up to."""

import numpy as np
import pytest
from doubles.chains import START_S, chain, simulate
from hypothesis import given
from hypothesis import strategies as st

from graph.plans import Prices
from orchestrator.whatif.keeping import KeepAlive
from orchestrator.whatif.measures import figures, interval
from orchestrator.whatif.policy import Policy


def test_figures_of_a_cold_and_a_warm_run():
    made = simulate(KeepAlive(10.0), [(0.0, chain(2.0)), (8.0, chain(2.0))])
    found = figures(made.replay, Prices(idle_gb_s=2.0, late_s=10.0))
    assert (found.runs, found.stages.calls, found.entries.calls) == (2, 2, 2)
    assert (found.stages.waited, found.stages.cold, found.entries.waited, found.chain_cold) == (0.5, 0.5, 0.5, 0.5)
    assert found.slowdown_p50 == pytest.approx(1.0 + 1.0 / 2.375 / 2)
    assert found.added_s.value == pytest.approx(1000 * 2 * START_S / 2)
    assert found.cse_mean == pytest.approx(1.0)
    assert found.keep_alive_s == pytest.approx((8.0 - 3.375 + 10.0 - 3.25 + 20.0) / 2)
    assert (found.prewarm_s, found.pool_s) == (0.0, 0.0)
    assert found.wasted_gb_s.value == pytest.approx(1000 * found.keep_alive_s)  # instances of 1 GB
    assert found.busy_s == pytest.approx((2 * (2.375 + 0.25) + START_S) / 2)
    assert found.per_busy_s == pytest.approx(found.keep_alive_s / found.busy_s)
    assert found.cost == pytest.approx(10.0 * found.added_s.value + 2.0 * found.wasted_gb_s.value)


def test_the_first_runs_are_not_counted_and_one_must_be_left():
    made = simulate(Policy(), [(0.0, chain()), (8.0, chain())])
    assert figures(made.replay, Prices(), skip=1).runs == 1
    with pytest.raises(ValueError, match="2 runs, of which the first 2 are not counted"):
        figures(made.replay, Prices(), skip=2)


@given(st.lists(st.floats(0.0, 100.0), min_size=1, max_size=200))
def test_an_interval_holds_its_value_and_is_the_same_again(samples: list[float]):
    found = interval(np.array(samples), 10.0)
    assert found == interval(np.array(samples), 10.0)
    assert found.value == pytest.approx(10 * float(np.mean(samples)))
    assert min(samples) * 10 - 1e-6 <= found.low <= found.high <= max(samples) * 10 + 1e-6
