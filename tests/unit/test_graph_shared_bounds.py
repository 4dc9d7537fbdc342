"""What tenants share is bounded over all of them, and who has most gives first."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graph.callgraph import Bounds, CallGraph, TenantGraph
from graph.calls import Call, Trace
from graph.fairbook import FairBook
from graph.ids import function_id

TENANTS = "abc"
MOST = 12
Put = tuple[str, int]


@given(st.lists(st.tuples(st.sampled_from(TENANTS), st.integers(0, 30)), min_size=2 * MOST, max_size=120))
def test_a_book_is_bounded_and_only_who_has_most_loses(puts: list[Put]) -> None:
    book: FairBook[str, int] = FairBook(MOST)
    for number, (tenant, key) in enumerate(puts):
        before = {one: list(book.of(one)) for one in TENANTS}
        gone = book.put(tenant, f"{tenant}{key}", number)
        after = {one: list(book.of(one)) for one in TENANTS}
        assert len(book) == sum(map(len, after.values())) <= MOST
        assert after[tenant][-1:] == [f"{tenant}{key}"] or (gone is not None and gone[0] == f"{tenant}{key}")
        lost = [one for one in TENANTS if set(before[one]) - set(after[one])]
        assert len(lost) <= 1
        for one in lost:
            assert len(before[one]) + (one == tenant) > MOST // len(TENANTS)
            assert len(after[one]) + 1 >= max(map(len, after.values()))
            assert set(before[one]) - set(after[one]) == {next(key for key in before[one] if key != f"{tenant}{key}")}
    assert dict(book.items()) == {key: book.get(key) for one in TENANTS for key in book.of(one)}


def test_a_book_forgets_a_tenant_and_keeps_keys_apart() -> None:
    book: FairBook[str, int] = FairBook(4)
    for number in range(3):
        book.put("a", f"a{number}", number)
    book.put("b", "b0", 7)
    with pytest.raises(ValueError, match="another tenant"):
        book.put("b", "a1", 1)
    assert book.pop("a1") == 1
    assert book.pop("a1") is None
    book.forget("a")
    book.forget("a")
    assert list(book.items()) == [("b0", 7)]
    assert "a0" not in book
    with pytest.raises(ValueError, match="most"):
        FairBook(0)


def trace(tenant: str, number: int, entry: str, callees: int) -> Trace:
    top = function_id(tenant, entry)
    calls = tuple(Call(top, function_id(tenant, f"{entry}-{one}"), -1, 0.1, 0.1) for one in range(callees))
    return Trace(tenant, f"{number:032x}", top, 1.0, calls)  # type: ignore[arg-type]


BOUNDS = Bounds(functions=200, records=400, all_functions=60, all_records=90)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(TENANTS), st.integers(0, 40), st.integers(0, 6)), min_size=20, max_size=80))
def test_a_graph_is_bounded_over_tenants_and_only_who_has_most_loses(told: list[tuple[str, int, int]]) -> None:
    graph = CallGraph(BOUNDS)
    for number, (tenant, entry, callees) in enumerate(told):
        before = {one: set(held.functions) for one, held in graph.tenants.items()}
        graph.observe(trace(tenant, number, f"e{entry}", callees), float(number))
        held = {str(one): found for one, found in graph.tenants.items()}
        assert sum(len(one.functions) for one in held.values()) <= BOUNDS.all_functions
        assert sum(one.records for one in held.values()) <= BOUNDS.all_records
        sizes = {one: len(found.functions) for one, found in held.items()}
        for one, functions in before.items():
            if functions - set(held[str(one)].functions):
                others = [size for other, size in sizes.items() if other != one]
                assert len(functions) + callees + 1 >= max(others, default=0)
    for one in graph.tenants.values():
        counted = one.network.number_of_edges() + sum(len(f.reach.reached) for f in one.functions.values())
        assert counted == one.records


def test_who_has_little_keeps_it_beside_one_who_sends_without_end() -> None:
    graph = CallGraph(BOUNDS)
    for number in range(5):
        graph.observe(trace("small", number, f"mine{number}", 1), float(number))
    kept = set(graph.functions("small"))  # type: ignore[arg-type]
    for number in range(400):
        graph.observe(trace("large", 100 + number, f"e{number}", 3), 10.0 + number)
    assert set(graph.functions("small")) == kept  # type: ignore[arg-type]
    assert len(graph.functions("large")) > 30  # type: ignore[arg-type]
    graph.forget_tenant("large")  # type: ignore[arg-type]
    for number in range(12):
        graph.observe(trace("small", 600 + number, f"more{number}", 3), 500.0 + number)
    assert kept <= set(graph.functions("small"))  # type: ignore[arg-type]


def test_what_is_deployed_stays_and_is_not_gone_through_again_for_every_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = CallGraph(Bounds(functions=2000, records=4000, all_functions=640, all_records=900))
    asked: list[int] = []
    shrink = TenantGraph.shrink_functions
    monkeypatch.setattr(graph._shared[0], "_shrink", lambda one, most: (asked.append(most), shrink(one, most)))
    for number in range(700):
        graph.declare(function_id("big", f"f{number}"), [], 128, 0.0)
    asked.clear()
    for number in range(50):
        graph.observe(trace("small", number, f"e{number}", 0), float(number))
    assert len(graph.functions("big")) == 700  # type: ignore[arg-type]
    assert 0 < len(asked) < 25
