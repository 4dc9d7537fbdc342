"""Standbys held for a run's branches, orders for later, and what a request takes of both: a whole node over the driver double."""

import random
from pathlib import Path

import pytest
from doubles.loop import in_loop, settle, until
from doubles.nodes import Caller, Rig, running_node, spec
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from graph.calls import StartKind
from workers.ports import DriverError
from workers.rpc.messages import PrepareBatch, PrepareItem, Retire, Revoke, Rpc
from workers.versions import VersionSpec

LEFT, RIGHT = spec("left"), spec("right")
RUN = "t" * 32  # the run of every invocation of these tests


async def planner(rig: Rig, *specs: VersionSpec) -> Caller:
    caller = await rig.caller("planner")
    await caller.subscribe()
    caller.define(*(specs or (LEFT, RIGHT)))
    return caller


def standby(ident: str, trace_id: str = RUN, delay_s: float = 0.0, expires_s: float = 60.0) -> PrepareItem:
    return PrepareItem(ident, LEFT.version, "standby", delay_s, expires_s, 0.0, trace_id)


# -- a standby for whichever branch is taken


@in_loop
async def test_a_held_standby_becomes_whatever_the_run_calls_and_is_a_hit(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig:
        told = await planner(rig)
        told.prepare(standby("s1"))
        ready = await told.outcome("s1", ["ready"])
        assert (ready.source, rig.driver.tries) == ("standby", 1)
        assert rig.node.standbys == 1
        assert not [clone for clone in rig.driver.clones if clone.work], "no code before a branch is taken"
        gateway = await rig.caller()
        running = gateway.start(RIGHT)
        result, _ = await running.result()
        assert result.start is StartKind.STANDBY
        hit = await told.outcome("s1", ["hit"])
        assert (hit.invocation_id, hit.became) == (running.invocation_id, RIGHT.version)
        assert rig.driver.tries == 1, "it was not cloned again"
        assert rig.node.standbys == 0


@in_loop
async def test_a_start_waits_for_its_runs_standby_that_is_being_made_and_that_is_late(tmp_path: Path) -> None:
    async with running_node(tmp_path, cores=1) as rig:
        rig.driver.clone_turn.close()
        told = await planner(rig)
        told.prepare(standby("s1"))
        await until(lambda: rig.driver.clone_turn.waiting == 1)
        gateway = await rig.caller()
        running = gateway.start(RIGHT)
        late = await told.outcome("s1", ["late"])
        assert late.invocation_id == running.invocation_id
        rig.driver.clone_turn.open()
        assert (await running.result())[0].start is StartKind.STANDBY
        assert rig.driver.tries == 1
        await rig.told(told)
        assert told.outcomes("s1") == ["late"]


@in_loop
async def test_a_caller_that_goes_while_it_waits_for_a_standby_leaves_nothing_behind(tmp_path: Path) -> None:
    async with running_node(tmp_path, cores=1) as rig:
        rig.driver.clone_turn.close()
        told = await planner(rig)
        told.prepare(standby("s1"))
        await until(lambda: rig.driver.clone_turn.waiting == 1)
        gateway = await rig.caller()
        running = gateway.start(RIGHT)
        await told.outcome("s1", ["late"])
        running.cancel()
        assert await running.status() == "cancelled"
        rig.driver.clone_turn.open()
        await rig.quiet()
        assert len(rig.node.held) == 0


@in_loop
async def test_another_run_takes_it_only_when_there_is_nothing_else_and_only_a_request_does(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig:
        told = await planner(rig)
        told.prepare(standby("s1", "another run"))
        await told.outcome("s1", ["ready"])
        told.prepare(PrepareItem("d1", LEFT.version, trace_id=RUN))
        await told.outcome("d1", ["ready"])
        await rig.told(told)
        assert told.outcomes("s1") == ["ready"], "a plan takes no standby that another run holds"
        gateway = await rig.caller()
        assert (await gateway.invoke(RIGHT))[0].start is StartKind.STANDBY
        await told.outcome("s1", ["hit"])


@in_loop
async def test_an_instance_that_a_plan_orders_takes_its_runs_standby(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig:
        told = await planner(rig)
        told.prepare(standby("s1"))
        await told.outcome("s1", ["ready"])
        told.prepare(PrepareItem("d1", RIGHT.version, trace_id=RUN))
        ready = await told.outcome("d1", ["ready"])
        hit = await told.outcome("s1", ["hit"])
        assert (ready.source, hit.invocation_id, hit.became) == ("standby", "", RIGHT.version)
        assert rig.driver.tries == 1


@in_loop
async def test_one_of_another_shape_or_tenant_is_never_taken(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig:
        large, theirs = spec("large", memory_mb=512), spec("left", tenant="other")
        told = await planner(rig, LEFT, large, theirs)
        told.prepare(standby("s1"))
        await told.outcome("s1", ["ready"])
        gateway = await rig.caller()
        for one in (large, theirs):
            assert (await gateway.invoke(one))[0].start is StartKind.COLD
        await rig.told(told)
        assert told.outcomes("s1") == ["ready"]


@in_loop
async def test_unused_it_is_wasted_and_gone(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig:
        told = await planner(rig)
        told.prepare(standby("s1", expires_s=0.02))
        wasted = await told.outcome("s1", ["wasted"])
        assert "lifetime" in wasted.detail
        await until(lambda: rig.driver.alive == [])
        assert len(rig.node.held) == 0


@pytest.mark.parametrize("stage", ["delayed", "queued", "cloning", "ready"])
@in_loop
async def test_released_when_the_branch_resolves_whatever_it_is(tmp_path: Path, stage: str) -> None:
    async with running_node(tmp_path, cores=1) as rig:
        told = await planner(rig)
        if stage in ("queued", "cloning"):
            rig.driver.clone_turn.close()
        if stage == "queued":
            told.prepare(standby("s0", "another run"))
            await until(lambda: rig.driver.clone_turn.waiting == 1)
        told.prepare(standby("s1", delay_s=60.0 if stage == "delayed" else 0.0))
        if stage == "ready":
            await told.outcome("s1", ["ready"])
        elif stage == "cloning":
            await until(lambda: rig.driver.clone_turn.waiting == 1)
        told.revoke("s1", why="the branch went elsewhere")
        await told.caught_up()
        if stage == "ready":
            assert told.endings("s1") == [], "an order that does not say so gives up nothing that is ready"
            told.connection.send(Rpc.REVOKE, 0, Revoke(["s1"], "the branch went elsewhere", 0, "", True))
        gone = await told.outcome("s1", ["cancelled", "wasted"])
        assert (gone.outcome, gone.detail) == ("wasted" if stage == "ready" else "cancelled", "the branch went elsewhere")
        rig.driver.clone_turn.open()
        await settle(20)
        assert rig.driver.tries == {"delayed": 0, "queued": 1, "cloning": 1, "ready": 1}[stage]
        await until(lambda: len(rig.driver.alive) == (1 if stage == "queued" else 0))


@in_loop
async def test_a_released_one_waits_in_the_pool_where_one_is_missing(tmp_path: Path) -> None:
    async with running_node(tmp_path, standbys=1) as rig:
        told = await planner(rig)
        await until(lambda: len(rig.node._standbys) == 1)
        rig.node._standbys.busy_until = 1e12  # none is made in place of the one that is taken
        told.prepare(standby("s1"))
        ready = await told.outcome("s1", ["ready"])
        assert ready.timings.clone == 0.0, "the pool had one"
        assert len(rig.node._standbys) == 0
        told.connection.send(Rpc.REVOKE, 0, Revoke(["s1"], "not needed", 0, "", True))
        await told.outcome("s1", ["wasted"])
        await until(lambda: len(rig.node._standbys) == 1)
        assert rig.driver.tries == 1


@in_loop
async def test_one_that_cannot_be_made_is_cancelled_and_who_waits_for_it_is_cloned_anew(tmp_path: Path) -> None:
    async with running_node(tmp_path, cores=1) as rig:
        rig.driver.clone_turn.close()
        told = await planner(rig)
        told.prepare(standby("s1"))
        await until(lambda: rig.driver.clone_turn.waiting == 1)
        gateway = await rig.caller()
        running = gateway.start(RIGHT)
        await told.outcome("s1", ["late"])
        rig.driver.clone_error = lambda tenant, _: DriverError("no") if rig.driver.tries == 1 else None
        rig.driver.clone_turn.open()
        assert (await running.result())[0].start is StartKind.COLD


@in_loop
async def test_there_are_no_more_than_the_node_may_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_node(tmp_path) as rig:
        monkeypatch.setattr(rig.node._standbys, "_limit", 2)
        told = await planner(rig)
        told.prepare(*(standby(f"s{number}") for number in range(3)))
        refused = await told.outcome("s2", ["cancelled"])
        assert "as many standbys" in refused.detail


@in_loop
async def test_those_of_a_tenant_that_is_gone_end(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig:
        told = await planner(rig)
        told.prepare(standby("s1"))
        await told.outcome("s1", ["ready"])
        told.connection.send(Rpc.RETIRE, 0, Retire("acme"))
        await told.outcome("s1", ["wasted"])
        await until(lambda: rig.driver.alive == [])


@in_loop
async def test_one_that_comes_to_rest_ends_with_its_tenant(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig:
        rig.driver.rest_turn.close()
        told = await planner(rig)
        told.prepare(standby("s1"))
        await until(lambda: rig.driver.rest_turn.waiting == 1)
        told.connection.send(Rpc.RETIRE, 0, Retire("acme"))
        await told.outcome("s1", ["cancelled", "wasted"])
        await until(lambda: rig.driver.alive == [])


@in_loop
async def test_who_waits_for_one_that_fails_and_cannot_be_killed_waits_no_longer(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig:
        rig.driver.rest_turn.close()
        rig.driver.rest_error = DriverError("the exercise failed")
        told = await planner(rig)
        told.prepare(standby("s1"))
        await until(lambda: rig.driver.rest_turn.waiting == 1)
        running = (await rig.caller()).start(RIGHT)
        await told.outcome("s1", ["late"])
        stuck = rig.driver.clones[0]

        async def kill(reason: str) -> None:
            stuck.die(reason)
            raise DriverError("it did not die in time")

        stuck.kill = kill  # type: ignore[method-assign]
        rig.driver.rest_turn.open()
        assert (await running.result())[0].start is StartKind.COLD


@in_loop
async def test_one_that_dies_is_wasted(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig:
        told = await planner(rig)
        told.prepare(standby("s1"))
        await told.outcome("s1", ["ready"])
        await rig.driver.alive[0].kill("killed by the kernel")
        wasted = await told.outcome("s1", ["wasted"])
        assert wasted.detail == "killed by the kernel"


# -- orders for later


@in_loop
async def test_a_call_before_its_time_starts_at_once_and_ends_the_order_for_it_as_late(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig:
        told = await planner(rig)
        told.prepare(PrepareItem("d1", LEFT.version, delay_s=60.0, trace_id=RUN))
        told.prepare(PrepareItem("d2", LEFT.version, delay_s=60.0, trace_id="another run"))
        await told.caught_up()
        gateway = await rig.caller()
        running = gateway.start(LEFT)
        result, _ = await running.result()
        assert (result.start, result.decision_id) == (StartKind.COLD, "d1")
        late = await told.outcome("d1", ["late"])
        assert late.invocation_id == running.invocation_id
        assert late.start_s < 1.0, "nothing was done for it, whatever time has passed"
        await rig.told(told)
        assert told.endings("d2") == [], "what another run ordered is another run's"
        assert rig.driver.tries == 1


@in_loop
async def test_a_request_takes_the_memory_that_plans_hold_before_they_are_ready(tmp_path: Path) -> None:
    async with running_node(tmp_path, memory_mb=300) as rig:
        rig.driver.init_turn.close()
        told = await planner(rig)
        told.prepare(PrepareItem("d1", LEFT.version), PrepareItem("d2", LEFT.version))
        await until(lambda: len(rig.driver.initialising) == 2)
        gateway = await rig.caller()
        running = gateway.start(RIGHT)
        gone = await told.outcome("d1", ["cancelled"])
        assert "gave way" in gone.detail
        rig.driver.init_turn.open()
        assert await running.status() == "ok"


@in_loop
async def test_what_a_replaced_planner_ordered_for_later_never_begins(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig:
        told = await planner(rig)
        for ident, lease, delay_s in (("d1", "shard-1", 60.0), ("d2", "shard-2", 60.0), ("d3", "shard-1", 0.0)):
            item = PrepareItem(ident, LEFT.version, "ready", delay_s, 60.0, 0.0, RUN)
            told.connection.send(Rpc.PREPARE, 0, PrepareBatch([item], 7, lease))
        await told.outcome("d3", ["ready"])
        told.connection.send(Rpc.PREPARE, 0, PrepareBatch([], 8, "shard-1"))
        gone = await told.outcome("d1", ["cancelled"])
        assert "replaced" in gone.detail
        await rig.told(told)
        assert (told.endings("d2"), told.endings("d3")) == ([], []), "another lease's goes on, and so does what has begun"


# -- any story

STEPS = ["standby", "later", "order", "call", "other", "revoke", "release", "dies"]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], phases=[Phase.generate])
@given(story=st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 9)), max_size=25), pick=st.randoms(use_true_random=False))
def test_in_any_story_each_ends_once_and_nothing_is_left(
    tmp_path: Path, story: list[tuple[str, int]], pick: random.Random
) -> None:
    @in_loop
    async def body() -> None:
        async with running_node(tmp_path) as rig:
            told = await planner(rig)
            gateway = await rig.caller()
            ordered: list[str] = []
            for at, (what, number) in enumerate(story):
                ident = f"d{at}"
                version = (LEFT if number % 2 else RIGHT).version
                if what == "standby":
                    told.prepare(standby(ident, RUN if number % 3 else "other"))
                elif what in ("later", "order"):
                    delay_s = 0.001 * number if what == "later" else 0.0
                    told.prepare(PrepareItem(ident, version, "ready", delay_s, 60.0, 0.0, RUN))
                elif what in ("call", "other"):
                    gateway.start(LEFT if what == "call" else RIGHT)
                    continue
                elif what in ("revoke", "release") and ordered:
                    told.connection.send(Rpc.REVOKE, 0, Revoke([pick.choice(ordered)], "no", 0, "", what == "release"))
                elif what == "dies" and rig.driver.alive:
                    await pick.choice(rig.driver.alive).kill("died")
                if what in ("standby", "later", "order"):
                    ordered.append(ident)
                if number == 9:
                    await settle()
            told.connection.send(Rpc.REVOKE, 0, Revoke(ordered, "the test is over", 0, "", True))
            await until(lambda: all(told.endings(one) for one in ordered), f"{told.updates}")
            await rig.told(told)
            assert all(len(told.endings(one)) == 1 for one in ordered)
            assert (len(rig.node.held), len(rig.node.decisions), rig.node.decisions._delayed) == (0, 0, {})

    body()
