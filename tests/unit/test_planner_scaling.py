"""The scaler on a platform: demand of gateways and counts of nodes in, orders and floors out."""

import itertools
from typing import Any

import msgspec
from doubles.fleets import ACME, Bench, fid
from doubles.gateways import route
from doubles.nodes import spec

from graph.calls import StartKind
from orchestrator.planner.scaling import UNUSED_S, Scaling
from orchestrator.scaling.reconciling import Allowance
from orchestrator.scaling.terms import Source
from tracing.records import InvocationRecord, Timings
from workers.rpc.messages import Demand, VersionDemand
from workers.versions import Scaling as Told


class Gateway:
    def __init__(self) -> None:
        self.connection: object | None = self


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
    (version,) = scene.scaling.told(ACME, fid("echo"))["versions"]
    assert [point["wanted"] for point in version["history"]][:2] == [2, 6]
    assert all(point["by"] == "reactive" and point["reason"] for point in version["history"])


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
