"""A node and private networks: who tells it of them, attaching beside code and clone, what is left when something fails."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from doubles.loop import in_loop, until
from doubles.nodes import Caller, Rig, running_node, spec
from doubles.planes import DoublePlane

from orchestrator.placement import in_reach
from orchestrator.planner.peers import NodePeer
from orchestrator.planner.vpcs import Reached, VpcNews
from workers.function_templates import Rules
from workers.network.choosing import Backend, choose
from workers.network.none import NoPlane
from workers.networks import Rule, VpcSpec
from workers.ports import CodeUnavailable, NetworkUnavailable, SandboxNetwork
from workers.rpc.messages import Hello, PrepareItem, Retire, Rpc, Vpcs
from workers.tunnelling import Tunnels
from workers.versions import VersionSpec

VPC = VpcSpec("acme/db", "acme", 7, 1, ("10.0.0.0/16",))
INSIDE = spec("inside", vpc="acme/db")


@pytest.fixture
def namespace() -> Iterator[int]:
    """Any descriptor does: the planes here only hand it on."""
    made = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    yield made
    os.close(made)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.tunnelling.ATTACH_S", 5.0)


def held(namespace: int) -> int:
    """Descriptors of this process for the same namespace."""
    found = 0
    for one in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found += os.readlink(f"/proc/self/fd/{one}") == os.readlink(f"/proc/self/fd/{namespace}")
    return found


@contextlib.asynccontextmanager
async def rig(folder: Path, namespace: int, **options: object) -> AsyncIterator[tuple[Rig, DoublePlane, Caller, Caller]]:
    """A node that was told of VPC, a gateway and a planner."""
    plane = DoublePlane()
    async with running_node(folder, tunnels=Tunnels(plane), **options) as made:  # type: ignore[arg-type]
        made.driver.network = SandboxNetwork(namespace)
        planner = await made.caller("planner")
        planner.connection.send(Rpc.VPCS, 0, Vpcs([VPC]))
        await until(lambda: plane.told == [VPC], "the plane was told")
        yield made, plane, await made.caller(), planner
    await until(lambda: held(namespace) == 1, "no descriptor stays")


@in_loop
async def test_an_instance_is_attached_before_its_module_is_imported(tmp_path: Path, namespace: int) -> None:
    async with rig(tmp_path, namespace) as (made, plane, gateway, _):
        plane.attach_turn.close()
        running = gateway.start(INSIDE)
        await until(lambda: plane.attach_turn.waiting == 1, "it is being attached")
        assert made.driver.initialising == []
        plane.attach_turn.open()
        result, _ = await running.result()
        assert result.status == "ok"
        assert result.timings.net > 0
        (attached,) = plane.attached
        assert (attached.vpc, attached.egress, attached.detached) == ("acme/db", "none", 0)
        assert attached.network.namespace != namespace, "a descriptor of its own"
        assert (await gateway.connection.ask("tunnels", 5, tenant="acme"))["tunnels"][0]["attached"] == 1
        assert (await gateway.connection.ask("tunnels", 5, tenant="rival"))["tunnels"] == []


@in_loop
async def test_code_comes_while_the_tunnel_is_attached(tmp_path: Path, namespace: int) -> None:
    async with rig(tmp_path, namespace) as (made, plane, gateway, _):
        made.code.fetch_turn.close()
        made.code.everything_held = False
        running = gateway.start(INSIDE)
        await until(lambda: len(plane.attached) == 1, "attached while its code is on its way")
        made.code.fetch_turn.open()
        result, _ = await running.result()
        assert result.status == "ok"


@pytest.mark.parametrize("version", [spec("apart"), spec("apart", egress="none")])
@in_loop
async def test_what_is_in_no_network_is_never_attached(tmp_path: Path, namespace: int, version: VersionSpec) -> None:
    async with rig(tmp_path, namespace) as (_, plane, gateway, _):
        result, _ = await gateway.start(version).result()
        assert (result.status, result.timings.net, plane.attached) == ("ok", 0, [])


@in_loop
async def test_the_internet_needs_no_network_of_the_tenant(tmp_path: Path, namespace: int) -> None:
    async with rig(tmp_path, namespace) as (_, plane, gateway, _):
        result, _ = await gateway.start(spec("out", egress="internet")).result()
        assert result.status == "ok"
        assert [(one.vpc, one.egress) for one in plane.attached] == [("", "internet")]


@in_loop
async def test_a_way_that_is_not_there_fails_the_start_and_says_why(tmp_path: Path, namespace: int) -> None:
    async with rig(tmp_path, namespace) as (made, plane, gateway, _):
        plane.closed["acme/db"] = "no proxy has joined"
        result, _ = await gateway.start(INSIDE).result()
        assert result.status == "network-unavailable"
        assert result.error is not None
        assert "acme/db: no proxy has joined" in result.error.message
        assert made.node.tunnels.attaching == {"attached": 0, "refused": 1}
        assert made.node.instances.not_prepared == {"network-unavailable": 1}
        await made.quiet()
        assert made.driver.alive == []
        plane.closed.clear()
        result, _ = await gateway.start(INSIDE).result()
        assert result.status == "ok", "the next one is attached"


@in_loop
async def test_a_sandbox_without_a_network_of_its_own_is_not_run(tmp_path: Path, namespace: int) -> None:
    async with rig(tmp_path, namespace) as (made, _, gateway, _):
        made.driver.network = None
        result, _ = await gateway.start(INSIDE).result()
        assert result.status == "network-unavailable"


@pytest.mark.parametrize("fails", ["code", "init", "given up"])
@in_loop
async def test_what_fails_beside_it_leaves_nothing_attached(tmp_path: Path, namespace: int, fails: str) -> None:
    async with rig(tmp_path, namespace) as (made, plane, gateway, planner):
        if fails == "code":
            made.code.everything_held = False
            made.code.error = CodeUnavailable("the origin answers 404")
            result, _ = await gateway.start(INSIDE).result()
            assert result.status == "code-unavailable"
        elif fails == "init":
            made.driver.init_error = TimeoutError()
            result, _ = await gateway.start(INSIDE).result()
            assert result.status == "init-failed"
        else:
            plane.attach_turn.close()
            planner.define(INSIDE)
            planner.prepare(PrepareItem("d1", INSIDE.version))
            await until(lambda: plane.attach_turn.waiting == 1, "it is being attached")
            planner.revoke("d1")
            await until(lambda: "d1" not in made.node.decisions, "it is given up")
            plane.attach_turn.open()
        await made.quiet()
        assert all(one.detached for one in plane.attached)
        assert made.driver.alive == []


@in_loop
async def test_an_instance_that_goes_is_detached_at_once(tmp_path: Path, namespace: int) -> None:
    async with rig(tmp_path, namespace) as (made, plane, gateway, _):
        await gateway.start(INSIDE).result()
        made.driver.kill_turn.close()
        await gateway.connection.ask("cool", 5, tenant="acme", names=["inside"])
        assert plane.attached[0].detached == 1, "while its processes still end"
        made.driver.kill_turn.open()
        await gateway.start(INSIDE).result()
        made.driver.alive[0].die("of itself")
        await until(lambda: plane.attached[1].detached >= 1, "a sandbox that died is detached")


@in_loop
async def test_standbys_of_who_has_a_network_are_wired_ahead(tmp_path: Path, namespace: int) -> None:
    async with rig(tmp_path, namespace, standbys=1) as (made, plane, gateway, _):
        gateway.define(spec("apart", tenant="rival"))
        await until(lambda: made.node.standbys == 1, "a standby waits")
        assert plane.wired == []
        gateway.define(INSIDE)
        await until(lambda: made.node.standbys == 2, "another")
        assert len(plane.wired) == 1


@in_loop
async def test_a_function_templates_clones_are_attached_too(tmp_path: Path, namespace: int) -> None:
    async with rig(tmp_path, namespace, templates=Rules(1.0, 1000)) as (made, plane, gateway, _):
        await gateway.start(INSIDE).result()
        await until(lambda: made.node.templates.standings["held"] == 1, "it has a function template")
        await gateway.connection.ask("cool", 5, tenant="acme", names=["inside"])
        result, _ = await gateway.start(INSIDE).result()
        assert (result.status, len(plane.attached)) == ("ok", 2)
        assert made.node.instances.table.count(INSIDE.version).idle == 1


@in_loop
async def test_only_planners_tell_and_a_newer_spec_is_not_undone(tmp_path: Path, namespace: int) -> None:
    async with rig(tmp_path, namespace) as (made, plane, gateway, planner):
        gateway.connection.send(Rpc.VPCS, 0, Vpcs([]))
        newer = VpcSpec("acme/db", "acme", 7, 3, ("10.1.0.0/16",))
        planner.connection.send(Rpc.VPCS, 0, Vpcs([newer]))
        await until(lambda: plane.told == [newer], "it follows")
        other = await made.caller("planner")
        other.connection.send(Rpc.VPCS, 0, Vpcs([VPC, VpcSpec("rival/db", "rival", 8, 1, ("10.0.0.0/16",))]))
        await until(lambda: len(plane.told) == 2, "what else it says counts")
        assert plane.told[0] == newer
        planner.connection.send(Rpc.VPCS, 0, Vpcs([]))
        await until(lambda: plane.told == [], "who is missing has gone")


@in_loop
async def test_there_may_be_more_networks_than_a_message_holds(tmp_path: Path, namespace: int) -> None:
    rules = tuple(Rule(f"10.0.{place}.0/24", "tcp", 5432, 5432) for place in range(64))
    many = [VpcSpec(f"acme/v{number:04}", "acme", number, 1, ("10.0.0.0/16",), rules) for number in range(1, 1200)]
    async with rig(tmp_path, namespace) as (_, plane, _, planner):
        peer = NodePeer(tmp_path / "nowhere", Hello("planner", "p", ""), cast(Any, None))
        peer.connection = planner.connection
        peer.tell_vpcs(many)
        await until(lambda: plane.told == many, "all of them came, and as one")
        peer.tell_vpcs([])
        await until(lambda: plane.told == [])
        assert plane.uses == 3


@in_loop
async def test_a_removed_tenants_networks_go_and_stay_gone(tmp_path: Path, namespace: int) -> None:
    async with rig(tmp_path, namespace) as (_, plane, _, planner):
        planner.connection.send(Rpc.RETIRE, 0, Retire("acme"))
        await until(lambda: plane.told == [], "its tunnels are closed")
        planner.connection.send(Rpc.VPCS, 0, Vpcs([VPC]))
        await planner.connection.ask("state", 5)
        assert plane.told == []


@in_loop
async def test_the_inventory_says_what_is_reached(tmp_path: Path, namespace: int) -> None:
    async with rig(tmp_path, namespace) as (_, plane, _, planner):
        planner.connection.send(Rpc.SUBSCRIBE, 0)
        await until(lambda: planner.tunnels == ["", "acme/db"], "it is reached")
        plane.closed["acme/db"] = "the proxy is away"
        await until(lambda: planner.tunnels == [""], "it is not")


@in_loop
async def test_a_node_without_tunnels_says_so(tmp_path: Path) -> None:
    async with running_node(tmp_path) as made:
        gateway = await made.caller()
        result, _ = await gateway.start(INSIDE).result()
        assert result.status == "network-unavailable"
        told = await gateway.connection.ask("tunnels", 5, tenant="acme")
        assert (told["node"], told["backend"], told["reached"]) == ("node-1", "none", [])
        assert "without tunnels" in told["reason"]


@in_loop
async def test_nobody_waits_for_tunnels_but_who_needs_them(tmp_path: Path, namespace: int) -> None:
    plane, may, ended = DoublePlane(), asyncio.Event(), asyncio.Event()

    async def opens() -> DoublePlane:
        try:
            await may.wait()
            return plane
        finally:
            ended.set()

    tunnels = Tunnels(NoPlane("they are being opened"), opens)
    async with running_node(tmp_path, tunnels=tunnels) as made:
        made.driver.network = SandboxNetwork(namespace)
        gateway, planner = await made.caller(), await made.caller("planner")
        planner.connection.send(Rpc.VPCS, 0, Vpcs([VPC]))
        result, _ = await gateway.start(spec("apart")).result()
        assert result.status == "ok", "the node serves"
        assert (await gateway.connection.ask("state", 5))["tunnels"]["reason"] == "they are being opened"
        inside, asked = gateway.start(INSIDE), asyncio.ensure_future(gateway.connection.ask("tunnels", 5, tenant="acme"))
        await until(lambda: len(made.driver.alive) == 2, "a sandbox that is to be attached")
        assert not asked.done()
        may.set()
        assert (await inside.result())[0].status == "ok"
        assert (await asked)["reached"] == ["", "acme/db"]
        assert plane.told == [VPC], "of what the planner told before"
    assert plane.stopped
    may.clear()
    ended.clear()
    async with running_node(tmp_path, tunnels=Tunnels(NoPlane(), opens)):
        await asyncio.sleep(0)
    assert ended.is_set(), "a node that stops waits for what is being opened"


class _Refusing(DoublePlane):
    async def start(self) -> None:
        raise PermissionError(1, "it needs root")


@in_loop
async def test_the_first_backend_that_works_is_taken_and_the_others_are_its_reason() -> None:
    told: list[str] = []

    def good(reason: str) -> DoublePlane:
        told.append(reason)
        return DoublePlane()

    refusing = _Refusing()
    chosen = await choose([Backend("kernel", lambda reason: refusing), Backend("portable", good)])
    assert isinstance(chosen, DoublePlane)
    assert told == ["kernel: it needs root"]
    assert refusing.stopped
    named = await choose([Backend("kernel", lambda reason: _Refusing()), Backend("portable", good)], "kernel")
    assert (named.backend, named.reason) == ("none", "kernel: it needs root")
    assert isinstance(await choose([Backend("portable", good)], "none"), NoPlane)
    assert isinstance(await choose([], "auto"), NoPlane)


@in_loop
async def test_what_cannot_be_attached_in_time_is_given_up(
    tmp_path: Path, namespace: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.tunnelling.ATTACH_S", 0.05)
    async with rig(tmp_path, namespace) as (_, plane, gateway, _):
        plane.attach_turn.close()
        result, _ = await gateway.start(INSIDE).result()
        assert result.status == "network-unavailable"
        assert result.error is not None
        assert "took more than" in result.error.message
        plane.attach_turn.open()


@in_loop
async def test_an_error_of_the_plane_is_the_starts(tmp_path: Path, namespace: int) -> None:
    async with rig(tmp_path, namespace) as (_, plane, gateway, _):
        plane.error = NetworkUnavailable("acme/db: no namespace is free")
        result, _ = await gateway.start(INSIDE).result()
        assert result.status == "network-unavailable"


def test_a_planner_tells_which_networks_moved() -> None:
    reached = Reached()
    assert reached.moved([("n1", ["", "acme/db"]), ("n2", [])]) == {"acme/db"}, "of the first look nothing is known before"
    assert reached.moved([("n2", []), ("n1", ["", "acme/db"])]) == set()
    assert reached.moved([("n1", ["acme/db"]), ("n2", ["acme/db", "rival/db"])]) == {"acme/db", "rival/db"}
    assert reached.moved([]) == {"acme/db", "rival/db"}


class _Told:
    def __init__(self, tenants: set[str]) -> None:
        self.tenants = tenants
        self.heard: list[list[str]] = []

    def hosts(self, tenant: str) -> bool:
        return not self.tenants or tenant in self.tenants

    def tell_vpcs(self, vpcs: list[VpcSpec]) -> None:
        self.heard.append([one.vpc for one in vpcs])


@in_loop
async def test_nodes_hear_once_of_what_changed_together_and_only_of_whom_they_may_host() -> None:
    routes = {one: VpcSpec(one, one.partition("/")[0], number, 1, ("10.0.0.0/16",)) for number, one in enumerate(("a/x", "b/y"))}
    nodes = [_Told(set()), _Told({"b"})]
    news = VpcNews(routes, lambda: nodes)
    news.changed()
    news.changed()
    await until(lambda: nodes[0].heard, "they are told")
    assert [node.heard for node in nodes] == [[["a/x", "b/y"]], [["b/y"]]]


@pytest.mark.parametrize(
    ("vpc", "egress", "chosen"), [("acme/db", "none", ["b"]), ("", "none", ["a", "b", "c"]), ("", "internet", ["c"])]
)
def test_placement_takes_who_reaches_it_and_all_when_none_does(vpc: str, egress: str, chosen: list[str]) -> None:
    class View:
        free_mb = 100

        def __init__(self, name: str, tunnels: list[str]) -> None:
            self.name, self.tunnels = name, tunnels

        def idle(self, version: str) -> int:
            return 0

        def hosts(self, tenant: str) -> bool:
            return True

    nodes = [View("a", []), View("b", ["acme/db"]), View("c", [""])]
    wanted = spec("f", vpc=vpc, egress=egress)
    assert [node.name for node in in_reach(wanted, nodes)] == chosen
    assert len(in_reach(spec("f", vpc="acme/none"), nodes)) == 3
