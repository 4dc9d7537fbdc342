"""When gates open and ramps stop: orchestrator.releases and orchestrator.splitting, which decide it all."""

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.releases import Need, Next, Rules, Seen, gate, hold, needed
from orchestrator.splitting import Pointer, growing, plain, shares, steps_of, to_second

RULES = Rules()
part = st.floats(0.0, 1.0, allow_nan=False)
pointers = st.builds(
    lambda first, other, share: Pointer(first, first + other, share) if other else Pointer(first),
    st.integers(1, 5),
    st.integers(0, 3),
    st.floats(0.01, 0.99),
)


# -- how many


@given(share=part, concurrency=st.floats(0.0, 1e4), per=st.integers(1, 100), target=st.floats(0.1, 1.0))
def test_n_is_the_formula_or_the_spread_above_it_and_never_more_than_all_traffic_needs(
    share: float, concurrency: float, per: int, target: float
) -> None:
    count = needed(share, concurrency, per, target)
    least = math.ceil(share * concurrency / (target * per) - 1e-9)
    assert least <= count <= max(least, math.ceil(concurrency / (target * per)))
    assert count >= 1 or share * concurrency < 1e-6, "whoever gets traffic has an instance"


@given(concurrency=st.floats(0.0, 1e4), per=st.integers(1, 100))
def test_the_whole_traffic_needs_what_the_formula_says(concurrency: float, per: int) -> None:
    assert needed(1.0, concurrency, per, 0.7) == math.ceil(concurrency / (0.7 * per) - 1e-9)


@given(share=st.floats(0.01, 0.99), more=st.floats(0.0, 1.0), concurrency=st.floats(0.1, 1e3))
def test_a_larger_share_never_needs_less_on_its_way_to_all(share: float, more: float, concurrency: float) -> None:
    larger = share + (1.0 - share) * more
    assert needed(share, concurrency, 1, 0.7) <= needed(1.0, concurrency, 1, 0.7)
    assert math.ceil(share * concurrency / 0.7 - 1e-9) <= needed(larger, concurrency, 1, 0.7)


def test_a_share_of_the_runs_has_instances_for_what_chance_may_bring() -> None:
    count = needed(0.3, 20.0, 1, 0.7)
    more = sum(math.comb(20, chose) * 0.3**chose * 0.7 ** (20 - chose) for chose in range(count + 1, 21))
    assert more < 0.001, "of 20 runs in flight more chose it than there are instances"


def test_without_traffic_nothing_is_needed_and_the_gate_stands_open() -> None:
    assert needed(1.0, 0.0, 1, 0.7) == 0
    assert gate([Need("f:2", 0, 0)], "", 0.0, RULES).next is Next.FLIP


# -- gates


needs = st.lists(st.builds(Need, st.just("f:2"), st.integers(0, 9), st.integers(0, 9)), max_size=4)


@given(needs=needs, failure=st.sampled_from(["", "KeyError"]), shut_s=st.floats(0, 300))
def test_a_gate_opens_only_when_everything_is_ready_and_nothing_failed(needs: list[Need], failure: str, shut_s: float) -> None:
    verdict = gate(needs, failure, shut_s, RULES)
    ready = all(one.ready >= one.wanted for one in needs)
    assert (verdict.next is Next.FLIP) == (ready and not failure)
    assert verdict.next is not Next.ADVANCE
    if verdict.next is Next.STOP:
        assert failure or shut_s >= RULES.timeout_s
    if verdict.next in (Next.STOP, Next.WAIT):
        assert verdict.reason


# -- steps in force


