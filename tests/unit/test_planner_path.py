"""The whole of a prewarm: a request at the gateway, the planner's orders, the node's preparing, the stages that find it."""

import asyncio
from pathlib import Path

import pytest
from doubles.gateways import running_gateway
from doubles.loop import in_loop, until
from doubles.nodes import running_node, spec
from doubles.planners import deploy, running_planner
from doubles.stories import Story, path_of

from orchestrator.heartbeat import Pulse
from workers import node as nodes
from workers.rpc.connection import RpcError

NAMES = ("entry", "a", "b", "c")
SPECS = [spec(name, timeout_s=60.0) for name in NAMES]
CALLS = {"entry": ["a", "b"], "a": ["c"]}


@in_loop
async def test_the_first_request_with_declared_calls_finds_its_whole_path_prepared(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig, running_gateway(rig) as gate, running_planner(gate, tmp_path, rig) as mind:
        deploy(gate, mind, *SPECS, calls=CALLS)
        story = Story(rig, **CALLS)
        story.silent = {"entry"}
        running = asyncio.ensure_future(gate.post("entry"))
        await until(lambda: mind.outcomes() == {name: ["ready"] for name in "abc"})
        story.go_on(next(clone for clone in rig.driver.instances if path_of(clone) == "entry"), 1)
        assert (await running).status_code == 200
        await mind.heard(1)
        await until(lambda: mind.outcomes() == {name: ["hit"] for name in "abc"})
        assert [path_of(clone) for clone in rig.driver.clones if clone.work].count("a") == 1
        assert len(rig.driver.clones) == 4, "nothing was prepared twice"
        tree = mind.planner.runs.tree("acme", mind.planner.runs.list("acme", 1)[0]["trace_id"])
        assert tree is not None
        assert tree["starts"] == {"cold": 1, "prewarmed": 3}
        hits = {one.decision_id: one.invocation_id for one in mind.planner.decisions.entries()}
        records = mind.planner.runs.records(tree["trace_id"])
        assert hits == {record.decision_id: record.invocation_id for record in records if record.decision_id}


@in_loop
async def test_a_stage_that_comes_too_early_adopts_what_is_on_its_way(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig, running_gateway(rig) as gate, running_planner(gate, tmp_path, rig) as mind:
        deploy(gate, mind, *SPECS, calls=CALLS)
        Story(rig, **CALLS)
        rig.driver.init_turn.close()
        running = asyncio.ensure_future(gate.post("entry"))
        await until(lambda: [path_of(clone) for clone in rig.driver.initialising][:1] == ["entry"])
        await until(lambda: len(rig.driver.initialising) == 4)
        rig.driver.init_turn.pass_one()
        await until(lambda: mind.outcomes()["a"] == ["late"])
        rig.driver.init_turn.open()
        assert (await running).status_code == 200
        await until(lambda: mind.outcomes() == {"a": ["late"], "b": ["hit"], "c": ["hit"]})
        assert len(rig.driver.clones) == 4


@in_loop
async def test_traces_alone_teach_the_path(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig, running_gateway(rig) as gate, running_planner(gate, tmp_path, rig) as mind:
        deploy(gate, mind, *SPECS)
        Story(rig, **CALLS)
        for number in range(3):
            assert (await gate.post("entry")).status_code == 200
            await mind.heard(number + 1)
        assert mind.planner.decisions.entries() == []
        mind.settle()
        await mind.planner.fleet.ask_all("cool", tenant="acme", names=list(NAMES))
        await until(lambda: not rig.driver.instances)
        await until(lambda: mind.planner.fleet.idle("acme/a:1") == 0)
        assert (await gate.post("entry")).status_code == 200
        await mind.heard(4)
        await until(lambda: all(each in (["hit"], ["late"]) for each in mind.outcomes().values()) and len(mind.outcomes()) == 3)


@in_loop
async def test_off_leaves_the_path_cold(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig, running_gateway(rig) as gate, running_planner(gate, tmp_path, rig) as mind:
        deploy(gate, mind, *SPECS, calls=CALLS)
        assert await mind.insight.prewarm({"tenant": "acme", "policy": "off"}) == {"policy": "off", "open": 0}
        Story(rig, **CALLS)
        assert (await gate.post("entry")).status_code == 200
        await mind.heard(1)
        assert mind.planner.decisions.entries() == []
        run = mind.planner.runs.list("acme", 1)[0]
        assert run["starts"] == {"cold": 4}


@in_loop
async def test_a_run_that_fails_early_gives_back_what_was_still_to_come(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig, running_gateway(rig) as gate, running_planner(gate, tmp_path, rig) as mind:
        deploy(gate, mind, *SPECS, calls=CALLS)
        story = Story(rig)
        story.silent = {"entry"}
        running = asyncio.ensure_future(gate.post("entry"))
        await until(lambda: rig.driver.instances and rig.driver.instances[0].invocations())
        rig.driver.init_turn.close()
        await mind.planner.fleet.ask_all("cool", tenant="acme", names=list("abc"))
        await until(lambda: all(each[0] in ("cancelled", "wasted") for each in mind.outcomes().values()))
        running2 = asyncio.ensure_future(gate.post("entry"))
        await until(lambda: [each[1:] for each in mind.outcomes().values()] == [["pending"]] * 3)
        rig.driver.instances[0].answer(1)
        assert (await running).status_code == 200
        running2.cancel()
        await asyncio.gather(running2, return_exceptions=True)
        await until(lambda: [each[1:] for each in mind.outcomes().values()] == [["cancelled"]] * 3)
        details = {one.detail for one in mind.planner.decisions.entries()[3:]}
        assert details == {"the run ended without it"}
        rig.driver.init_turn.open()


@in_loop
async def test_warming_and_cooling_on_request(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig, running_gateway(rig) as gate, running_planner(gate, tmp_path, rig) as mind:
        deploy(gate, mind, *SPECS, calls=CALLS)
        plan = await mind.insight.warm({"tenant": "acme", "name": "entry", "count": 2})
        assert sorted(one["function"] for one in plan["decisions"]) == ["a", "b", "c", "entry", "entry"]  # type: ignore[index]
        await until(lambda: mind.outcomes() == {"entry": ["ready", "ready"], "a": ["ready"], "b": ["ready"], "c": ["ready"]})
        assert (await gate.post("entry")).headers["x-foreglow-start"] == "prewarmed"
        assert await mind.insight.cool({"tenant": "acme"}) == {"cooled": 5}
        await until(lambda: not rig.driver.instances)
        for args, status in [
            ({"name": "nobody"}, 404),
            ({"name": "entry", "count": 0}, 400),
            ({"name": "entry", "count": 101}, 400),
        ]:
            with pytest.raises(RpcError) as refused:
                await mind.insight.warm({"tenant": "acme", **args})
            assert refused.value.status == status


@in_loop
async def test_a_lost_node_ends_its_decisions_and_a_new_one_is_told_everything(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig, running_gateway(rig) as gate, running_planner(gate, tmp_path, rig) as mind:
        deploy(gate, mind, *SPECS, calls=CALLS)
        await mind.insight.warm({"tenant": "acme", "name": "entry", "count": 1})
        await until(lambda: mind.outcomes()["c"] == ["ready"])
        rig.node._specs.clear()
        for connection in list(rig.node._connections):
            connection._transport.abort()  # type: ignore[union-attr]
        await until(lambda: mind.outcomes() == {name: ["wasted"] for name in NAMES})
        await until(lambda: set(rig.node._specs) == {one.version for one in SPECS}, "it is told of every version again")


@in_loop
async def test_what_was_open_on_a_node_that_fell_silent_is_decided_again_on_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes, "HEARTBEAT_S", 0.1)
    monkeypatch.setattr(Pulse, "__init__", lambda self: setattr(self, "_quiet", 0.0) or setattr(self, "_silent_s", 1.0))
    for name in ("n1", "n2"):
        (tmp_path / name).mkdir()
    async with (
        running_node(tmp_path / "n1", name="n1", memory_mb=2048) as rig,
        running_node(tmp_path / "n2", name="n2", memory_mb=8192) as freer,
        running_gateway(rig) as gate,
        running_planner(gate, tmp_path, rig, freer) as mind,
    ):
        deploy(gate, mind, *SPECS, calls=CALLS)
        freer.driver.init_turn.close()
        await mind.insight.warm({"tenant": "acme", "name": "entry", "count": 1})
        await until(lambda: freer.driver.init_turn.waiting)
        freer.driver.init_turn.pass_one()  # one is ready, the others are on their way
        await until(lambda: sorted(made[0] for made in mind.outcomes().values()) == ["pending", "pending", "pending", "ready"])
        first = {one.decision_id: one for one in mind.planner.decisions.entries()}
        assert {one.node for one in first.values()} == {"n2"}
        freer.node._subscribers.heartbeat = lambda: None  # type: ignore[method-assign]
        await until(lambda: all(made[1:] == ["ready"] for made in mind.outcomes().values()), f"again: {mind.outcomes()}", 10)
        again = [one for one in mind.planner.decisions.entries() if one.decision_id not in first]
        assert {one.node for one in again} == {"n1"}
        for one in again:
            before = next(old for old in first.values() if old.function == one.function)
            assert one.reason == f"again, n2 was lost: {before.reason}"
            assert (one.trigger, one.entry, one.evidence) == (before.trigger, before.entry, before.evidence)
        assert sorted(made[0] for made in mind.outcomes().values()) == ["cancelled", "cancelled", "cancelled", "wasted"]
        assert sorted(path_of(clone) for clone in rig.driver.clones if clone.work) == sorted(NAMES), "each once, and no more"
        freer.driver.init_turn.open()


@in_loop
async def test_what_is_learned_and_decided_survives_a_restart(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig, running_gateway(rig) as gate:
        async with running_planner(gate, tmp_path, rig) as mind:
            deploy(gate, mind, *SPECS, calls=CALLS)
            Story(rig, **CALLS)
            await gate.post("entry")
            await mind.heard(1)
            mind.settle()
            edges = mind.planner.graph.edges("acme")  # type: ignore[arg-type]
            await mind.planner.save()
            made = len(mind.planner.decisions.entries())
        async with running_planner(gate, tmp_path, rig) as mind:
            assert mind.planner.graph.edges("acme") == edges  # type: ignore[arg-type]
            assert len(mind.planner.decisions.entries()) == made > 0
            assert len(mind.planner.runs.list("acme", 10)) == 1
            deploy(gate, mind, *SPECS, calls=CALLS)
            await gate.post("entry")
            await mind.heard(2)


@in_loop
async def test_a_policy_that_was_set_survives_a_restart_although_nothing_else_happened(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig, running_gateway(rig) as gate:
        async with running_planner(gate, tmp_path, rig) as mind:
            await mind.planner.save()
            await mind.insight.prewarm({"tenant": "acme", "policy": "off"})
            await mind.planner.save()
        async with running_planner(gate, tmp_path, rig) as mind:
            assert await mind.insight.prewarm({"tenant": "acme"}) == {"policy": "off", "open": 0}
            assert await mind.insight.prewarm({"tenant": "other"}) == {"policy": "path", "open": 0}


# -- what people ask


@in_loop
async def test_answers_are_about_one_tenant(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig, running_gateway(rig) as gate, running_planner(gate, tmp_path, rig) as mind:
        deploy(gate, mind, *SPECS, calls=CALLS)
        Story(rig, **CALLS)
        await gate.post("entry")
        await mind.heard(1)
        mind.settle()
        ask = mind.insight
        trace = mind.planner.runs.list("acme", 1)[0]["trace_id"]
        run = await ask.run({"tenant": "acme", "trace_id": trace})
        assert {one["function"] for one in run["decisions"]} == {"a", "b", "c"}  # type: ignore[index]
        for tenant, there in (("acme", True), ("other", False)):
            assert bool((await ask.decisions({"tenant": tenant}))["decisions"]) is there  # type: ignore[index]
            assert bool((await ask.runs({"tenant": tenant}))["runs"]) is there  # type: ignore[index]
            assert bool((await ask.workflows({"tenant": tenant}))["workflows"]) is there  # type: ignore[index]
        for question, args in [(ask.run, {"trace_id": trace}), (ask.plan, {"name": "entry"}), (ask.warm, {"name": "entry"})]:
            with pytest.raises(RpcError) as refused:
                await question({"tenant": "other", **args})
            assert refused.value.status == 404
        for question, args in [(ask.graph, {"format": "png"}), (ask.prewarm, {"policy": "sometimes"})]:
            with pytest.raises(RpcError) as refused:
                await question({"tenant": "acme", **args})
            assert refused.value.status == 400
