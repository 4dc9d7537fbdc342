"""Keep-alive by price on a node: never longer than its own, its own again when nobody tells, and not what a plan counts on."""

import time
from pathlib import Path

import pytest
from doubles.loop import in_loop, until
from doubles.nodes import Caller, Rig, running_node, spec
from hypothesis import given
from hypothesis import strategies as st

from workers.instances import Instance
from workers.keeping import MOST_VERSIONS, TOLD_FOR_S, KeepTimes
from workers.rpc.messages import Drain, Keep, PrepareItem, Rpc

ECHO = spec("echo")
OTHER = spec("other")
VERSION = ECHO.version
LONG_S = 1000.0


async def used(rig: Rig) -> Caller:
    gateway = await rig.caller()
    for one in (ECHO, OTHER):
        await gateway.invoke(one)
    return gateway


def versions(rig: Rig) -> set[str]:
    return {one.spec.version for one in rig.node.instances.table}


@in_loop
async def test_what_is_not_worth_keeping_goes_and_the_rest_stays(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig:
        await used(rig)
        planner = await rig.caller("planner")
        planner.connection.send(Rpc.KEEP, 0, Keep("acme", {VERSION: 0.0, OTHER.version: LONG_S}))
        await planner.caught_up()
        rig.node.idling.sweep(LONG_S / 2)
        assert versions(rig) == {OTHER.version}
        assert rig.node.idling.ended == {"price": 1, "lifetime": 0, "wanted": 0}
        rig.node.idling.sweep(0.0)  # its own keep-alive is over
        assert versions(rig) == set()
        assert rig.node.idling.ended == {"price": 1, "lifetime": 1, "wanted": 0}


@in_loop
async def test_the_second_instance_is_kept_for_its_own_time(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig:
        planner = await rig.caller("planner")
        await planner.subscribe()
        planner.define(ECHO)
        planner.prepare(*(PrepareItem(f"d{number}", VERSION, expires_s=0.05) for number in range(3)))
        planner.connection.send(Rpc.KEEP, 0, Keep("acme", {VERSION: LONG_S}, floor={VERSION: 3}, more_s={VERSION: [LONG_S, 0.0]}))
        for number in range(3):
            await planner.outcome(f"d{number}", ["ready"])
        await until(lambda: len(rig.node.decisions) == 0, "the decisions end with their lifetime")
        newest = sorted(rig.node.instances.table, key=lambda one: one.idle_since)[1:]
        planner.connection.send(Rpc.KEEP, 0, Keep("acme", floor={}))
        await planner.caught_up()
        rig.node.idling.sweep(2 * LONG_S)
        assert set(rig.node.instances.table) == set(newest), "the one that is idle longest is the third"


@in_loop
async def test_as_many_stay_as_are_wanted_whatever_their_idle_time(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig:
        planner = await rig.caller("planner")
        await planner.subscribe()
        planner.define(ECHO)
        planner.prepare(*(PrepareItem(f"d{number}", VERSION, expires_s=0.05) for number in range(3)))
        planner.connection.send(Rpc.KEEP, 0, Keep("acme", floor={VERSION: 2}))
        for number in range(3):
            await planner.outcome(f"d{number}", ["ready"])
        await until(lambda: len(rig.node.decisions) == 0, "the decisions end with their lifetime")
        assert len(list(rig.node.instances.table)) == 2
        rig.node.idling.sweep(0.0)
        assert len(list(rig.node.instances.table)) == 2
        planner.connection.send(Rpc.KEEP, 0, Keep("acme", floor={VERSION: 1}))
        await planner.caught_up()
        rig.node.idling.sweep(0.0)
        assert len(list(rig.node.instances.table)) == 1
        planner.connection.send(Rpc.KEEP, 0, Keep("acme", floor={}))
        await planner.caught_up()
        rig.node.idling.sweep(0.0)
        assert versions(rig) == set()


@in_loop
async def test_what_is_above_goes_at_once_where_only_so_many_are_wanted(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig:
        await used(rig)
        planner = await rig.caller("planner")
        planner.connection.send(Rpc.KEEP, 0, Keep("acme", floor={VERSION: 0, OTHER.version: 1}, only=True))
        await planner.caught_up()
        rig.node.idling.sweep(LONG_S)
        assert versions(rig) == {OTHER.version}
        assert rig.node.idling.ended["wanted"] == 1


@in_loop
async def test_only_planners_say_what_is_wanted(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig:
        gateway = await used(rig)
        gateway.connection.send(Rpc.KEEP, 0, Keep("acme", floor={VERSION: 1}))
        await gateway.caught_up()
        rig.node.idling.sweep(0.0)
        assert versions(rig) == set()


@in_loop
async def test_the_reason_is_told_to_the_sandbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_node(tmp_path) as rig:
        await used(rig)
        instances, whys = rig.node.instances, list[str]()
        kill = instances.kill

        def killed(instance: Instance, why: str) -> None:
            whys.append(why)
            kill(instance, why)

        monkeypatch.setattr(instances, "kill", killed)
        rig.node.idling.keeps.tell("acme", {VERSION: 0.0}, time.monotonic())
        rig.node.idling.sweep(LONG_S)
        assert whys == ["idle for 0 s: not worth keeping longer"]


@in_loop
async def test_what_a_live_plan_counts_on_and_open_decisions_are_untouched(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig:
        planner = await rig.caller("planner")
        await planner.subscribe()
        planner.define(ECHO, OTHER)
        planner.prepare(PrepareItem("d1", OTHER.version))
        await planner.outcome("d1", ["ready"])
        await planner.invoke(ECHO)
        planner.connection.send(Rpc.KEEP, 0, Keep("acme", {VERSION: 0.0, OTHER.version: 0.0}, {VERSION: 60.0}))
        await planner.caught_up()
        rig.node.idling.sweep(LONG_S)
        assert versions(rig) == {VERSION, OTHER.version}
        assert planner.outcomes("d1") == ["ready"]


@pytest.mark.parametrize("role", ["gateway", "control"])
@in_loop
async def test_nobody_but_a_planner_is_heard(tmp_path: Path, role: str) -> None:
    async with running_node(tmp_path) as rig:
        await used(rig)
        caller = await rig.caller(role)
        caller.connection.send(Rpc.KEEP, 0, Keep("acme", {VERSION: 0.0}))
        await caller.caught_up()
        rig.node.idling.sweep(LONG_S)
        assert VERSION in versions(rig)


@in_loop
async def test_an_older_epoch_is_not_obeyed(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig:
        await used(rig)
        planner = await rig.caller("planner")
        planner.connection.send(Rpc.KEEP, 0, Keep("acme", {}, {}, 5, "planner/0"))
        planner.connection.send(Rpc.KEEP, 0, Keep("acme", {VERSION: 0.0}, {}, 4, "planner/0"))
        await planner.caught_up()
        rig.node.idling.sweep(LONG_S)
        assert VERSION in versions(rig)


@in_loop
async def test_a_version_that_drains_is_forgotten_and_the_node_says_how_long_it_keeps(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig:
        await used(rig)
        planner = await rig.caller("planner")
        planner.connection.send(Rpc.KEEP, 0, Keep("acme", {VERSION: 3.0, OTHER.version: 1e9}))
        counts = {one["version"]: one for one in await planner.connection.ask("counts", tenant="acme")}
        assert counts[VERSION]["keep_s"] == 3.0
        assert counts[OTHER.version]["keep_s"] < 1e9, "never longer than the node's own"
        planner.connection.send(Rpc.DRAIN, 0, Drain(VERSION))
        await until(lambda: rig.node.idling.keeps.of(VERSION, 0.0) is None, "the version is forgotten")


# -- the books


def test_a_planner_that_is_gone_leaves_the_node_to_its_own_keep_alive() -> None:
    keeps = KeepTimes()
    keeps.tell("acme", {VERSION: 2.0}, 10.0)
    assert keeps.of(VERSION, 10.0 + TOLD_FOR_S - 0.1) == 2.0
    assert keeps.of(VERSION, 10.0 + TOLD_FOR_S) is None


def test_what_is_told_takes_the_place_of_what_was_and_nothing_means_the_default() -> None:
    keeps = KeepTimes()
    keeps.tell("acme", {VERSION: 2.0, OTHER.version: 3.0}, 0.0)
    keeps.tell("acme", {VERSION: 4.0}, 1.0)
    assert (keeps.of(VERSION, 1.0), keeps.of(OTHER.version, 1.0)) == (4.0, None)
    keeps.tell("acme", {}, 2.0)
    assert keeps.of(VERSION, 2.0) is None


def test_what_a_plan_counts_on_is_not_let_go_by_price_until_then() -> None:
    keeps = KeepTimes()
    keeps.tell("acme", {VERSION: 0.0}, 0.0)
    keeps.need("acme", {VERSION: 5.0}, 0.0)
    keeps.need("acme", {VERSION: 1.0}, 0.0)
    assert keeps.of(VERSION, 4.9) is None
    assert keeps.of(VERSION, 5.0) == 0.0


def test_it_is_bounded_and_a_tenant_that_is_gone_leaves_nothing() -> None:
    keeps = KeepTimes()
    for number in range(5):
        keeps.tell(f"t{number}", {f"t{number}/f{at}:1": 1.0 for at in range(MOST_VERSIONS // 3)}, 0.0)
    assert keeps.of("t0/f0:1", 0.0) is None
    assert keeps.of("t4/f0:1", 0.0) == 1.0
    keeps.need("t4", {"t4/f0:1": 1.0}, 0.0)
    keeps.forget_tenant("t4")
    assert keeps.of("t4/f0:1", 2.0) is None


anything = st.floats() | st.sampled_from([0.0, -1.0, 1e300])
names = st.sampled_from([VERSION, OTHER.version, "beta/echo:1", "", "/", "acme/"])


@given(st.lists(st.tuples(st.sampled_from(["acme", "beta", ""]), st.dictionaries(names, anything), st.booleans())))
def test_whatever_is_told_it_is_a_time_of_ones_own(told: list[tuple[str, dict[str, float], bool]]) -> None:
    keeps = KeepTimes()
    for number, (tenant, table, need) in enumerate(told):
        (keeps.need if need else keeps.tell)(tenant, table, float(number))
        for version in ("acme/echo:1", "acme/other:1", "beta/echo:1", ""):
            found = keeps.of(version, float(number))
            assert found is None or 0.0 <= found < float("inf")
    keeps.tell("beta", {VERSION: 1.0}, 1e6)
    assert keeps.of(VERSION, 1e6) is None, "another tenant's"
