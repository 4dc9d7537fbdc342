"""Releases and the scaler together: what a gate needs is ordered by the one reconciler. The catalog is the test's own."""

import asyncio
import itertools
import time
from typing import Any

import msgspec
import pytest
from doubles.fleets import Bench, fid
from doubles.gateways import route
from doubles.nodes import spec

from orchestrator.catalog.model import ReleasePhase
from orchestrator.catalog.releases import OpenRelease
from orchestrator.planner import heard, releasing
from orchestrator.planner.releasing import Releasing
from orchestrator.planner.scaling import Scaling
from orchestrator.planner.watching import Watching
from orchestrator.releases import Rules
from orchestrator.scaling.reconciling import Allowance
from orchestrator.scaling.terms import Source
from orchestrator.splitting import Pointer
from workers.rpc.messages import Demand, TriggerEvent, VersionDemand
from workers.versions import Scaling as Told
from workers.versions import VersionSpec


@pytest.fixture(autouse=True)
def told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a gate waits for is written down at every look."""
    monkeypatch.setattr(releasing, "TELL_S", 0.0)


class Gateway:
    def __init__(self) -> None:
        self.connection: object | None = self
        self.who: object = self


class Catalog:
    """One release, and what the runner made of it."""

    def __init__(self, new: VersionSpec, steps: tuple[Pointer, ...]) -> None:
        self.release: OpenRelease | None = OpenRelease(
            7, fid("echo"), "$LATEST", 2, steps, 0, ReleasePhase.PREPARING, Pointer(1), Pointer(1), 1.0, 0.0, {2: new}, {2: ()}
        )
        self.stopped, self.gate, self.reason, self.flips = "", [], "", 0

    def open(self) -> list[OpenRelease]:
        return [self.release] if self.release is not None else []

    def flip(self, release: int, step: int, now: float) -> bool:
        assert self.release is not None
        self.flips += 1
        self.release = msgspec.structs.replace(self.release, phase=ReleasePhase.HOLDING, now=self.release.next)
        return True

    def stop(self, release: int, step: int, reason: str, now: float) -> bool:
        self.release, self.stopped = None, reason
        return True

    def progress(self, release: int, step: int, gate: list[Any], reason: str, now: float) -> None:
        self.gate, self.reason = gate, reason


class Nudge:
    def give(self) -> None: ...


class Scene:
    def __init__(
        self,
        share: float = 1.0,
        told: Told = Told(),  # noqa: B008
        allowance: Allowance = Allowance(),  # noqa: B008
        nodes: int = 16,
        rules: Rules = Rules(target=1.0),  # noqa: B008
    ) -> None:
        self.bench = bench = Bench(nodes=nodes)
        self.scaling = Scaling(
            "headroom",
            bench.graph,
            bench.table,
            bench.loop.dispatch._fleet,
            bench.log,
            bench.loop.dispatch,
            lambda tenant: ("lease", 3),
            lambda tenant: True,
            lambda tenant: allowance,
        )
        bench.table.put(fid("echo"), route(spec("echo")))
        self.new = msgspec.structs.replace(spec("echo", number=2), scaling=told)
        steps = (Pointer(1, 2, share), Pointer(2)) if share < 1.0 else (Pointer(2),)
        self.catalog: Any = Catalog(self.new, steps)
        self.gateway: Any = Gateway()
        self.releasing = Releasing(
            self.catalog,
            Nudge(),  # type: ignore[arg-type]
            bench.loop.dispatch._fleet,
            bench.loop.forecasts,
            bench.log,
            self.scaling,
            Watching(),
            lambda tenant: ("lease", 3),
            rules,
            lambda: [self.gateway],
        )
        self._now = itertools.count(time.monotonic())

    def traffic(self, at_once: int, version: int = 1) -> None:
        one = VersionDemand(f"acme/echo:{version}", float(at_once), at_once, at_once, at_once)
        self.scaling.demand(self.gateway, Demand([one], 1.0))

    def look(self, times: int = 1) -> None:
        for _ in range(times):
            asyncio.run(self.releasing.tick())

    def ordered(self, version: int = 2) -> int:
        return sum(item.version == f"acme/echo:{version}" for node in self.bench.nodes for item in node.ordered)


def test_a_gate_orders_its_part_of_the_traffic_through_the_scaler_and_opens_when_it_is_there() -> None:
    scene = Scene()
    scene.traffic(10)
    scene.look()
    assert scene.ordered() == 10
    assert {entry.trigger for entry in scene.bench.log.entries()} == {"release"}
    scene.look()
    assert scene.catalog.flips == 1, "the nodes say that they are there"


def test_two_versions_of_an_alias_count_together() -> None:
    scene = Scene()
    scene.catalog.release = msgspec.structs.replace(scene.catalog.release, now=Pointer(1, 3, 0.5))
    one, other = (VersionDemand(f"acme/echo:{number}", 4.0, 4, 4, 4) for number in (1, 3))
    scene.scaling.demand(scene.gateway, Demand([one, other], 1.0))
    scene.look()
    assert scene.ordered() == 8


def test_nothing_is_decided_before_the_traffic_is_known() -> None:
    scene = Scene()
    scene.look()
    assert (scene.ordered(), scene.catalog.flips) == (0, 0)
    assert "not been heard" in scene.catalog.reason
    scene.traffic(0)
    scene.look()
    assert scene.catalog.flips == 1, "without traffic a gate stands open"


def test_traffic_that_has_just_begun_is_waited_for_also_between_two_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene()
    scene.traffic(0)
    scene.scaling.called(TriggerEvent("acme/echo:1", "t", "i", "", 0.0))
    scene.look(2)
    assert (scene.ordered(), scene.catalog.flips) == (0, 0)
    assert "not been heard" in scene.catalog.reason
    scene.traffic(10)
    scene.look()
    assert (scene.ordered(), scene.catalog.flips) == (10, 0)
    silent = Scene()
    silent.traffic(0)
    silent.scaling.called(TriggerEvent("acme/echo:1", "t", "i", "", 0.0, ended=True))
    silent.look()
    assert silent.catalog.flips == 1, "the end of a run is no call"
    late = Scene()
    late.traffic(0)
    late.scaling.called(TriggerEvent("acme/echo:1", "t", "i", "", 0.0))
    for module in (heard, releasing):
        monkeypatch.setattr(module, "HEARD_S", 0.0)
    late.look()
    assert late.catalog.flips == 1, "a gateway that never tells does not hold a release up"


def test_a_version_that_may_have_fewer_gets_as_many_as_it_may_and_it_is_said_why() -> None:
    scene = Scene(told=Told(maximum=3), nodes=1)
    scene.traffic(10)
    scene.look()
    assert scene.catalog.gate == [
        {"version": "echo:2", "wanted": 3, "ready": 0, "limit": "the traffic needs 10, at most 3 may be"}
    ]
    scene.look(4)
    assert scene.ordered() == 3
    assert scene.catalog.flips == 1


def test_a_gate_that_the_tenants_budget_keeps_shut_says_so_and_stops_in_its_time() -> None:
    scene = Scene(allowance=Allowance(5))
    scene.traffic(10)
    scene.scaling.tick(time.monotonic())
    scene.look(2)
    assert "budget is 5 instances" in scene.catalog.reason
    scene.releasing._rules = Rules(target=1.0, timeout_s=0.0)
    scene.look()
    assert "budget is 5 instances" in scene.catalog.stopped
    scene.look()
    assert scene.scaling._holds.versions == set()


def test_a_fleet_without_room_is_told_at_the_gate() -> None:
    scene = Scene(nodes=1)
    scene.bench.node.free_mb = 64
    scene.traffic(5)
    scene.look(4)
    assert "no node has memory for" in scene.catalog.reason
    assert scene.catalog.flips == 0


def test_a_release_has_its_term_beside_that_of_traffic_and_gives_it_back_when_the_route_has_changed() -> None:
    scene = Scene(share=0.5)
    scene.traffic(10)
    scene.look()
    scene.scaling.tick(next(scene._now))
    versions = {one["version"]: one for one in scene.scaling.told("acme")["versions"]}  # type: ignore[arg-type]
    assert versions["echo:2"]["by"] == Source.RELEASE
    assert versions["echo:1"]["by"] == Source.REACTIVE
    scene.look(3)
    assert scene.catalog.flips == 1
    scene.look()
    assert scene.scaling._holds.versions == set()


def test_the_version_before_goes_step_by_step() -> None:
    scene = Scene(nodes=1)
    node = scene.bench.node
    node.have["acme/echo:1"] = 20
    scene.traffic(20)
    scene.scaling.tick(next(scene._now))
    assert node.floors[-1][1] == {"acme/echo:1": 20}
    for _ in range(80):
        scene.traffic(20, version=2)
        scene.scaling.tick(next(scene._now))
    counts = [floor.get("acme/echo:1", 0) for _, floor, _ in node.floors]
    falls = [before - after for before, after in itertools.pairwise(counts) if after < before]
    assert counts[-1] < 20
    assert max(falls) <= 2, "a tenth of what it was, at a time"


def test_busy_instances_are_known_before_gateways_tell() -> None:
    scene = Scene()
    scene.traffic(0)
    scene.bench.node.busy["acme/echo:1"] = 4
    scene.look()
    assert scene.ordered() == 4
