"""Credit windows: a sender that keeps to its credit is never stopped for good, and memory never exceeds window and budget."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.network.portable.credit import Budget, Receiving, Sending
from workers.network.portable.words import FIRST_WINDOW, MAX_WINDOW, LinkError


def opened(budget: Budget) -> Receiving:
    assert budget.take(FIRST_WINDOW)
    return Receiving(budget)


steps = st.lists(st.tuples(st.booleans(), st.integers(1, 1 << 20)), max_size=80)


@given(steps, st.integers(FIRST_WINDOW, 4 << 20))
def test_what_waits_never_exceeds_the_window_and_windows_never_the_budget(work: list[tuple[bool, int]], limit: int) -> None:
    budget = Budget(limit)
    receiving, sending = opened(budget), Sending()
    for send, amount in work:
        if send:
            sent = min(amount, sending.credit)
            sending.spend(sent)
            receiving.came(sent)
        else:
            credit = receiving.taken(amount)
            if credit:
                sending.more(credit)
        assert 0 <= receiving.waiting <= receiving.window <= MAX_WINDOW
        assert receiving.waiting + sending.credit <= receiving.window
        assert budget.held == receiving.window <= limit
    receiving.close()
    receiving.close()
    assert budget.held == 0


@given(st.lists(st.integers(1, 200_000), min_size=1, max_size=60))
def test_whoever_keeps_to_its_credit_gets_everything_through(amounts: list[int]) -> None:
    receiving, sending = opened(Budget(64 << 20)), Sending()
    for amount in amounts:
        left = amount
        for _ in range(100):
            part = min(left, sending.credit)
            sending.spend(part)
            receiving.came(part)
            if credit := receiving.taken(part):
                sending.more(credit)
            left -= part
            if not left:
                break
        assert left == 0, "a sender with an attentive receiver has stopped"


@given(st.integers(1, 1 << 30))
def test_more_than_the_credit_is_an_offence(excess: int) -> None:
    receiving = opened(Budget(1 << 20))
    with pytest.raises(LinkError, match="credit"):
        receiving.came(FIRST_WINDOW + excess)


@given(st.integers(-5, 2**32 - 1))
def test_no_credit_makes_a_sender_hold_more_than_any_window(amount: int) -> None:
    sending = Sending()
    if 0 < amount <= MAX_WINDOW - FIRST_WINDOW:
        sending.more(amount)
        assert sending.credit == FIRST_WINDOW + amount
    else:
        with pytest.raises(LinkError, match="window"):
            sending.more(amount)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 60), st.booleans()), max_size=60))
def test_parts_hold_no_more_than_their_share_and_the_whole_no_more_than_all(work: list[tuple[int, int, bool]]) -> None:
    whole = Budget(100)
    parts = [Budget(50, whole) for _ in range(3)]
    for which, amount, spare in work:
        part, before = parts[which], (whole.held, parts[which].held)
        if part.take(amount, of=2 if spare else 1):
            assert part.held <= (25 if spare else 50)
            assert whole.held <= (50 if spare else 100)
        else:
            assert (whole.held, part.held) == before
            part.give(part.held)
        assert whole.held == sum(one.held for one in parts)


def test_a_stream_that_carries_much_gets_a_larger_window_while_the_budget_lasts() -> None:
    budget = Budget(8 * FIRST_WINDOW)
    first, second = opened(budget), opened(budget)
    for _ in range(8):
        for one in (first, second):
            amount = one.window - one.waiting
            with_credit = min(amount, FIRST_WINDOW // 2)
            one.came(with_credit)
            one.taken(with_credit)
    assert (first.window, second.window) == (2 * FIRST_WINDOW, 2 * FIRST_WINDOW)
    assert budget.held == budget.limit // 2, "the other half is for streams to come"
