"""Nodes that an operator bound to tenants: nobody places another's instance there, and each node hears of its zone's caches."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from doubles.gateways import OTHER_TOKEN, running_gateway
from doubles.loop import in_loop, until
from doubles.nodes import SECRET, Rig, running_node, spec
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.catalog.errors import NotFound, Refused
from orchestrator.catalog.nodes import MAX_TENANTS
from orchestrator.catalog.routes import NodeRoute, decode_node, encode
from orchestrator.catalog.store import Store
from orchestrator.flow.process import _node_places, _zones
from orchestrator.placement import place, spread
from orchestrator.planner.peers import Fleet, NodePeer
from orchestrator.planner.places import Places
from orchestrator.settings import Settings
from workers.rpc.messages import DecisionUpdate, Hello, Records, Rpc, Triggers, ZoneCaches
from workers.rpc.transport import HostPort

ACME, OTHER = spec("echo"), spec("echo", tenant="other")


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    made = Store(database_url)
    made.migrate()
    for tenant in ("acme", "other"):
        made.keys.create_tenant(tenant, 1)
    yield made
    made.close()


def join(store: Store, name: str, role: str = "node", zone: str = "") -> None:
    token = store.nodes.make_token(role, 60, time.time())
    number = len(store.nodes.list()) + 1
    store.nodes.join(token, role, name, f"10.0.0.{number}:8703", zone, lambda: ("pem", f"print of {name}"), time.time())


def published(store: Store, name: str) -> NodeRoute:
    found = store.nodes.published_one(name)
    assert found is not None
    assert found.route is not None
    return found.route


# -- what is kept


def test_a_list_is_published_and_stays_when_the_node_joins_again(store: Store) -> None:
    join(store, "n1")
    before = published(store, "n1")
    assert before.hosts("acme")
    store.nodes.allow("n1", ["other", "acme", "acme"], 2)
    after = published(store, "n1")
    assert (after.tenants, after.generation, after.epoch) == (("acme", "other"), before.generation + 1, before.epoch)
    assert decode_node(encode(after)) == after
    assert [after.hosts(one) for one in ("acme", "third")] == [True, False]
    store.nodes.rejoin("node", "n1", "print of n1", 3)
    store.nodes.remove("n1", 4)
    with pytest.raises(NotFound):
        store.nodes.allow("n1", [], 4)
    join(store, "n1")
    assert published(store, "n1").tenants == ("acme", "other"), "a new token does not lift it"
    store.nodes.allow("n1", [], 5)
    assert published(store, "n1").hosts("third")


def test_a_list_does_not_pass_to_another_role_under_the_same_name(store: Store) -> None:
    join(store, "n1")
    store.nodes.allow("n1", ["acme"], 1)
    store.nodes.remove("n1", 2)
    join(store, "n1", "flow")
    assert published(store, "n1").tenants == ()


def test_what_cannot_be_is_refused_with_the_field(store: Store) -> None:
    join(store, "n1")
    join(store, "z1", "zone-cache")
    for name, tenants, field, why in (
        ("n1", ["acme", "nobody"], "tenants", "no tenant 'nobody'"),
        ("n1", [f"t{number}" for number in range(MAX_TENANTS + 1)], "tenants", "at most"),
        ("z1", ["acme"], "name", "is a zone-cache"),
    ):
        with pytest.raises(Refused, match=why) as refused:
            store.nodes.allow(name, tenants, 2)
        assert refused.value.field == field
    with pytest.raises(NotFound):
        store.nodes.allow("n9", ["acme"], 2)
    assert published(store, "n1").tenants == ()


def test_an_entry_of_an_older_release_hosts_everybody() -> None:
    known = NodeRoute("n1", 1, "node", "10.0.0.2:8703", "", "f", True, 1)
    fields = [known.name, known.generation, known.role, known.address, known.zone, known.fingerprint, known.up, known.epoch]
    assert decode_node(encode(fields)) == known


# -- placement


class View:
    def __init__(self, free_mb: int, tenants: frozenset[str]) -> None:
        self.free_mb, self._tenants = free_mb, tenants

    def idle(self, version: str) -> int:
        return 0

    def hosts(self, tenant: str) -> bool:
        return not self._tenants or tenant in self._tenants


views = st.builds(View, st.integers(0, 4096), st.frozensets(st.sampled_from(["acme", "other", "third"])))


@given(st.lists(views, max_size=8), st.integers(1, 5))
def test_no_instance_is_placed_where_its_tenant_may_not_be(nodes: list[View], count: int) -> None:
    order = place("acme/f:1", 128, nodes)
    assert sorted(map(id, order)) == sorted(id(node) for node in nodes if node.hosts("acme"))
    assert all(node.hosts("acme") for node in spread("acme/f:1", 128, count, nodes))


@contextlib.asynccontextmanager
async def two_nodes(tmp_path: Path) -> AsyncIterator[tuple[Rig, Rig]]:
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
    async with running_node(folders[0], 4096) as one, running_node(folders[1], 4096) as two:
        yield one, two


@in_loop
async def test_the_gateway_never_sends_an_invocation_to_a_node_that_may_not_host_it(tmp_path: Path) -> None:
    async with two_nodes(tmp_path) as (one, two), running_gateway(one, two, max_wait_s=0.2) as gate:
        gate.serve(ACME, OTHER)
        gate.runs.links[0].set_tenants(["other"])
        others = {"authorization": f"Bearer {OTHER_TOKEN}"}
        for _ in range(3):
            assert (await gate.post("echo")).status_code == 200
            assert (await gate.post("echo", **others)).status_code == 200
        assert not one.node.instances.table.count(ACME.version).idle
        assert two.node.instances.table.count(ACME.version).idle
        gate.runs.links[1].set_tenants(["other"])
        refused = await gate.post("echo")
        assert refused.status_code == 429
        assert "no node that may host tenant acme is up" in refused.text
        gate.runs.links[1].set_tenants(["acme"])
        assert (await gate.post("echo")).status_code == 200


class Quiet:
    def on_triggers(self, triggers: Triggers) -> None: ...
    def on_records(self, records: Records) -> None: ...
    def on_outcomes(self, node: str, updates: list[DecisionUpdate]) -> None: ...
    def on_node(self, node: NodePeer, up: bool) -> None: ...


@in_loop
async def test_the_planner_neither_prepares_nor_brings_code_there_and_tells_the_node_its_caches(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig:
        peer = NodePeer(rig.path, Hello("planner", "p", SECRET), Quiet())  # type: ignore[arg-type]
        fleet, heard = Fleet([peer]), list[list[str]]()
        rig.node.on_caches = lambda addresses: heard.append(list(addresses))
        dialling = asyncio.create_task(peer.run())
        await until(lambda: peer.connection is not None)
        assert Places(fleet).choose(ACME) is peer
        peer.set_tenants(["other"])
        assert Places(fleet).choose(ACME) is None
        peer.tell_caches("default", ["10.0.0.5:8705"])
        await until(lambda: heard == [["10.0.0.5:8705"]])
        assert ACME.version not in rig.node._specs, "what was sent before is there: nothing was"
        stranger = await rig.caller("gateway")
        stranger.connection.send(Rpc.CACHES, 0, ZoneCaches("default", ["10.66.6.6:1"]))
        await stranger.connection.ask("counts", tenant="acme")
        assert len(heard) == 1, "only planners tell"
        dialling.cancel()
        await asyncio.gather(dialling, return_exceptions=True)


def test_the_control_flow_asks_only_nodes_that_may_host_the_tenant_and_fills_every_zone(store: Store, tmp_path: Path) -> None:
    settings = Settings(state=tmp_path, nodes="none", zone="east", zone_caches="10.0.9.9:8705")
    for name, role, zone in (("n1", "node", ""), ("n2", "node", ""), ("z1", "zone-cache", ""), ("z2", "zone-cache", "west")):
        join(store, name, role, zone)
    store.nodes.allow("n1", ["other"], 2)
    assert [peer.name for _, peer in _node_places(settings, store, "acme")] == ["n2"]
    assert [peer.name for _, peer in _node_places(settings, store, "other")] == ["n1", "n2"]
    assert [address for address, _ in _node_places(settings, store, None)] == [
        HostPort("10.0.0.1", 8703),
        HostPort("10.0.0.2", 8703),
    ]
    assert _zones(settings, store) == {"default": ["10.0.0.3:8703"], "east": ["10.0.9.9:8705"], "west": ["10.0.0.4:8703"]}
