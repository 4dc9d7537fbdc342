"""The scaler on a platform: demand of gateways and counts of nodes in, orders and floors out."""

import itertools
import time
from typing import Any

import msgspec
import pytest
from doubles.fleets import ACME, Bench, fid
from doubles.gateways import route
from doubles.nodes import spec

from graph.calls import StartKind
from orchestrator.planner import scaling
from orchestrator.planner.scaling import UNUSED_S, Scaling
from orchestrator.scaling.reconciling import Allowance
from orchestrator.scaling.terms import Source
from tracing.records import InvocationRecord, Timings
from workers.rpc.messages import Demand, VersionDemand
from workers.versions import Scaling as Told


class Gateway:
    def __init__(self) -> None:
        self.connection: object | None = self
        self.who: object = self


class Scene:
    def __init__(self, policy: str = "headroom", nodes: int = 2, allowance: Allowance = Allowance(), **more: Any) -> None:  # noqa: B008
        self.bench = Bench(nodes=nodes, **more)
        bench = self.bench
        self.scaling = Scaling(
            policy,
            bench.graph,
            bench.table,
            bench.loop.dispatch._fleet,
            bench.log,
            bench.loop.dispatch,
            more.get("right", lambda tenant: ("lease", 3)),
            lambda tenant: bench.loop.policy_of(tenant) != "off",
            lambda tenant: allowance,
        )
        self.gateway: Any = Gateway()
        self._now = itertools.count(100.0)

    def deploy(self, name: str, *calls: str, told: Told = Told(), memory_mb: int = 128) -> None:  # noqa: B008
        one = msgspec.structs.replace(spec(name, memory_mb=memory_mb), scaling=told)
        self.bench.table.put(fid(name), route(one, calls=calls))
        self.bench.graph.declare(fid(name), [fid(callee) for callee in calls], memory_mb, 0.0)
        self.scaling.route_changed(fid(name), one)

    def tick(self, **at_once: int) -> None:
        versions = [VersionDemand(f"acme/{name}:1", float(count), count, count, count) for name, count in at_once.items()]
        self.scaling.demand(self.gateway, Demand(versions, 1.0))
        self.scaling.tick(next(self._now))

    def wanted(self, name: str, number: int = 1) -> dict[str, Any]:
        return next(one for one in self.scaling.told(ACME)["versions"] if one["version"] == f"{name}:{number}")

    def ordered(self) -> list[str]:
        return [name for node in self.bench.nodes for name in node.names]


def test_a_burst_is_ordered_in_its_tick_and_spread() -> None:
    scene = Scene()
    scene.deploy("echo")
    scene.tick(echo=8)
    assert [node.names for node in scene.bench.nodes] == [["echo"] * 4] * 2
    assert scene.wanted("echo")["wanted"] == 8
    (entry, *_) = scene.bench.log.entries()
    assert entry.trigger == "wanted"
    assert "8 at once in the last 6 s need 8" in entry.reason
    scene.tick(echo=8)
    assert len(scene.ordered()) == 8, "what is on its way is not ordered again"


def test_what_waits_for_its_gateways_is_not_decided_too_early() -> None:
    scene = Scene()
    scene.deploy("echo")
    scene.tick(echo=2)
    ticks = scene.scaling.ticks
    scene.scaling.tick(100.6)  # no gateway told anything since
    assert scene.scaling.ticks == ticks
    scene.scaling.tick(101.6)
    assert scene.scaling.ticks == ticks + 1


def test_downstream_functions_are_ordered_with_their_entry() -> None:
    scene = Scene()
    scene.deploy("shop", "pay")
    scene.deploy("pay")
    scene.scaling.records([record("pay", 500.0), record("shop", 1000.0)])
    scene.tick(shop=10)
    assert scene.wanted("pay")["by"] == Source.FEED_FORWARD
    assert scene.ordered().count("pay") >= 5


def test_prewarm_off_leaves_downstream_functions_alone() -> None:
    scene = Scene(policy="headroom")
    scene.bench.loop.policies["acme"] = "off"
    scene.deploy("shop", "pay")
    scene.deploy("pay")
    scene.scaling.records([record("pay", 500.0), record("shop", 1000.0)])
    scene.tick(shop=10)
    assert scene.ordered() == [], "nothing is started ahead"


def test_what_somebody_cooled_is_not_made_again() -> None:
    scene = Scene()
    scene.deploy("echo")
    scene.tick(echo=8)
    for node in scene.bench.nodes:
        node.have.clear()
    scene.scaling.cooled(["acme/echo"])
    scene.scaling.heard._cooled["acme/echo"] = 1e9  # the test's clock is not the machine's
    scene.tick(echo=8)
    assert len(scene.ordered()) == 8