@given(
    new=st.tuples(st.integers(0, 500), st.integers(0, 500)),
    old=st.tuples(st.integers(0, 500), st.integers(0, 500)),
    watched_s=st.floats(0, 1000),
)
def test_a_step_goes_on_only_after_its_hold_and_stops_only_with_enough_requests(
    new: tuple[int, int], old: tuple[int, int], watched_s: float
) -> None:
    of = [Seen(requests, min(requests, errors), 0.01) for requests, errors in (new, old)]
    verdict = hold(of[0], of[1], watched_s, 60.0, RULES)
    if verdict.next is Next.ADVANCE:
        assert watched_s >= 60.0
    if verdict.next is Next.STOP:
        assert of[0].requests >= RULES.requests
        assert of[0].error_rate > of[1].error_rate + RULES.error_rate
    if of[0].requests >= RULES.requests and of[0].error_rate > of[1].error_rate + RULES.error_rate:
        assert verdict.next is Next.STOP
    assert verdict.next is not Next.FLIP


def test_a_slow_version_is_stopped_and_one_that_fails_as_the_old_one_does_is_not() -> None:
    fast, slow = Seen(200, 0, 0.100), Seen(200, 0, 0.200)
    assert hold(slow, fast, 1.0, 60.0, RULES).next is Next.STOP
    assert hold(fast, slow, 61.0, 60.0, RULES).next is Next.ADVANCE
    assert hold(Seen(200, 0, 0.004), Seen(200, 0, 0.001), 61.0, 60.0, RULES).next is Next.ADVANCE, "three ms are not worth it"
    both = Seen(200, 100, 0.1)
    assert hold(both, both, 61.0, 60.0, RULES).next is Next.ADVANCE


def test_a_step_with_too_few_requests_waits_longer_and_then_goes_on() -> None:
    few = Seen(3, 3, 0.1)
    assert hold(few, few, 61.0, 60.0, RULES).next is Next.WAIT
    assert hold(few, few, 301.0, 60.0, RULES).next is Next.ADVANCE


# -- pointers and steps


@given(pointer=pointers)
def test_the_shares_of_a_pointer_are_all_of_it(pointer: Pointer) -> None:
    assert sum(shares(pointer).values()) == pytest.approx(1.0)
    assert shares(plain(pointer)) == shares(pointer)


@given(before=pointers, version=st.integers(1, 9), ramp=st.lists(st.floats(0.01, 1.0), max_size=5, unique=True))
def test_a_ramp_only_ever_gives_its_version_more_and_ends_where_it_says(before: Pointer, version: int, ramp: list[float]) -> None:
    steps = steps_of(before, Pointer(version), tuple(sorted(ramp)))
    assert steps
    got = [shares(step).get(version, 0.0) for step in steps]
    assert got == sorted(got)
    if not ramp or max(ramp) == 1.0:
        assert steps[-1] == Pointer(version)
    for step in steps:
        assert set(shares(step)) <= {version} | set(shares(before)), "no third version comes in"
    if not ramp:
        assert set(growing(before, steps[-1])) <= {version}


@pytest.mark.parametrize("ramp", [(0.3, 0.1), (0.0, 1.0), (0.5, 1.5), (0.3, 0.3)])
def test_a_ramp_that_does_not_grow_is_refused(ramp: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="growing"):
        steps_of(Pointer(1), Pointer(2), ramp)


# -- who gets which


@given(ticket=st.text(max_size=40), share=part, more=part)
def test_who_had_the_second_version_keeps_it_while_its_share_grows(ticket: str, share: float, more: float) -> None:
    first, later = sorted((share, more))
    assert not to_second(first, "acme/f:live", ticket) or to_second(later, "acme/f:live", ticket)
    assert to_second(share, "acme/f:live", ticket) == to_second(share, "acme/f:live", ticket)
    assert not to_second(0.0, "acme/f:live", ticket)
    assert to_second(1.0, "acme/f:live", ticket)


def test_tickets_are_split_by_the_share_and_elsewhere_anew() -> None:
    tickets = [f"{number:032x}" for number in range(20_000)]
    here = [to_second(0.3, "acme/f:live", one) for one in tickets]
    there = [to_second(0.3, "acme/g:live", one) for one in tickets]
    assert sum(here) / len(here) == pytest.approx(0.3, abs=0.02)
    both = Counter(zip(here, there, strict=True))
    assert both[True, True] / len(here) == pytest.approx(0.09, abs=0.015)
