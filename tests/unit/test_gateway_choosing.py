"""Which version a run gets where an alias means two: once for the whole run, by the run or by what the alias is sticky by."""

from typing import Any

import msgspec
import pytest
from doubles.gateways import route
from doubles.nodes import spec
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.catalog.routes import AliasRoute, Route
from orchestrator.catalog.watch import RouteTable
from orchestrator.gateway.choosing import Choices

shares = st.floats(0.05, 0.95)
runs = st.integers(0, 2**128 - 1).map(lambda number: f"{number:032x}")


def split(share: float, sticky: str = "", generation: int = 1, numbers: tuple[int, ...] = (1, 2)) -> Route:
    made = route(*(spec("f", number) for number in numbers), generation=generation)
    return msgspec.structs.replace(made, aliases=(AliasRoute("live", 1, 2, share, sticky),))


def got(table: RouteTable, choices: Choices) -> int:
    chosen = choices.version(table, table.routes["acme/f"], "live")
    assert chosen is not None
    return int(chosen.version.rpartition(":")[2])


def table_of(share: float, sticky: str = "") -> RouteTable:
    table = RouteTable()
    table.put("acme/f", split(share, sticky))
    return table


@given(run=runs, before=shares, after=shares)
def test_a_run_keeps_what_it_chose_also_when_the_alias_moves(run: str, before: float, after: float) -> None:
    table = table_of(before)
    choices = Choices(run)
    chosen = got(table, choices)
    table.put("acme/f", split(after, generation=2))
    assert got(table, choices) == chosen
    table.put("acme/f", route(spec("f", 1), spec("f", 2), generation=3))
    assert got(table, choices) == chosen, "the alias is gone"


def test_what_it_chose_is_gone_so_it_chooses_anew() -> None:
    table = table_of(0.5)
    choices = next(one for one in (Choices(f"{number:032x}") for number in range(100)) if got(table, one) == 2)
    table.put("acme/f", split(0.0, generation=2, numbers=(1, 3)))
    assert got(table, choices) == 1


@pytest.mark.parametrize(
    ("sticky", "same"),
    [
        ("key", {"key_id": "k1"}),
        ("header:x-user", {"headers": {b"x-user": b"ann"}}),
        ("header:x-user", {"headers": {b"x-user": b"a" * 5000}}),
    ],
)
def test_the_same_key_or_header_gets_the_same_in_every_run(sticky: str, same: dict[str, Any]) -> None:
    table = table_of(0.5, sticky)
    assert len({got(table, Choices(f"{number:032x}", **same)) for number in range(50)}) == 1
    for others in ({}, {"headers": {b"x-user": b""}}):
        assert len({got(table, Choices(f"{number:032x}", **others)) for number in range(50)}) == 2, "without it the run decides"


@given(run=runs)
def test_numbers_and_aliases_of_one_version_are_no_choice(run: str) -> None:
    table = table_of(0.5)
    choices = Choices(run)
    for qualifier, expected in (("1", "acme/f:1"), ("2", "acme/f:2"), ("", "acme/f:2"), ("$LATEST", "acme/f:2")):
        found = choices.version(table, table.routes["acme/f"], qualifier)
        assert found is not None
        assert found.version == expected
    assert choices.version(table, table.routes["acme/f"], "nobody") is None