def test_the_one_instance_of_a_request_is_not_ordered_beside_it() -> None:
    scene = Scene()
    scene.deploy("echo")
    scene.tick(echo=1)
    assert scene.ordered() == []


def test_min_and_provisioned_are_there_without_traffic_and_stay() -> None:
    scene = Scene()
    scene.deploy("kept", told=Told(minimum=2))
    scene.tick()
    assert scene.ordered() == ["kept", "kept"]
    scene.tick()
    assert sum(floor.get("acme/kept:1", 0) for node in scene.bench.nodes for _, floor, _ in node.floors[-1:]) == 2
    scene.scaling.route_changed(fid("kept"), None)
    scene.tick()
    assert scene.wanted("kept")["wanted"] == 0
    assert all(node.floors[-1] == ("acme", {}, False) for node in scene.bench.nodes if node.floors)


def test_max_is_kept_and_told() -> None:
    scene = Scene()
    scene.deploy("echo", told=Told(maximum=3))
    scene.tick(echo=50)
    assert len(scene.ordered()) == 3
    assert scene.wanted("echo")["limit"] == "max is 3"


def test_a_tenants_budget_is_kept_and_told() -> None:
    scene = Scene(allowance=Allowance(4))
    scene.deploy("echo")
    scene.tick(echo=50)
    assert len(scene.ordered()) == 4
    assert "4 instances" in scene.wanted("echo")["limit"]


def test_a_fleet_without_room_is_told() -> None:
    scene = Scene(nodes=1)
    scene.deploy("large", memory_mb=2048)
    scene.tick(large=5)
    assert len(scene.ordered()) == 2
    assert scene.wanted("large")["short"] == 3


def test_nothing_is_ordered_while_another_planner_decides() -> None:
    scene = Scene(right=lambda tenant: None)
    scene.deploy("echo")
    scene.tick(echo=8)
    assert scene.ordered() == []


def test_off_orders_nothing() -> None:
    scene = Scene("off")
    scene.deploy("echo")
    scene.tick(echo=8)
    assert scene.ordered() == []


def test_kpa_lets_go_what_is_above() -> None:
    scene = Scene("kpa")
    scene.deploy("echo")
    scene.tick(echo=7)
    assert len(scene.ordered()) == 10
    scene.tick(echo=7)
    assert {only for node in scene.bench.nodes for _, _, only in node.floors} == {True}


def test_instances_are_counted_also_while_nothing_calls() -> None:
    scene = Scene("kpa")
    scene.deploy("echo")
    for _ in range(70):
        scene.tick(echo=7)
    assert scene.wanted("echo")["reason"].startswith("stable"), "ten are there, and the panic of the beginning is over"
    for _ in range(4):
        scene.tick()
    assert scene.wanted("echo")["reason"].startswith("stable"), "what is left of its window is no panic of none"


def test_orders_have_a_lifetime_and_leave_plans_their_budget() -> None:
    scene = Scene()
    scene.deploy("echo")
    before = scene.bench.loop.means.left("acme")[1]
    scene.tick(echo=8)
    assert {item.expires_s for node in scene.bench.nodes for item in node.ordered} == {UNUSED_S}
    assert scene.bench.loop.means.left("acme")[1] == before


def test_a_release_holds_a_version_that_is_in_no_route_until_it_says_otherwise() -> None:
    scene = Scene()
    new = spec("echo", number=2)
    ordered: list[str] = []
    scene.scaling.hold(7, new, 3, "version 2 of echo gets 30 %", 1e9, ordered)
    scene.scaling.again()
    scene.scaling.again()
    assert [item.version for node in scene.bench.nodes for item in node.ordered] == ["acme/echo:2"] * 3
    assert all(item.probe for node in scene.bench.nodes for item in node.ordered)
    assert len(ordered) == 3
    scene.tick()
    assert scene.wanted("echo", 2)["by"] == Source.RELEASE
    assert len(scene.ordered()) == 3
    scene.scaling.let_go(7)
    scene.tick()
    assert scene.wanted("echo", 2)["wanted"] == 0


def test_a_release_takes_no_more_than_a_part_of_its_nodes_at_a_time() -> None:
    scene = Scene(nodes=2)
    scene.scaling.hold(7, spec("echo", number=2), 30, "", 1e9, [])
    scene.scaling.again()
    assert len(scene.ordered()) == 2, "nothing is ready: each node starts one"


def test_a_release_is_bound_by_its_tenants_budget_and_says_so() -> None:
    scene = Scene(allowance=Allowance(4))
    scene.deploy("echo")
    scene.tick(echo=3)
    scene.scaling.hold(7, spec("echo", number=2), 3, "", 1e9, [])
    scene.scaling.again()
    assert len(scene.ordered()) == 4
    assert "budget is 4 instances" in scene.scaling.lack("acme/echo:2")


