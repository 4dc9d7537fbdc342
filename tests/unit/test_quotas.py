"""The checks of quotas: pure functions of a state and a moment."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.quotas import OwnQuotas, Quotas, in_force, refusal, share_of, take_token


def test_what_was_set_is_in_force_zero_too() -> None:
    own = OwnQuotas(functions=0, invocations_per_s=0.5)
    assert in_force(own, Quotas(concurrency=9)) == Quotas(functions=0, concurrency=9, invocations_per_s=0.5)
    assert in_force(OwnQuotas(), Quotas()) == Quotas()


def test_what_fits_exactly_is_not_refused() -> None:
    assert refusal("a", "functions", 4, 1, 5) == ""
    assert "is 5: 5 are in use" in refusal("a", "functions", 5, 1, 5)


def test_shares_add_up_to_the_quota_at_least_and_none_is_nothing() -> None:
    assert [share_of(10, count) for count in (0, 1, 3, 20)] == [10, 10, 4, 1]
    assert share_of(0, 3) == 0


def test_a_full_bucket_gives_its_burst_then_one_token_for_each_that_comes_back() -> None:
    full_at, now = 0.0, 1000.0
    for _ in range(10):
        full_at, wait = take_token(full_at, now, 10.0, 1.0)
        assert wait == 0.0
    same, wait = take_token(full_at, now, 10.0, 1.0)
    assert (same, wait) == (full_at, pytest.approx(0.1))
    full_at, wait = take_token(full_at, now + 0.1, 10.0, 1.0)
    assert wait == 0.0


def test_less_than_one_a_second_still_gives_one() -> None:
    full_at, wait = take_token(0.0, 1000.0, 0.1, 1.0)
    assert wait == 0.0
    assert take_token(full_at, 1003.0, 0.1, 1.0)[1] == pytest.approx(7.0)


def test_debt_is_bounded_and_must_be_paid_back_first() -> None:
    full_at = 0.0
    for _ in range(1000):
        full_at, wait = take_token(full_at, 1000.0, 10.0, 1.0, debt_s=2.0)
        assert wait == 0.0
    assert take_token(full_at, 1000.0, 10.0, 1.0)[1] == pytest.approx(2.1)


def test_a_rate_of_nothing_lets_nothing_in() -> None:
    assert take_token(0.0, 1000.0, 0.0, 1.0)[1] > 0
    assert take_token(0.0, 1000.0, 0.0, 1.0, debt_s=1.0)[1] == 0.0


@given(st.floats(0.1, 1000), st.lists(st.floats(0, 0.5), max_size=300))
def test_never_more_than_the_burst_and_what_came_back_since(per_s: float, pauses: list[float]) -> None:
    full_at, now, taken = 0.0, 1000.0, 0
    for pause in pauses:
        now += pause
        full_at, wait = take_token(full_at, now, per_s, 1.0)
        taken += wait == 0.0
    assert taken <= max(1.0, per_s) + (now - 1000.0) * per_s + 1e-3
