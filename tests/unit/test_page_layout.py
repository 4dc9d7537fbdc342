"""Where functions stand in the drawn call graph."""

import random
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.page.layout import apart, place


def ranks(functions: str, *edges: str) -> dict[str, float]:
    return {name: x for name, (x, _) in place(list(functions), [(edge[0], edge[1]) for edge in edges]).items()}


def test_a_caller_stands_left_of_what_it_calls_by_the_longest_path() -> None:
    assert ranks("abcd", "ab", "bc", "ac", "cd", "ad") == {"a": 0, "b": 1, "c": 2, "d": 3}


def test_functions_that_call_each_other_stand_side_by_side_from_where_the_circle_is_entered() -> None:
    assert ranks("abcde", "ab", "bc", "cd", "db", "de") == {"a": 0, "b": 1, "c": 2, "d": 3, "e": 4}
    assert ranks("ab", "ab", "ba") == {"a": 0, "b": 1}


def test_a_function_that_calls_itself_is_placed_like_any_other() -> None:
    assert ranks("ab", "aa", "ab") == {"a": 0, "b": 1}
    assert ranks("a", "aa") == {"a": 0}


def test_calls_do_not_cross_when_they_need_not() -> None:
    places = place(["r", "s", "x", "y"], [("r", "y"), ("s", "x")])
    assert (places["r"][1] < places["s"][1]) == (places["y"][1] < places["x"][1])


def test_functions_without_calls_stand_below_in_rows() -> None:
    places = place(list("abcdefgh"), [("a", "b")])
    lowest = max(places["a"][1], places["b"][1])
    assert all(places[name][1] > lowest for name in "cdefgh")
    assert len({places[name] for name in "cdefgh"}) == 6


def test_nothing_is_placed_when_there_is_nothing() -> None:
    assert place([], []) == {}


@given(st.integers(1, 40), st.integers(0, 120), st.integers(0, 10_000))
def test_whatever_calls_whatever_all_have_a_place_of_their_own(many: int, calls: int, seed: int) -> None:
    source = random.Random(seed)
    names = [f"f{number}" for number in range(many)]
    edges = [(source.choice(names), source.choice(names)) for _ in range(calls)]
    places = place(names, edges)
    assert places == place(names, edges)
    assert set(places) == set(names)
    assert len(set(places.values())) == many


@given(st.lists(st.floats(-100, 100), max_size=30))
def test_rows_stand_apart_in_their_order_and_as_near_as_can_be(wanted: list[float]) -> None:
    found = apart(wanted)
    assert all(after - before >= 1 - 1e-9 for before, after in pairwise(found))
    assert abs(sum(found) - sum(wanted)) < 1e-6 * max(1, len(wanted))


def test_what_is_apart_already_stays() -> None:
    assert apart([0.0, 5.0, 7.5]) == [0.0, 5.0, 7.5]
    assert apart([2.0, 2.0, 2.0]) == [1.0, 2.0, 3.0]
