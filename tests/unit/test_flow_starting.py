"""Instances started before a version gets traffic: the real node over its socket, with a driver that a test can hold."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from doubles.loop import in_loop, until
from doubles.nodes import SECRET, Rig, running_node, spec

from graph.plans import DeployDecision, deploy_decision
from orchestrator.flow import links, starting
from orchestrator.flow.dependencies import Busy
from orchestrator.flow.starting import Starter, StartFailed, StartInterrupted
from orchestrator.placement import spread
from workers.ports import DriverError, InitFailed
from workers.rpc.messages import Hello, PrepareItem, Revoke, Rpc
from workers.rpc.transport import Peer

ECHO = spec("echo")
HELLO = Hello("flow", "flow-test", SECRET)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starting, "LOOK_S", 0.05)
    for limit in ("DIAL_TIMEOUT_S", "HEARD_TIMEOUT_S"):  # a busy machine is no node that is away
        monkeypatch.setattr(links, limit, 30.0)


class Started:
    """A start under way in a thread, as it is in a task. `ready` is what it was told in between."""

    def __init__(self, starter: Starter, count: int = 1) -> None:
        self.ready: list[int] = []
        self.task = asyncio.create_task(asyncio.to_thread(starter.start, ECHO, count, self.ready.append))


def starter(*paths: Path, stopping: bool = False) -> Starter:
    return Starter(lambda tenant: [(path, Peer("node", "")) for path in paths], HELLO, lambda: stopping)


@contextlib.asynccontextmanager
async def two_nodes(tmp_path: Path, first_mb: int = 4096, second_mb: int = 4096) -> AsyncIterator[tuple[Rig, Rig]]:
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
    async with running_node(folders[0], first_mb) as one, running_node(folders[1], second_mb) as two:
        yield one, two


def instances(rig: Rig) -> int:
    count = rig.node.instances.table.count(ECHO.version)
    return count.idle + count.busy


@in_loop
async def test_as_many_as_asked_for_are_ready_when_it_returns(tmp_path: Path) -> None:
    async with two_nodes(tmp_path) as (one, two):
        await Started(starter(one.path, two.path), 5).task
        assert sorted((instances(one), instances(two))) == [2, 3], "spread over the nodes"


@in_loop
async def test_progress_is_told_until_all_are(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig:
        rig.driver.init_turn.close()
        started = Started(starter(rig.path), 2)
        await until(lambda: rig.driver.init_turn.waiting == 2)
        rig.driver.init_turn.pass_one()
        await until(lambda: started.ready == [0, 1])
        assert not started.task.done()
        rig.driver.init_turn.open()
        await started.task


@in_loop
async def test_the_first_request_finds_one_prewarmed_and_says_by_which_decision(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig:
        watching = await rig.caller("planner")
        await watching.subscribe()
        await Started(starter(rig.path)).task
        await until(lambda: watching.updates)
        ordered = deploy_decision(watching.updates[0].decision_id)
        assert ordered is not None
        assert (ordered.version, ordered.memory_mb, ordered.ordinal) == (ECHO.version, 128, 1)
        gateway = await rig.caller()
        result, _ = await gateway.invoke(ECHO)
        assert result.start == "prewarmed"
        assert result.decision_id == ordered.decision_id


@in_loop
async def test_what_an_earlier_try_started_is_not_started_again(tmp_path: Path) -> None:
    """A flow that was killed in the middle left orders behind, some ready, some under way."""
    async with running_node(tmp_path) as rig:
        dead = await rig.caller("flow")
        dead.define(ECHO)
        dead.prepare(PrepareItem(DeployDecision(ECHO.version, 128, "dead", 1).decision_id, ECHO.version))
        await until(lambda: instances(rig) == 1)
        rig.driver.init_turn.close()
        dead.prepare(PrepareItem(DeployDecision(ECHO.version, 128, "dead", 2).decision_id, ECHO.version))
        await until(lambda: rig.driver.init_turn.waiting == 1)
        dead.connection.close()
        started = Started(starter(rig.path), 3)
        await until(lambda: rig.driver.init_turn.waiting == 2)
        rig.driver.init_turn.open()
        await started.task
        assert instances(rig) == 3
        assert len(rig.driver.clones) == 3


@in_loop
async def test_an_error_of_the_guests_init_is_the_end(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig:
        rig.driver.init_error = InitFailed({"type": "KeyError", "message": "'TOKEN'", "stack": ""})
        with pytest.raises(StartFailed, match="KeyError: 'TOKEN'"):
            await Started(starter(rig.path), 2).task


@in_loop
async def test_the_error_of_what_an_earlier_try_began_is_the_end_too(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig:
        dead = await rig.caller("flow")
        dead.define(ECHO)
        rig.driver.init_turn.close()
        dead.prepare(PrepareItem(DeployDecision(ECHO.version, 128, "dead", 1).decision_id, ECHO.version))
        await until(lambda: rig.driver.init_turn.waiting == 1)
        started = Started(starter(rig.path))
        await until(lambda: started.ready == [0])
        rig.driver.init_error = InitFailed({"type": "KeyError", "message": "'TOKEN'", "stack": ""})
        rig.driver.init_turn.open()
        with pytest.raises(StartFailed, match="KeyError: 'TOKEN'"):
            await started.task


@in_loop
async def test_a_guest_that_dies_without_a_word_may_be_tried_again(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig:
        rig.driver.init_error = DriverError("the guest ended: signal 9")
        with pytest.raises(StartInterrupted, match="signal 9") as caught:
            await Started(starter(rig.path)).task
        assert caught.value.died


@in_loop
async def test_a_node_that_is_away_is_done_without_or_tried_again(tmp_path: Path) -> None:
    absent = tmp_path / "absent.sock"
    async with running_node(tmp_path) as rig:
        await Started(starter(absent, rig.path), 2).task
        assert instances(rig) == 2
    with pytest.raises(StartInterrupted, match=r"no node is reachable: absent\.sock: cannot reach"):
        await Started(starter(absent)).task


@in_loop
async def test_a_node_that_goes_away_in_the_middle_is_another_try(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig:
        rig.driver.init_turn.close()
        started = Started(starter(rig.path))
        await until(lambda: rig.driver.init_turn.waiting == 1)
        for connection in list(rig.node._connections):
            connection.close()
        with pytest.raises(StartInterrupted, match="went away"):
            await started.task


@in_loop
async def test_where_there_is_no_room_for_all_none_is_started(tmp_path: Path) -> None:
    async with two_nodes(tmp_path, 300, 150) as (one, two):
        with pytest.raises(StartInterrupted, match="memory for 3 of 4 instances of 128 MB"):
            await Started(starter(one.path, two.path), 4).task
        assert one.driver.tries + two.driver.tries == 0
        await Started(starter(one.path, two.path), 3).task


@in_loop
async def test_one_that_never_gets_ready_is_not_waited_for_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starting, "START_S", 0.2)
    async with running_node(tmp_path) as rig:
        rig.driver.init_turn.close()
        with pytest.raises(StartInterrupted, match="0 of 1 instances ready within"):
            await Started(starter(rig.path)).task


@in_loop
async def test_told_to_stop_it_stops_at_once_and_uses_up_no_try(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig:
        rig.driver.init_turn.close()
        with pytest.raises(Busy):
            await Started(starter(rig.path, stopping=True)).task


@in_loop
async def test_draining_gives_up_what_is_ready_and_what_is_on_its_way(tmp_path: Path) -> None:
    async with two_nodes(tmp_path) as (one, two):
        made = starter(one.path, two.path, tmp_path / "absent.sock")
        await Started(made, 2).task
        two.driver.init_turn.close()
        started = Started(made, 4)
        await until(lambda: two.driver.init_turn.waiting == 1)
        await asyncio.to_thread(made.drain, [ECHO.version])
        with pytest.raises(StartInterrupted, match="draining"):
            await started.task
        for rig in (one, two):
            await until(lambda rig=rig: not rig.driver.instances)  # type: ignore[misc]


@in_loop
async def test_what_was_drained_can_be_started_again(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig:
        made = starter(rig.path)
        await Started(made).task
        await asyncio.to_thread(made.drain, [ECHO.version])
        await Started(made, 2).task
        assert instances(rig) == 2


@in_loop
async def test_a_planners_lease_does_not_void_the_orders_of_the_control_flow(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig:
        await rig.caller("planner", epoch=7)
        await Started(starter(rig.path)).task
        flow = await rig.caller("flow")
        await flow.subscribe()
        flow.define(spec("other"))
        rig.driver.init_turn.close()
        flow.prepare(PrepareItem("d", spec("other").version))
        flow.connection.send(Rpc.REVOKE, 0, Revoke(["d"], "not needed"))
        await flow.outcome("d", ["cancelled"])


# -- where


class View:
    def __init__(self, free_mb: int, held: int = 0) -> None:
        self.free_mb = free_mb
        self._held = held

    def idle(self, version: str) -> int:
        return self._held

    def hosts(self, tenant: str) -> bool:
        return True


def test_the_node_with_the_fewest_comes_first_then_the_freest() -> None:
    small, large, full = View(1000), View(2000), View(100)
    assert spread("v", 128, 4, [small, large, full]) == [large, small, large, small]
    assert spread("v", 128, 2, [View(1000, held=2), small]) == [small, small]
    assert spread("v", 600, 4, [small, large]) == [large, small, large, large]
    assert spread("v", 128, 3, []) == []
    assert spread("v", 128, -1, [small]) == []


def test_an_id_of_a_deploy_decision_is_read_back_and_others_are_not() -> None:
    ordered = DeployDecision(ECHO.version, 256, "a1b2", 3)
    assert deploy_decision(ordered.decision_id) == ordered
    for other in ("p18c2f-7.1", "", "deploy/acme/f:1/x/a/1", "deploy/acme/f:1/1/a", "deploy/acme/f:1/1/a/1/2"):
        assert deploy_decision(other) is None
