"""Which nodes hear of which tenants' code, and in which order it comes."""

from collections import Counter
from collections.abc import Sequence

from doubles.loop import in_loop, settle
from doubles.nodes import spec

from graph.ids import FunctionId, TenantId
from orchestrator.planner.homes import Homes
from workers.rpc.messages import VersionCount
from workers.versions import VersionSpec


class FakeNode:
    def __init__(self, name: str) -> None:
        self.name = name
        self.told: list[tuple[str, list[str]]] = []
        self.only: set[str] = set()

    def hosts(self, tenant: str) -> bool:
        return not self.only or tenant in self.only

    def host(self, tenant: str, specs: Sequence[VersionSpec], lease: str = "", epoch: int = 0) -> None:
        self.told.append((tenant, [one.version for one in specs]))


class FakeFleet:
    def __init__(self, *names: str) -> None:
        self.nodes = [FakeNode(name) for name in names]
        self.down: set[str] = set()

    def up(self) -> list[FakeNode]:
        return [node for node in self.nodes if node.name not in self.down]

    def choose(self, one: VersionSpec) -> FakeNode | None:
        return next((node for node in self.up() if node.hosts(one.tenant)), None)


class Scene:
    def __init__(self, *names: str) -> None:
        self.fleet = FakeFleet(*names)
        self.specs: dict[str, VersionSpec] = {}
        self.calls: Counter[str] = Counter()
        self.mine = True
        self.homes = Homes(
            self.fleet,  # type: ignore[arg-type]
            self.specs.get,
            lambda tenant: ("lease", 1) if self.mine else None,
            lambda: self.calls,
            self.fleet.choose,  # type: ignore[arg-type]
        )

    def deploy(self, name: str, version: int = 1) -> None:
        one = spec(name, version)
        self.specs[f"acme/{name}"] = one
        self.homes.function_changed(FunctionId(f"acme/{name}"), True)

    def told(self, number: int) -> list[tuple[str, list[str]]]:
        told, self.fleet.nodes[number].told = self.fleet.nodes[number].told, []
        return told


@in_loop
async def test_the_first_node_that_a_tenant_would_go_to_hears_of_all_its_versions_the_most_called_first() -> None:
    scene = Scene("a", "b")
    scene.calls.update({"acme/slow": 3, "acme/often": 40})
    for name in ("slow", "never", "often"):
        scene.deploy(name)
    await settle()
    assert scene.told(0) == [("acme", ["acme/often:1", "acme/slow:1", "acme/never:1"])]
    assert scene.told(1) == []


@in_loop
async def test_a_node_where_an_instance_is_seen_is_a_home_from_then_on() -> None:
    scene = Scene("a", "b")
    scene.deploy("f")
    await settle()
    scene.told(0)
    scene.homes.seen(scene.fleet.nodes[1], [VersionCount("acme/f:1", 0, 0, 0)])  # type: ignore[arg-type]
    await settle()
    assert scene.told(1) == []
    for _ in range(2):
        scene.homes.seen(scene.fleet.nodes[1], [VersionCount("acme/f:1", 0, 1, 0)])  # type: ignore[arg-type]
        await settle()
    assert scene.told(1) == [("acme", ["acme/f:1"])]
    scene.deploy("f", 2)
    await settle()
    assert scene.told(0) == scene.told(1) == [("acme", ["acme/f:2"])]


@in_loop
async def test_nothing_is_said_twice_but_a_node_that_comes_back_hears_all() -> None:
    scene = Scene("a")
    scene.deploy("f")
    await settle()
    assert len(scene.told(0)) == 1
    scene.homes.function_changed(FunctionId("acme/f"), True)
    await settle()
    assert scene.told(0) == []
    scene.homes.node_came(scene.fleet.nodes[0])  # type: ignore[arg-type]
    await settle()
    assert scene.told(0) == [("acme", ["acme/f:1"])]


@in_loop
async def test_with_its_home_away_a_tenant_gets_another() -> None:
    scene = Scene("a", "b")
    scene.deploy("f")
    await settle()
    scene.fleet.down.add("a")
    scene.deploy("g")
    await settle()
    assert scene.told(1) == [("acme", ["acme/f:1", "acme/g:1"])]
    scene.fleet.down.clear()
    scene.told(0)
    scene.deploy("h")
    await settle()
    both = [("acme", ["acme/f:1", "acme/g:1", "acme/h:1"])]
    assert (scene.told(0), scene.told(1)) == (both, both), "the one that came back is a home still"


@in_loop
async def test_another_planners_tenants_are_told_of_after_taking_over_and_removed_ones_never() -> None:
    scene = Scene("a")
    scene.mine = False
    scene.deploy("f")
    await settle()
    assert scene.told(0) == []
    scene.mine = True
    scene.homes.took_over()
    await settle()
    assert scene.told(0) == [("acme", ["acme/f:1"])]
    scene.homes.forget(TenantId("acme"))
    scene.homes.took_over()
    await settle()
    assert scene.told(0) == []


@in_loop
async def test_a_node_that_was_bound_to_others_hears_no_more_of_a_tenant() -> None:
    scene = Scene("a", "b")
    scene.deploy("f")
    await settle()
    assert len(scene.told(0)) == 1
    scene.fleet.nodes[0].only = {"other"}
    scene.deploy("f", 2)
    await settle()
    assert scene.told(0) == []
