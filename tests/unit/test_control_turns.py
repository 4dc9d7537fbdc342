"""Turns of tenants at something dear."""

import asyncio

import pytest
from doubles.loop import in_loop, until
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.control.turns import Turns


@in_loop
async def test_a_tenants_second_takes_no_place_of_the_others() -> None:
    turns, go, had = Turns(2), asyncio.Event(), []

    async def work(tenant: str) -> None:
        async with turns.turn(tenant, 5):
            had.append(tenant)
            await go.wait()

    tasks = [asyncio.create_task(work(tenant)) for tenant in ("a", "a", "a", "b", "c")]
    await until(lambda: len(had) == 2, "two run")
    assert sorted(had) == ["a", "b"]
    with pytest.raises(TimeoutError):
        async with turns.turn("a", 0.01):
            raise AssertionError
    go.set()
    await asyncio.gather(*tasks)
    assert sorted(had) == ["a", "a", "a", "b", "c"]
    assert len(turns) == 0


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from([0.0, 5.0]), st.booleans()), max_size=20))
def test_never_more_than_its_places_nor_two_of_a_tenant_and_nothing_stays(asked: list[tuple[str, float, bool]]) -> None:
    @in_loop
    async def check() -> None:
        turns, running = Turns(2), list[str]()

        async def work(tenant: str, wait_s: float, breaks: bool) -> None:
            async with turns.turn(tenant, wait_s):
                running.append(tenant)
                assert len(running) <= 2
                assert running.count(tenant) == 1
                await asyncio.sleep(0)
                running.remove(tenant)
                if breaks:
                    raise ZeroDivisionError

        done = await asyncio.gather(*(work(*one) for one in asked), return_exceptions=True)
        assert {type(one) for one in done} <= {type(None), TimeoutError, ZeroDivisionError}
        assert len(turns) == 0

    check()
