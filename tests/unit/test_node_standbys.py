"""Standbys: made when the node is quiet, per tenant and shape, replaced when used or dead, never at the cost of a start."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from doubles.loop import in_loop, settle, until
from doubles.sandboxes import PLAIN, DoubleClone, DoubleDriver

from workers import standbys
from workers.admission import ON_DEMAND, CoreGate
from workers.network.none import NoPlane
from workers.ports import DriverError, Traits
from workers.standbys import StandbyPool
from workers.tunnelling import Tunnels


@contextlib.asynccontextmanager
async def pool_of(
    target: int = 2, limit: int = 500, cores: int = 2, traits: Traits = PLAIN
) -> AsyncIterator[tuple[StandbyPool, DoubleDriver, CoreGate]]:
    driver, gate = DoubleDriver(traits), CoreGate(cores)
    pool = StandbyPool(driver, gate, target, Tunnels(NoPlane()), limit)
    pool.start()
    try:
        yield pool, driver, gate
    finally:
        driver.clone_turn.open()
        driver.rest_turn.open()
        await pool.stop()
    assert driver.alive == []


@in_loop
async def test_nothing_is_made_before_a_tenant_and_shape_were_wanted() -> None:
    async with pool_of() as (pool, driver, _):
        await settle(20)
        assert driver.tries == 0
        assert pool.take("acme", 128) is None
        pool.want("acme", 128)
        pool.want("acme", 128)
        await until(lambda: len(pool) == 2)
        await settle(20)
        assert [(clone.tenant, clone.memory_mb) for clone in driver.clones] == [("acme", 128)] * 2


@in_loop
async def test_one_taken_is_nobody_elses_and_is_replaced() -> None:
    async with pool_of() as (pool, driver, _):
        pool.want("acme", 128)
        await until(lambda: len(pool) == 2)
        taken = [pool.take("acme", 128), pool.take("acme", 128), pool.take("acme", 128)]
        assert taken[2] is None
        assert taken[0] is not taken[1]
        await until(lambda: len(pool) == 2)
        assert len(driver.clones) == 4
        for one in taken[:2]:
            assert one is not None
            await one.kill("the test ends it")


@in_loop
async def test_tenants_and_shapes_do_not_share() -> None:
    async with pool_of(target=1) as (pool, _, _):
        pool.want("acme", 128)
        pool.want("acme", 512)
        pool.want("other", 128)
        await until(lambda: len(pool) == 3)
        for tenant, shape in [("acme", 128), ("acme", 512), ("other", 128)]:
            clone = pool.take(tenant, shape)
            assert clone is not None
            assert (clone.tenant, clone.memory_mb) == (tenant, shape)  # type: ignore[attr-defined]
            await clone.kill("the test ends it")


@in_loop
async def test_a_dead_one_is_not_handed_out_and_is_replaced() -> None:
    async with pool_of(target=1) as (pool, driver, _):
        pool.want("acme", 128)
        await until(lambda: len(pool) == 1)
        driver.clones[0].die("killed from outside")
        assert pool.take("acme", 128) is None
        await until(lambda: len(pool) == 1)
        clone = pool.take("acme", 128)
        assert clone is driver.clones[1]
        await clone.kill("the test ends it")


@in_loop
async def test_the_limit_holds_over_all_tenants() -> None:
    async with pool_of(target=3, limit=4) as (pool, driver, _):
        pool.want("acme", 128)
        pool.want("other", 128)
        await until(lambda: len(pool) == 4)
        await settle(20)
        assert driver.tries == 4


@in_loop
async def test_starts_go_first_at_the_cores_and_refills_wait_for_quiet() -> None:
    async with pool_of(target=1, cores=1) as (pool, driver, gate):
        await gate.enter(ON_DEMAND)
        pool.want("acme", 128)
        await until(lambda: gate.waiting == 1)
        second = asyncio.ensure_future(gate.enter(ON_DEMAND))
        await settle()
        gate.leave(ON_DEMAND)
        await second
        assert driver.tries == 0, "a start that came later went first"
        gate.leave(ON_DEMAND)
        await until(lambda: len(pool) == 1)
        pool.busy_until = asyncio.get_running_loop().time() + 1000.0  # both clocks are the monotonic one
        clone = pool.take("acme", 128)
        assert clone is not None
        await settle(20)
        assert driver.tries == 1
        await clone.kill("the test ends it")


@in_loop
async def test_a_shape_that_fails_holds_no_core_and_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standbys, "RETRY_S", 600.0)
    async with pool_of(target=1, cores=1) as (pool, driver, gate):
        driver.clone_error = lambda tenant, _: DriverError("no") if tenant == "broken" else None
        pool.want("broken", 128)
        await until(lambda: driver.tries == 1)
        await asyncio.wait_for(gate.enter(ON_DEMAND), 30.0)
        gate.leave(ON_DEMAND)
        pool.want("acme", 128)
        await until(lambda: len(pool) == 1)
        assert driver.tries == 2


@in_loop
async def test_a_shape_that_failed_is_tried_again_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standbys, "RETRY_S", 0.01)
    async with pool_of(target=1) as (pool, driver, _):
        driver.clone_error = lambda _tenant, _memory: OSError("fork: try again") if driver.tries < 3 else None
        pool.want("acme", 128)
        await until(lambda: len(pool) == 1)
        assert driver.tries == 3


@in_loop
async def test_stopping_in_the_middle_of_a_clone_leaves_nothing() -> None:
    async with pool_of() as (pool, driver, _):
        driver.clone_turn.close()
        pool.want("acme", 128)
        await until(lambda: driver.clone_turn.waiting == 1)
        await pool.stop()
        assert driver.cloning == 0


SHARED = Traits(shared_standbys=True)


@in_loop
async def test_shared_ones_are_whoevers_comes_first_and_go_with_the_last_who_wanted_them() -> None:
    async with pool_of(target=1, traits=SHARED) as (pool, driver, _):
        pool.want("acme", 128)
        pool.want("other", 128)
        pool.want("other", 512)
        await until(lambda: len(pool) == 2)
        await settle(20)
        assert sorted((clone.tenant, clone.memory_mb) for clone in driver.clones) == [("", 128), ("", 512)]
        clone = pool.take("other", 128)
        assert clone is not None
        await clone.kill("the test ends it")
        await until(lambda: len(pool) == 2)
        await pool.forget("other")
        assert {clone.memory_mb for clone in driver.alive} == {128}
        await pool.forget("acme")
        assert driver.alive == []
        assert pool.take("acme", 128) is None


@in_loop
async def test_one_is_handed_out_only_when_it_rests_and_yields_until_then() -> None:
    async with pool_of(target=1, cores=1) as (pool, driver, gate):
        driver.rest_turn.close()
        pool.want("acme", 128)
        await until(lambda: driver.rest_turn.waiting == 1)
        assert pool.take("acme", 128) is None
        assert driver.clones[0].speculations == [True]
        await asyncio.wait_for(gate.enter(ON_DEMAND), 30.0)  # it holds up no start
        gate.leave(ON_DEMAND)
        driver.rest_turn.open()
        await until(lambda: len(pool) == 1)
        assert driver.clones[0].speculations == [True, False]


@in_loop
async def test_one_that_does_not_come_to_rest_ends() -> None:
    async with pool_of(target=1) as (pool, driver, _):
        driver.rest_error = DriverError("the exercise failed")
        pool.want("acme", 128)
        await until(lambda: driver.clones and not driver.alive)
        assert len(pool) == 0


@in_loop
async def test_one_that_cannot_be_killed_ends_no_refill(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standbys, "RETRY_S", 0.02)
    async with pool_of(target=1) as (pool, driver, _):
        driver.rest_error = DriverError("the exercise failed")

        async def stuck(self: DoubleClone, reason: str) -> None:
            self.die(reason)
            raise DriverError("it did not die in time")

        with monkeypatch.context() as patched:
            patched.setattr(DoubleClone, "kill", stuck)
            pool.want("acme", 128)
            await until(lambda: driver.clones)
            await settle()
        driver.rest_error = None
        await until(lambda: len(pool) == 1)


@in_loop
async def test_stopping_while_one_comes_to_rest_leaves_nothing() -> None:
    async with pool_of(target=1) as (pool, driver, _):
        driver.rest_turn.close()
        pool.want("acme", 128)
        await until(lambda: driver.rest_turn.waiting == 1)
        await pool.stop()
        assert driver.alive == []


@in_loop
async def test_there_are_as_many_as_the_largest_live_plan_draws() -> None:
    async with pool_of(target=1, traits=SHARED) as (pool, _, _):
        pool.want("acme", 128)
        await until(lambda: len(pool) == 1)
        pool.plan({"a": ("acme", 128), "b": ("other", 128), "c": ("acme", 128), "d": ("acme", 512)})
        pool.plan({"e": ("acme", 128), "a": ("acme", 128)})
        await until(lambda: len(pool) == 3)
        await settle(20)
        assert len(pool) == 3
        for decision in ("a", "b", "d"):
            pool.over(decision)
        taken = pool.take("acme", 128)
        assert taken is not None
        await taken.kill("the test ends it")
        await until(lambda: len(pool) == 3)  # one decision of it is still open
        pool.over("c")
        pool.over("never heard of")
        for _ in range(3):
            taken = pool.take("acme", 128)
            assert taken is not None
            await taken.kill("the test ends it")
        await until(lambda: len(pool) == 1)
        await settle(20)
        assert len(pool) == 1


@in_loop
async def test_plans_raise_nothing_where_a_clone_is_cheap_or_none_is_kept() -> None:
    for target, traits in ((1, PLAIN), (0, SHARED)):
        async with pool_of(target=target, traits=traits) as (pool, _, _):
            pool.want("acme", 128)
            pool.plan({"a": ("acme", 128), "b": ("acme", 128)})
            await until(lambda pool=pool, target=target: len(pool) == target)
            await settle(20)
            assert len(pool) == target
