"""Zone caches between hosts: over mutual TLS only current members are served, and a node only what it may hold."""

import asyncio
import contextlib
import ssl
import threading
from collections.abc import AsyncIterator, Callable
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from doubles.cluster import identity, port_of
from doubles.loop import in_loop, until
from doubles.zones import CLUSTER_KEY, big_layer, content, publish, read_all

from orchestrator.authority import Authority
from orchestrator.catalog.routes import NodeRoute
from orchestrator.catalog.watch import RouteTable
from orchestrator.zone_cache import app, listener
from orchestrator.zone_cache.admission import judge
from orchestrator.zone_cache.app import ZoneApp
from orchestrator.zone_cache.disk import ZoneDisk
from orchestrator.zone_cache.holding import Holding
from orchestrator.zone_cache.listener import MemberListener
from workers.code import replica, zone
from workers.code.chunks import chunk_key, unpack
from workers.code.manifest import CHUNK_BYTES, PARCEL_CHUNKS, Manifest, hex_of
from workers.code.origin import Origin, OriginError
from workers.code.zone import ZoneClient
from workers.rpc.transport import HostPort, Identity


class Cluster:
    """An authority, members in a route table, and a cache that listens on a port and a socket."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = Authority(folder / "authority")
        self.table = RouteTable()
        self.origin = Origin((folder / "origin").as_uri())
        self.holding = Holding(ZoneDisk(folder / "zone", 1 << 30), self.origin)
        self.app = ZoneApp(self.holding, judge(self.table.nodes), self.table.loaded.is_set)
        self.listener = MemberListener(self.app.app)
        self.clients: list[ZoneClient] = []

    @property
    def socket(self) -> Path:
        return self.folder / "z.sock"

    @property
    def address(self) -> HostPort:
        return port_of(self.listener.servers[0])

    def join(self, name: str, role: str = "node", *tenants: str) -> Identity:
        made = identity(self.authority, self.folder, role, name)
        fingerprint = sha256(made.certificate).hexdigest()
        self.table.change("node", name, NodeRoute(name, 1, role, "", "", fingerprint, True, 1, tenants=tenants))
        return made

    def client(self, who: Identity) -> ZoneClient:
        self.clients.append(ZoneClient("default", who, [self.address]))
        return self.clients[-1]


@contextlib.asynccontextmanager
async def cluster(folder: Path, role: str = "zone-cache") -> AsyncIterator[Cluster]:
    made = Cluster(folder)
    made.table.loaded.set()
    await made.listener.start([HostPort("127.0.0.1", 0), made.socket], identity(made.authority, folder, role, "z1"))
    try:
        yield made
    finally:
        for client in made.clients:
            client.close()
        await made.listener.close()
        made.holding.close()


async def said(call: Callable[..., Any], *arguments: Any) -> str:
    """Why not; empty when it worked."""
    try:
        await asyncio.to_thread(call, *arguments)
    except OriginError as error:
        return str(error)
    return ""


def layer(made: Cluster, tenant: str = "acme") -> Manifest:
    return publish(made.origin, tenant, {"a.py": b"print(1)\n"})


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine is no cache that stands still."""
    monkeypatch.setattr(replica, "CONNECT_S", 30.0)
    monkeypatch.setattr(zone, "FILL_READ_S", 30.0)
    monkeypatch.setattr(replica, "READ_S", 30.0)


