"""Prewarm decisions on a node: each ends exactly once, as what it was, whatever comes in between."""

import asyncio
import random
from pathlib import Path

import pytest
from doubles.loop import in_loop, settle, until
from doubles.nodes import Caller, Rig, running_node, spec
from doubles.sandboxes import echo, silent
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from workers import decisions
from workers.ports import InitFailed
from workers.rpc.messages import Drain, Hosted, PrepareItem, Retire, Rpc
from workers.versions import VersionSpec

ECHO = spec("echo")


async def planner(rig: Rig, *specs: VersionSpec, epoch: int = 0) -> Caller:
    caller = await rig.caller("planner", epoch)
    await caller.subscribe()
    caller.define(*(specs or (ECHO,)))
    return caller


# -- how a decision ends


@in_loop
async def test_a_hit_is_told_with_who_used_it_and_how_long_it_took_to_get_ready(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig:
        told = await planner(rig)
        told.prepare(PrepareItem("d1", ECHO.version))
        ready = await told.outcome("d1", ["ready"])
        assert ready.start_s > 0
        assert ready.timings.init == 3.0
        gateway = await rig.caller()
        running = gateway.start(ECHO)
        hit = await told.outcome("d1", ["hit"])
        assert hit.invocation_id == running.invocation_id
        assert await running.status() == "ok"
        for _ in range(3):
            await gateway.invoke(ECHO)
        await rig.told(told)
        assert told.outcomes("d1") == ["ready", "hit"]


@in_loop
async def test_late_is_told_when_it_is_adopted_and_ready_is_not_told_after(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig:
        rig.driver.init_turn.close()
        told = await planner(rig)
        told.prepare(PrepareItem("d1", ECHO.version))
        await until(lambda: rig.driver.initialising)
        gateway = await rig.caller()
        running = gateway.start(ECHO)
        late = await told.outcome("d1", ["late"])
        assert late.invocation_id == running.invocation_id
        rig.driver.init_turn.open()
        await running.result()
        await rig.told(told)
        assert told.outcomes("d1") == ["late"]


@in_loop
async def test_what_nobody_used_within_its_lifetime_is_wasted_and_gone(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig:
        told = await planner(rig)
        told.prepare(PrepareItem("d1", ECHO.version, expires_s=0.02))
        wasted = await told.outcome("d1", ["wasted"])
        assert "lifetime" in wasted.detail
        await until(lambda: rig.driver.alive == [])
        assert told.outcomes("d1") == ["ready", "wasted"]


@in_loop
async def test_the_lifetime_of_a_used_one_ends_nothing(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig:
        told = await planner(rig)
        told.prepare(PrepareItem("d1", ECHO.version, expires_s=3.0))
        await told.outcome("d1", ["ready"])
        await told.invoke(ECHO)
        await asyncio.sleep(3.1)
        assert len(rig.driver.alive) == 1
        assert told.outcomes("d1") == ["ready", "hit"]


@pytest.mark.parametrize("stage", ["queued", "cloning", "initialising"])
@in_loop
async def test_revoked_before_it_is_ready_it_is_cancelled_and_costs_nothing_more(tmp_path: Path, stage: str) -> None:
    async with running_node(tmp_path, cores=1) as rig:
        first = spec("first")
        told = await planner(rig, first, ECHO)
        rig.driver.clone_turn.close()
        rig.driver.init_turn.close()
        if stage == "queued":
            told.prepare(PrepareItem("d0", first.version))
            await until(lambda: rig.driver.clone_turn.waiting == 1)
        told.prepare(PrepareItem("d1", ECHO.version))
        await told.caught_up()
        if stage != "queued":
            await until(lambda: rig.driver.clone_turn.waiting == 1)
        if stage == "initialising":
            rig.driver.clone_turn.pass_one()
            await until(lambda: rig.driver.initialising)
        told.revoke("d1", why="the branch went elsewhere")
        cancelled = await told.outcome("d1", ["cancelled"])
        assert cancelled.detail == "the branch went elsewhere"
        assert rig.node.instances.memory.used_mb == (128 if stage == "queued" else 0)
        rig.driver.clone_turn.open()
        rig.driver.init_turn.open()
        await rig.quiet()
        assert [clone.work.version for clone in rig.driver.initialising if clone.work] == (
            {"queued": [first.version], "cloning": [], "initialising": [ECHO.version]}[stage]
        )
        assert [clone.work.version for clone in rig.driver.alive if clone.work] == ([first.version] if stage == "queued" else [])
        assert rig.driver.tries == 1, "what was revoked while it queued is never cloned"
        assert told.outcomes("d1") == ["cancelled"]


@in_loop
async def test_revoking_what_is_ready_or_used_or_unknown_changes_nothing(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig:
        told = await planner(rig)
        told.prepare(PrepareItem("d1", ECHO.version))
        await told.outcome("d1", ["ready"])
        told.revoke("d1", "nonsense")
        assert (await told.invoke(ECHO))[0].decision_id == "d1"
        told.revoke("d1")
        await rig.told(told)
        assert len(rig.driver.alive) == 1
        assert told.outcomes("d1") == ["ready", "hit"]


@in_loop
async def test_revoking_what_a_request_has_adopted_does_not_take_it_away(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig:
        rig.driver.init_turn.close()
        told = await planner(rig)
        told.prepare(PrepareItem("d1", ECHO.version))
        await until(lambda: rig.driver.initialising)
        running = told.start(ECHO)
        told.revoke("d1")
        await told.caught_up()
        rig.driver.init_turn.open()
        assert await running.status() == "ok"
        await rig.told(told)
        assert told.outcomes("d1") == ["late"]


@in_loop
async def test_a_start_that_fails_cancels_and_says_why(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig:
        rig.driver.init_error = InitFailed({"type": "ImportError", "message": "no module named x"})
        told = await planner(rig)
        told.prepare(PrepareItem("d1", ECHO.version))
        cancelled = await told.outcome("d1", ["cancelled"])
        assert "no module named x" in cancelled.detail
        assert told.outcomes("d1") == ["cancelled"]


@in_loop
async def test_a_ready_one_that_dies_is_wasted(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig:
        told = await planner(rig)
        told.prepare(PrepareItem("d1", ECHO.version))
        await told.outcome("d1", ["ready"])
        rig.driver.clones[0].die("out of memory")
        assert (await told.outcome("d1", ["wasted"])).detail == "out of memory"


@in_loop
async def test_a_plan_never_takes_memory_from_what_is_there(tmp_path: Path) -> None:
    async with running_node(tmp_path, memory_mb=300) as rig:
        one, two = spec("one"), spec("two")
        told = await planner(rig, one, two, ECHO)
        await told.invoke(one)
        await told.invoke(two)
        told.prepare(PrepareItem("d1", ECHO.version))
        cancelled = await told.outcome("d1", ["cancelled"])
        assert "memory" in cancelled.detail
        assert len(rig.driver.alive) == 2


@in_loop
async def test_a_request_does_take_it_from_a_plan_and_the_plan_hears_of_it(tmp_path: Path) -> None:
    async with running_node(tmp_path, memory_mb=150) as rig:
        other = spec("other")
        told = await planner(rig, ECHO, other)
        told.prepare(PrepareItem("d1", ECHO.version))
        await told.outcome("d1", ["ready"])
        assert (await told.invoke(other))[0].status == "ok"
        assert (await told.outcome("d1", ["wasted"])).detail == "gave way to a request"


@in_loop
async def test_orders_for_what_the_node_does_not_know_or_drains_are_cancelled(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig:
        told = await planner(rig)
        told.prepare(PrepareItem("d1", "acme/nobody:1"))
        assert "does not know" in (await told.outcome("d1", ["cancelled"])).detail
        told.connection.send(Rpc.DRAIN, 0, Drain(ECHO.version))
        told.prepare(PrepareItem("d2", ECHO.version))
        assert (await told.outcome("d2", ["cancelled"])).detail == "draining"


@in_loop
async def test_cooling_gives_up_the_idle_and_the_coming_but_not_what_somebody_waits_for(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig:
        other = spec("other")
        told = await planner(rig, ECHO, other)
        await told.invoke(ECHO)
        await told.invoke(other)
        rig.driver.init_turn.close()
        told.prepare(PrepareItem("d1", ECHO.version), PrepareItem("d2", ECHO.version))
        await until(lambda: len(rig.driver.initialising) == 4)
        rig.driver.handler = silent
        busy, adopter = told.start(ECHO), told.start(ECHO)
        await told.caught_up()
        assert await told.connection.ask("cool", tenant="acme", names=["echo"]) == {"cooled": 1}
        await rig.told(told)
        assert len(told.endings("d1") + told.endings("d2")) == 2
        assert {*told.endings("d1"), *told.endings("d2")} == {"late", "cancelled"}
        rig.driver.handler = echo
        rig.driver.init_turn.open()
        rig.driver.clones[0].answer(2)
        assert (await busy.status(), await adopter.status()) == ("ok", "ok")
        assert any(clone.work and clone.work.version == other.version for clone in rig.driver.alive)


# -- when


@in_loop
async def test_a_delayed_order_begins_after_its_delay_and_not_when_revoked_before(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig:
        told = await planner(rig)
        told.prepare(PrepareItem("d1", ECHO.version, delay_s=3.0), PrepareItem("d2", ECHO.version, delay_s=3.0))
        told.revoke("d2")
        await told.outcome("d2", ["cancelled"])
        assert rig.driver.tries == 0
        await told.outcome("d1", ["ready"])
        assert rig.driver.tries == 1


@in_loop
async def test_more_urgent_orders_are_prepared_first(tmp_path: Path) -> None:
    async with running_node(tmp_path, cores=1) as rig:
        specs = [spec(name) for name in ("a", "b", "c", "d")]
        told = await planner(rig, *specs)
        rig.driver.clone_turn.close()
        told.prepare(
            *(PrepareItem(f"d{n}", specs[n].version, needed_in_s=in_s) for n, in_s in enumerate((0.0, 30.0, 10.0, 20.0)))
        )
        for number in range(4):
            await until(lambda: rig.driver.clone_turn.waiting == 1)
            rig.driver.clone_turn.pass_one()
            await until(lambda number=number: len(rig.driver.initialising) == number + 1)
        assert [clone.work.version for clone in rig.driver.initialising if clone.work] == [specs[n].version for n in (0, 2, 3, 1)]


@in_loop
async def test_no_more_clones_at_once_than_cores_while_inits_wait_without_one(tmp_path: Path) -> None:
    async with running_node(tmp_path, cores=2) as rig:
        told = await planner(rig)
        rig.driver.init_turn.close()
        told.prepare(*(PrepareItem(f"d{n}", ECHO.version) for n in range(8)))
        await until(lambda: len(rig.driver.initialising) == 8)
        assert rig.driver.most_cloning <= 2
        rig.driver.init_turn.open()
        for number in range(8):
            await told.outcome(f"d{number}", ["ready"])


@in_loop
async def test_code_alone_is_fetched_a_few_at_a_time_and_is_no_decision(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig:
        specs = [spec(f"f{n}") for n in range(6)]
        told = await planner(rig, *specs)
        rig.code.everything_held = False
        told.prepare(*(PrepareItem("", one.version, level="code") for one in specs))
        await until(lambda: len(rig.code.fetched) == 6)
        assert rig.code.most_fetching <= 2
        assert (rig.driver.tries, told.updates, len(rig.node.decisions)) == (0, [], 0)


@in_loop
async def test_a_prefetch_that_hangs_does_not_hold_up_a_start(tmp_path: Path) -> None:
    async with running_node(tmp_path, cores=1) as rig:
        stuck = spec("stuck")
        told = await planner(rig, stuck)
        rig.code.everything_held = False
        rig.code.fetch_turn.close()
        told.prepare(PrepareItem("", stuck.version, level="code"))
        await until(lambda: rig.code.fetch_turn.waiting)
        rig.code.everything_held = True
        running = told.start(ECHO, b"x")
        await until(lambda: rig.driver.clones, "the clone, which needs the only core")
        rig.code.fetch_turn.open()
        assert await running.status() == "ok"


@in_loop
async def test_what_a_plan_wants_is_pinned_before_it_comes_and_until_the_plan_is_over(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig:
        rig.code.everything_held = False
        rig.code.fetch_turn.close()
        told = await planner(rig, ECHO)
        told.prepare(PrepareItem("later", ECHO.version, delay_s=60.0), PrepareItem("now", ECHO.version))
        await until(lambda: rig.code.fetching == 2, "the code comes now, also for what is to be ready later")
        assert rig.code.pins[ECHO.version] == 3, "two plans and an instance"
        rig.code.fetch_turn.open()
        await told.outcome("now", ["ready"])
        told.revoke("later")
        await told.outcome("later", ["cancelled"])
        assert rig.code.pins[ECHO.version] == 2
        assert (await told.invoke(ECHO))[0].status == "ok"
        assert rig.code.pins[ECHO.version] == 1, "the instance keeps its code, the plan is over"


@in_loop
async def test_a_hosted_tenants_known_versions_are_brought_in_order_and_no_other_tenants(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig:
        often, seldom, theirs = spec("often"), spec("seldom"), spec("theirs", tenant="rival")
        told = await planner(rig, seldom, often, theirs)
        versions = [often.version, "acme/unknown:1", seldom.version, theirs.version]
        told.connection.send(Rpc.HOSTED, 0, Hosted("acme", versions, epoch=7, lease="planner/0"))
        await until(lambda: rig.code.brought == {"acme": [often.version, seldom.version]})
        told.connection.send(Rpc.HOSTED, 0, Hosted("acme", [seldom.version], epoch=6, lease="planner/0"))
        told.connection.send(Rpc.RETIRE, 0, Retire("rival"))
        await until(lambda: rig.code.forgotten == ["rival"])
        told.connection.send(Rpc.HOSTED, 0, Hosted("rival", [theirs.version], epoch=7, lease="planner/0"))
        told.connection.send(Rpc.HOSTED, 0, Hosted("acme", [often.version], epoch=7, lease="planner/0"))
        await until(lambda: rig.code.brought["acme"] == [often.version])
        assert set(rig.code.brought) == {"acme"}


# -- once only


@in_loop
async def test_the_same_order_twice_is_one_decision(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig:
        told = await planner(rig)
        item = PrepareItem("d1", ECHO.version)
        told.prepare(item, item)
        told.prepare(item)
        await told.outcome("d1", ["ready"])
        await told.invoke(ECHO)
        await rig.told(told)
        assert told.outcomes("d1") == ["ready", "hit"]
        assert len(rig.driver.clones) == 1


@in_loop
async def test_a_planner_of_an_older_epoch_orders_nothing_and_revokes_nothing(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig:
        rig.driver.init_turn.close()
        told = await planner(rig, epoch=5)
        told.prepare(PrepareItem("d1", ECHO.version), epoch=5)
        old = await rig.caller("planner", epoch=4)
        old.prepare(PrepareItem("d2", ECHO.version), epoch=4)
        assert "epoch" in (await told.outcome("d2", ["cancelled"])).detail
        old.revoke("d1", epoch=4)
        await old.caught_up()
        rig.driver.init_turn.open()
        await told.outcome("d1", ["ready"])
        assert len(rig.driver.clones) == 1


@in_loop
async def test_a_full_book_takes_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decisions, "KEPT", 2)
    async with running_node(tmp_path) as rig:
        told = await planner(rig)
        told.prepare(*(PrepareItem(f"d{n}", ECHO.version, delay_s=9.0) for n in range(3)))
        assert "too many" in (await told.outcome("d2", ["cancelled"])).detail
        assert len(rig.node.decisions) == 2
        told.revoke("d0", "d1")
        await told.outcome("d1", ["cancelled"])
        assert len(rig.node.decisions) == 0


VERSIONS = [spec("one"), spec("two", concurrency=2)]
STEPS = [
    "prepare 0",
    "prepare 1",
    "delayed 0",
    "revoke",
    "invoke 0",
    "invoke 1",
    "clone",
    "init",
    "cancel",
    "die",
    "answer",
    "cool",
]
steps = st.lists(st.sampled_from([*STEPS, "turn"]), max_size=25)


@settings(
    max_examples=120,
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(story=steps, pick=st.randoms(use_true_random=False), memory_mb=st.sampled_from([300, 4096]))
def test_in_any_order_of_events_every_decision_ends_exactly_once_and_nothing_is_left(
    tmp_path: Path, story: list[str], pick: random.Random, memory_mb: int
) -> None:
    @in_loop
    async def body() -> None:
        choose = pick.choice
        async with running_node(tmp_path, memory_mb=memory_mb) as rig:
            told = await planner(rig, *VERSIONS)
            rig.driver.handler = silent
            rig.driver.clone_turn.close()
            rig.driver.init_turn.close()
            ordered: list[str] = []
            running = []
            for step in story:
                what, _, which = step.partition(" ")
                if what in ("prepare", "delayed"):
                    ordered.append(f"d{len(ordered)}")
                    delay_s = 0.003 if what == "delayed" else 0.0
                    told.prepare(PrepareItem(ordered[-1], VERSIONS[int(which)].version, delay_s=delay_s, expires_s=30.0))
                elif what == "invoke":
                    running.append(told.start(VERSIONS[int(which)]))
                elif what == "revoke" and ordered:
                    told.revoke(choose(ordered))
                elif what == "clone" and rig.driver.clone_turn.waiting:
                    rig.driver.clone_turn.pass_one()
                elif what == "init" and rig.driver.init_turn.waiting:
                    rig.driver.init_turn.pass_one()
                elif what == "cancel" and running:
                    choose(running).cancel()
                elif what == "die" and rig.driver.alive:
                    choose(rig.driver.alive).die("a test's whim")
                elif what == "answer" and rig.driver.instances:
                    clone = choose(rig.driver.instances)
                    for frame in clone.invocations():
                        clone.answer(frame.id)
                elif what == "cool":
                    await told.connection.ask("cool", tenant="acme", names=["one"])
                elif what == "turn":
                    await told.caught_up()
                await settle(2)
            rig.driver.handler = echo
            rig.driver.clone_turn.open()
            rig.driver.init_turn.open()
            for clone in list(rig.driver.instances):
                for frame in clone.invocations():
                    clone.answer(frame.id)
            for one in running:
                await one.result()
            await asyncio.sleep(0.005)
            await rig.quiet()
            await told.connection.ask("cool", tenant="acme", names=["one", "two"])
            await rig.quiet()
            await told.caught_up()
            await until(lambda: all(told.endings(one) for one in ordered), f"all end: {ordered} {told.updates}")
            for one in ordered:
                assert told.outcomes(one) in (["ready", "hit"], ["ready", "wasted"], ["late"], ["cancelled"]), one
            assert all(told.results[one.stream] == 1 for one in running)
            execution, instances = rig.node.execution, rig.node.instances
            assert (len(rig.node.decisions), len(instances.table), instances.memory.used_mb) == (0, 0, 0)
            assert (execution._streams, len(execution.calls)) == ({}, 0)
            assert rig.driver.alive == []

    body()


# -- what subscribers hear


@in_loop
async def test_counts_follow_and_the_whole_comes_at_the_start(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig:
        gateway = await rig.caller()
        await gateway.invoke(ECHO)
        told = await planner(rig)
        assert [(one.idle, one.busy, one.preparing) for one in told.counts.values()] == [(1, 0, 0)]
        assert told.free_mb == 4096 - 128
        rig.driver.init_turn.close()
        told.prepare(PrepareItem("d1", ECHO.version))
        await until(lambda: told.counts[ECHO.version].preparing == 1)
        assert told.free_mb == 4096 - 256
        rig.driver.init_turn.open()
        await until(lambda: (told.counts[ECHO.version].idle, told.counts[ECHO.version].preparing) == (2, 0))
        await told.connection.ask("cool", tenant="acme", names=["echo"])
        await until(lambda: (told.counts[ECHO.version].idle, told.free_mb) == (0, 4096))


@in_loop
async def test_outcomes_wait_for_a_planner_to_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.node.HEARTBEAT_S", 0.02)
    async with running_node(tmp_path) as rig:
        gateway = await rig.caller()
        gateway.define(ECHO)
        gateway.prepare(PrepareItem("d1", ECHO.version))
        assert (await gateway.invoke(ECHO))[0].decision_id == "d1"
        told = await rig.caller("planner")
        await told.subscribe()
        await gateway.invoke(ECHO)
        assert (await told.outcome("d1", ["late", "hit"])).decision_id == "d1"