def test_a_release_that_is_not_heard_of_any_more_holds_nothing() -> None:
    scene = Scene()
    scene.scaling.hold(7, spec("echo", number=2), 3, "", -1.0, [])
    scene.scaling.again()
    scene.tick()
    assert scene.ordered() == []


def test_what_its_owner_set_is_ordered_also_while_traffic_wants_more_and_prewarm_is_off() -> None:
    scene = Scene()
    scene.bench.loop.policies["acme"] = "off"
    scene.deploy("kept", told=Told(minimum=2))
    scene.tick(kept=8)
    assert scene.wanted("kept")["by"] == Source.REACTIVE
    assert len(scene.ordered()) == 2


def test_changes_are_kept_with_who_decided_and_why() -> None:
    scene = Scene()
    scene.deploy("echo")
    scene.tick(echo=2)
    scene.tick(echo=6)
    scene.tick(echo=6)
    (version,) = scene.scaling.told(ACME, {fid("echo")}, 0.0)["versions"]
    assert [point["wanted"] for point in version["history"]][:2] == [2, 6]
    assert all(point["by"] == "reactive" and point["reason"] for point in version["history"])


def test_a_history_is_told_from_a_moment_on_and_of_the_functions_that_are_named() -> None:
    scene = Scene()
    for name in ("echo", "pay", "echoes"):
        scene.deploy(name)
    for many in (2, 6, 9):
        scene.tick(echo=many, pay=1, echoes=1)
    every = scene.scaling.told(ACME, {fid("echo")}, 0.0)["versions"][0]["history"]
    told = scene.scaling.told(ACME, {fid("echo"), fid("pay")}, every[1]["at"])["versions"]
    assert [one["version"] for one in told] == ["echo:1", "pay:1"]
    assert told[0]["history"] == every[1:], "what held then, and what changed since"
    assert scene.scaling.told(ACME, {fid("echo")}, every[-1]["at"] + 9)["versions"][0]["history"] == every[-1:]
    assert all("history" not in one for one in scene.scaling.told(ACME)["versions"])


def test_what_is_not_wanted_any_more_is_followed_until_its_instances_are_gone() -> None:
    scene = Scene()
    scene.deploy("kept", told=Told(minimum=1))
    scene.tick()
    node = next(one for one in scene.bench.nodes if one.names)
    scene.tick()
    scene.scaling.route_changed(fid("kept"), None)
    scene.tick()
    node.have.clear()
    scene.tick()
    history = scene.scaling.told(ACME, {fid("kept")}, 0.0)["versions"][0]["history"]
    assert [(one["wanted"], one["ready"]) for one in history[-3:]] == [(1, 1), (0, 1), (0, 0)]


def test_a_removed_tenant_leaves_nothing() -> None:
    scene = Scene()
    scene.deploy("echo", told=Told(minimum=1))
    scene.tick(echo=4)
    scene.scaling.forget_tenant("acme")
    assert scene.scaling.told(ACME)["versions"] == []


def test_a_gateway_that_is_gone_counts_no_more() -> None:
    scene = Scene()
    scene.deploy("echo")
    scene.tick(echo=4)
    scene.gateway.connection = None
    for now in range(200, 400):
        scene.scaling.tick(float(now))
    assert scene.wanted("echo")["wanted"] == 0


def record(name: str, run_ms: float) -> InvocationRecord:
    return InvocationRecord(
        tenant="acme",
        trace_id="1" * 32,
        invocation_id="1" * 16,
        parent_id="",
        function=fid(name),
        version=1,
        sent_at=1.0,
        ended_at=1.0 + run_ms / 1000,
        start=StartKind.WARM,
        status="ok",
        timings=Timings(run=run_ms),
    )


def test_plans_are_placed_by_what_was_ordered_since_a_node_last_spoke() -> None:
    """One placement for plans and the scaler: what one has ordered the other sees at once."""
    bench = Bench(nodes=2)
    for node in bench.nodes:
        node.free_mb, node.silent = 512, True
    places = bench.loop.dispatch.places
    large, small = spec("large", memory_mb=512), spec("small", memory_mb=128)
    first = places.choose(large)
    assert first is not None
    assert {getattr(places.choose(small), "name", "") for _ in range(4)} == {"n1", "n2"} - {first.name}
    assert places.choose(spec("code"), takes_memory=False) is not None