@in_loop
async def test_members_read_and_flow_fills(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        one = layer(made)
        node, flow = made.client(made.join("n1")), made.client(made.join("f1", "flow"))
        names = [chunk.name for chunk in one.chunks]
        assert await asyncio.to_thread(flow.fill, "acme", one.digest, names, 10) == ""
        assert await asyncio.to_thread(read_all, node, "acme", one) == b"print(1)\n"
        assert "a node has nothing to ask" in await asyncio.to_thread(node.fill, "acme", one.digest, names, 10)


@in_loop
async def test_a_node_gets_nothing_of_tenants_it_may_not_hold(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        acme, globex = layer(made), layer(made, "globex")
        node = made.client(made.join("n1", "node", "acme"))
        assert await said(read_all, node, "acme", acme) == ""
        why = await said(read_all, node, "globex", globex)
        assert "may not hold code of tenant globex" in why
        assert await said(node.chunk, "globex", globex.digest, globex.chunks[0].name) == why
        assert made.holding.tally.refused == 2
        made.table.change("node", "n1", msgspec.structs.replace(made.table.nodes["n1"], tenants=()))
        assert await said(read_all, node, "globex", globex) == "", "the operator lifted it"


def unpacked(client: ZoneClient, tenant: str, wanted: Manifest, at_most: int = 99) -> list[bytes]:
    """The content of the chunks of a parcel, b"" for one that it does not hold."""
    parcel, key = client.parcel(tenant, wanted.digest), chunk_key(CLUSTER_KEY, tenant)
    try:
        assert parcel.manifest == wanted
        stored = list(islice(parcel, at_most))
    finally:
        parcel.close()
    return [unpack(key, chunk.name, one) if one else b"" for chunk, one in zip(wanted.chunks, stored, strict=False)]


@in_loop
async def test_a_small_layer_is_one_answer_and_its_connection_is_used_again(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        one, node = big_layer(made.origin, "acme", PARCEL_CHUNKS), made.client(made.join("n1"))
        plain = [content(CHUNK_BYTES, number) for number in range(PARCEL_CHUNKS)]
        assert await asyncio.to_thread(unpacked, node, "acme", one) == [b""] * PARCEL_CHUNKS, "a parcel asks no origin"
        before = set(made.listener._state.connections)
        await asyncio.to_thread(read_all, node, "acme", one)
        assert await asyncio.to_thread(unpacked, node, "acme", one) == plain
        made.holding.disk.drop(("acme", "chunks", one.chunks[2].name))
        made.holding.disk.keep(("acme", "chunks", one.chunks[4].name), b"damaged")
        plain[2] = plain[4] = b""
        assert await asyncio.to_thread(unpacked, node, "acme", one) == plain
        assert made.listener._state.connections == before
        assert len(before) == 1
        assert len(await asyncio.to_thread(unpacked, node, "acme", one, 2)) == 2
        await until(lambda: not made.listener._state.connections)
        large = big_layer(made.origin, "acme", PARCEL_CHUNKS + 1)
        await asyncio.to_thread(read_all, node, "acme", large)
        assert await asyncio.to_thread(unpacked, node, "acme", large) == []


@in_loop
async def test_a_parcel_is_refused_as_its_chunks_are(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        acme, globex = layer(made), layer(made, "globex")
        node = made.client(made.join("n1", "node", "acme"))
        assert "may not hold code of tenant globex" in await said(unpacked, node, "globex", globex)
        assert "not in the origin" in await said(node.parcel, "acme", globex.digest)
        made.table.change("node", "n1", None)
        assert "no member of this cluster" in await said(unpacked, node, "acme", acme)


@in_loop
async def test_a_cache_of_an_earlier_release_sends_the_manifest_alone(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        one, node = layer(made), made.client(made.join("n1"))
        routes = made.app.app.router.routes
        routes[:] = [route for route in routes if not route.path.endswith("/parcel")]  # type: ignore[attr-defined]
        assert await asyncio.to_thread(unpacked, node, "acme", one) == []


@in_loop
async def test_who_does_not_read_a_parcel_loses_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "PARCEL_S", 2.0)
    async with cluster(tmp_path) as made:
        one, node = big_layer(made.origin, "acme", PARCEL_CHUNKS), made.client(made.join("n1"))
        await asyncio.to_thread(read_all, node, "acme", one)
        parcel = await asyncio.to_thread(node.parcel, "acme", one.digest)
        await until(lambda: not made.listener._state.connections)
        with pytest.raises(OriginError, match="in the middle of a parcel"):
            await asyncio.to_thread(list, parcel)
        parcel.close()


@in_loop
async def test_who_has_left_is_refused_on_the_connection_he_still_has(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        one = layer(made)
        node = made.client(made.join("n1"))
        assert await said(read_all, node, "acme", one) == ""
        made.table.change("node", "n1", None)
        assert "no member of this cluster" in await said(read_all, node, "acme", one)


@in_loop
async def test_gateways_and_strangers_are_refused(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        one = layer(made)
        assert "a gateway has nothing to ask" in await said(read_all, made.client(made.join("g1", "gateway")), "acme", one)
        (tmp_path / "other").mkdir()
        stranger = identity(Authority(tmp_path / "other" / "authority"), tmp_path / "other", "node", "n1")
        assert "no cache answers" in await said(read_all, made.client(stranger), "acme", one)
        plain = httpx.AsyncClient(verify=False, timeout=5)  # no certificate at all
        async with plain:
            with pytest.raises((httpx.HTTPError, ssl.SSLError)):
                await plain.get(f"https://{made.address}/v1/layers/acme/{one.digest[7:]}/manifest")
        assert made.holding.tally.hits + made.holding.tally.misses == 0


@in_loop
async def test_before_the_members_are_known_nobody_from_outside_is_served(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        one = layer(made)
        made.table.loaded.clear()
        node = made.client(made.join("n1"))
        assert "does not know the members yet" in await said(read_all, node, "acme", one)
        beside = ZoneClient("default", None, [made.socket])
        made.clients.append(beside)
        assert await said(read_all, beside, "acme", one) == "", "who runs on this host as this user is"


@in_loop
async def test_another_member_that_stands_in_for_a_cache_is_not_believed(tmp_path: Path) -> None:
    async with cluster(tmp_path, role="gateway") as made:
        one = layer(made)
        assert "a gateway is no zone cache" in await said(read_all, made.client(made.join("n1")), "acme", one)


@in_loop
async def test_a_removed_tenant_leaves_nothing_behind(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        acme, globex = layer(made), layer(made, "globex")
        node = made.client(made.join("n1"))
        for tenant, one in (("acme", acme), ("globex", globex)):
            assert await said(read_all, node, tenant, one) == ""
        await made.holding.forget("acme")
        assert not (tmp_path / "zone" / "acme").exists()
        assert "was removed" in await said(read_all, node, "acme", acme)
        assert await said(read_all, node, "globex", globex) == ""


class Slow:
    """An origin that answers when it is told to."""

    name = "origin"

    def __init__(self, origin: Origin) -> None:
        self._origin = origin
        self.turn = threading.Event()
        self.asked = 0

    def manifest(self, tenant: str, digest: str) -> Manifest:
        return self._origin.manifest(tenant, digest)

    def chunk(self, tenant: str, digest: str, name: str) -> bytes:
        self.asked += 1
        assert self.turn.wait(15)
        return self._origin.chunk(tenant, digest, name)


@in_loop
async def test_a_fill_says_how_far_it_is_while_the_origin_is_slow_and_each_chunk_is_fetched_once(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        one = publish(made.origin, "acme", {f"{number}.bin": bytes([number]) * 300_000 for number in range(4)})
        slow = Slow(made.origin)
        holding = Holding(ZoneDisk(tmp_path / "other", 1 << 30), slow)
        names = [chunk.name for chunk in one.chunks]
        filling = asyncio.ensure_future(holding.fill("acme", one.digest, names, 2.0))
        await until(lambda: slow.asked == 4)
        filled = await filling
        assert (filled.missing, filled.reason) == (4, "")
        slow.turn.set()
        await until(lambda: holding.disk.holds(("acme", "chunks", names[-1])) and not holding._flights)
        assert (await holding.fill("acme", one.digest, names, 5)).missing == 0
        assert slow.asked == 4
        holding.close()


@in_loop
async def test_a_renewed_certificate_is_shown_from_then_on(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        one = layer(made)
        who = made.join("n1")
        node = made.client(who)
        assert await said(read_all, node, "acme", one) == ""
        before = sha256(who.certificate).hexdigest()
        renewed = made.join("n1")  # in the same files
        assert sha256(renewed.certificate).hexdigest() != before
        assert "no member of this cluster" in await said(read_all, node, "acme", one)
        who.reload()
        assert await said(read_all, node, "acme", one) == ""


@in_loop
async def test_a_cache_that_started_again_is_asked_on_new_connections(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        one = layer(made)
        node, where = made.client(made.join("n1")), made.address
        assert await said(read_all, node, "acme", one) == ""
        await made.listener.close()
        await made.listener.start([where], identity(made.authority, tmp_path, "zone-cache", "z1"))
        assert await said(read_all, node, "acme", one) == "", "nobody notices"


@in_loop
async def test_connections_that_nodes_keep_idle_do_not_count_and_requests_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with cluster(tmp_path) as zone, contextlib.AsyncExitStack() as kept:
        layer = publish(zone.origin, "acme", {"a.py": b"1"})
        question = f"GET /v1/layers/acme/{hex_of(layer.digest)}/manifest HTTP/1.1\r\nHost: zone\r\n\r\n".encode()

        async def ask() -> bytes:
            reader, writer = await asyncio.open_unix_connection(str(zone.socket))
            kept.callback(writer.close)
            writer.write(question)
            return (await reader.readline()).split()[1]

        assert {await ask() for _ in range(300)} == {b"200"}, "17 nodes keep as many"
        monkeypatch.setattr(listener, "REQUESTS", 0)
        assert await ask() == b"503"
