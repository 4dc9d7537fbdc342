"""What may idle, and what is left alone for a while because it fails."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graph import backoff, spending
from graph.backoff import Backoff
from graph.plans import Budget, Prices
from graph.spending import FULL_S, Spending

seconds = st.floats(0.0, 50.0)


@given(st.lists(st.tuples(seconds, seconds, st.floats(0.0, 3.0))), st.sampled_from([0.25, 1.0, 4.0]))
def test_what_idles_stays_within_the_rate_beside_what_was_saved_up(steps, rate):
    """Each step earns, plans as much as it may, and idles up to three times what was expected."""
    state, budget = Spending(), Budget(idle_s_per_busy_s=rate)
    misjudged = idled = busy = 0.0
    for busy_s, wanted_s, off in steps:
        state = spending.earn(state, busy_s, budget)
        busy += busy_s
        _, bounded = spending.steer(state, Prices(), budget)
        planned = min(wanted_s, bounded.idle_s)
        state = spending.reserve(state, planned)
        state = spending.pay(state, planned, planned * off)
        misjudged = max(misjudged, planned * (off - 1.0))
        idled += planned * off
        assert idled <= FULL_S + rate * busy + misjudged + 1e-6  # beyond it only by what one plan misjudged
    assert state.reserved_s == pytest.approx(0.0, abs=1e-6)
    assert state.idle_s == pytest.approx(idled)


@given(seconds, seconds)
def test_idling_is_dearer_the_emptier_the_bucket_and_never_cheaper_than_its_price(one, other):
    less, more = sorted((one, other))
    emptier, fuller = Spending(left_s=less), Spending(left_s=more)
    assert 1.0 <= spending.pressure(fuller) <= spending.pressure(emptier) <= spending.DEAREST
    prices, budget = spending.steer(emptier, Prices(2.0, 19.0), Budget())
    assert (prices.idle_gb_s, prices.late_s) == (2.0 * spending.pressure(emptier), 19.0)
    assert budget.idle_s == less


def test_plans_made_at_once_do_not_spend_the_same_seconds_twice():
    state = spending.reserve(Spending(left_s=10.0), 7.0)
    assert spending.free_s(state) == 3.0
    assert spending.free_s(spending.pay(state, 7.0, 1.0)) == 9.0
    assert spending.free_s(spending.reserve(state, 9.0)) == 0.0
    assert spending.pressure(Spending(left_s=FULL_S / 2)) == 1.0
    assert spending.pressure(Spending(left_s=-3.0)) == spending.DEAREST


def test_a_debt_is_worked_off_before_anything_is_prepared_again():
    state = spending.pay(Spending(), 0.0, FULL_S + 100.0)
    assert spending.free_s(state) == 0.0
    state = spending.earn(state, 99.0, Budget(idle_s_per_busy_s=1.0))
    assert spending.free_s(state) == 0.0
    assert spending.free_s(spending.earn(state, 6.0, Budget(idle_s_per_busy_s=1.0))) == pytest.approx(5.0)
    assert spending.earn(Spending(), 1e6, Budget()).left_s == FULL_S


def test_the_second_failure_in_a_row_stops_preparing_and_each_further_one_for_twice_as_long():
    state = backoff.failed(Backoff(), 0.0)
    assert backoff.allowed(state, 0.0)
    waits = []
    for _ in range(14):
        state = backoff.failed(state, 100.0)
        assert not backoff.allowed(state, 100.0)
        waits.append(state.until - 100.0)
        assert backoff.allowed(state, state.until)
    assert waits[:4] == [1.0, 2.0, 4.0, 8.0]
    assert waits[-1] == 600.0
    assert backoff.why(state, 400.0) == "its init failed 15 times in a row; the next try is in 300 s"


def test_when_the_time_is_over_one_may_try():
    state = backoff.failed(backoff.failed(Backoff(), 0.0), 0.0)
    assert backoff.allowed(state, 1.0)
    state = backoff.tried(state, 1.0)
    assert not backoff.allowed(state, 1.5)
    assert backoff.allowed(state, 2.0)
    assert backoff.tried(Backoff(), 5.0) == Backoff()


@given(st.lists(st.sampled_from("fst"), max_size=200), st.floats(0.0, 1e6))
def test_no_wait_is_ever_longer_than_ten_minutes(events, now):
    state = Backoff()
    for event in events:
        state = {"f": backoff.failed, "t": backoff.tried}.get(event, lambda *_: Backoff())(state, now)
        assert state.until <= now + backoff.LONGEST_S
        assert backoff.backed_off(state) == (state.failures >= 2)