def test_what_another_planner_told_nodes_is_taken_back_by_the_one_that_took_over() -> None:
    scene = Scene(nodes=1)
    scene.deploy("echo")
    node = scene.bench.node
    node.have["acme/echo:1"] = 5  # kept by a floor of the planner before
    scene.scaling.took_over()
    scene.scaling.tick(scene.scaling._took_over + 1.0)
    assert node.floors == [], "what traffic there is is not known yet"
    scene.scaling._at = 0.0
    scene.tick(echo=1)
    assert node.floors == [("acme", {}, False)]
    scene.tick(echo=1)
    assert len(node.floors) == 1


def test_a_node_that_comes_again_hears_it_again() -> None:
    scene = Scene(nodes=1)
    scene.deploy("echo")
    scene.tick(echo=4)
    scene.tick(echo=4)
    assert scene.bench.node.floors[-1] == ("acme", {"acme/echo:1": 4}, False)
    before = len(scene.bench.node.floors)
    scene.scaling.node_came(scene.bench.node)  # type: ignore[arg-type]
    scene.tick(echo=4)
    assert scene.bench.node.floors[before:] == [("acme", {"acme/echo:1": 4}, False)]


def test_a_version_whose_init_keeps_failing_is_not_started_for_ever() -> None:
    scene = Scene()
    scene.deploy("breaks", told=Told(minimum=3))
    scene.scaling._resting = lambda version: "its init failed 3 times in a row"
    scene.tick()
    assert scene.ordered() == []
    assert scene.wanted("breaks")["limit"] == "its init failed 3 times in a row"


def test_what_still_runs_of_a_function_that_is_gone_asks_for_nothing() -> None:
    scene = Scene()
    scene.deploy("echo")
    scene.tick(echo=4)
    scene.bench.table.put(fid("echo"), None)
    scene.scaling.route_changed(fid("echo"), None)
    scene.tick(echo=4)
    assert len(scene.ordered()) == 4
    assert scene.scaling.told(ACME)["versions"] == []


def test_more_than_a_node_holds_is_short_and_said() -> None:
    scene = Scene(nodes=1)
    scene.bench.node.free_mb = 1024
    scene.deploy("large", told=Told(minimum=3), memory_mb=2048)
    scene.tick()
    assert scene.ordered() == []
    assert scene.wanted("large")["short"] == 3


def test_nobody_waits_behind_the_same_others_when_a_ticks_orders_are_too_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "AT_ONCE", 2)
    scene = Scene(nodes=1)
    names = [f"f{number}" for number in range(6)]
    for name in names:
        scene.deploy(name, told=Told(minimum=1))
    for _ in range(4):
        scene.tick()
        scene.bench.node.have.clear()  # none of them lasts
    assert set(scene.ordered()) == set(names)


def test_a_budget_of_nothing_orders_nothing() -> None:
    scene = Scene(allowance=Allowance(0))
    scene.deploy("echo")
    scene.tick(echo=4)
    assert scene.ordered() == []
    assert "0 instances" in scene.wanted("echo")["limit"]


def test_a_clock_that_is_set_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene()
    scene.deploy("echo")
    scene.tick(echo=4)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 86_400.0)
    scene.tick(echo=6)
    assert (scene.wanted("echo")["wanted"], len(scene.ordered())) == (6, 6)


def test_bounds_are_those_of_the_last_word_on_a_version() -> None:
    scene = Scene()
    scene.deploy("echo", told=Told(maximum=3))
    scene.tick(echo=8)
    assert scene.wanted("echo")["wanted"] == 3
    scene.deploy("echo", told=Told(maximum=5))
    scene.tick(echo=8)
    assert scene.wanted("echo")["wanted"] == 5


def test_what_rests_with_instances_is_seen_again_at_its_next_call() -> None:
    scene = Scene()
    scene.deploy("echo")
    scene.deploy("other")
    scene.tick(echo=2)
    for _ in range(130):
        scene.tick(other=1)  # echo's instances stay, its history goes
    assert [one["wanted"] for one in scene.scaling.told(ACME)["versions"] if one["version"] == "echo:1"] == [0]
    assert scene.wanted("echo")["ready"] == 2, "they are still there"
    scene.tick(echo=6)
    assert (scene.wanted("echo")["wanted"], scene.ordered().count("echo")) == (6, 6)


def test_plans_of_a_tenant_that_is_silent_are_among_what_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene()
    scene.deploy("echo")
    scene.bench.node.have["acme/echo:1"] = 2
    scene.tick()
    assert scene.scaling.wanted == 0
    planned = msgspec.defstruct("Planned", [("version", str), ("level", str)])("acme/echo:1", "ready")
    monkeypatch.setattr(scene.bench.log, "open_of", lambda tenant: [planned])
    scene.tick()
    assert (scene.wanted("echo")["by"], scene.wanted("echo")["wanted"]) == (Source.PLANS, 1)
