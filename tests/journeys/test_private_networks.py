"""The journey of private networks: two tenants with the same addresses, each with a pair of proxies that joined, read their own
databases by functions that are prewarmed with tunnel, code and clone; and nobody gets anywhere else.
"""

import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from doubles.inside import Inside, eventually
from doubles.private_networks import CIDR, REDIS_PORT, SERVER, TENANTS, VIRTUAL, Bed, bed, redis

pytestmark = [pytest.mark.system, pytest.mark.needs_root]

ROOT = Path(__file__).parents[2]
ORDER = {"customer": "7", "item": "tea", "count": 2}
PROBE = """
import socket
from concurrent.futures import ThreadPoolExecutor

def answer(place):
    host, port, limit_s = place
    try:
        with socket.create_connection((host, port), limit_s) as connection:
            connection.settimeout(limit_s)
            connection.sendall(b"PING\\r\\n")
            return connection.recv(100).decode(errors="replace")
    except OSError as error:
        return ""

def handle(event, context):
    with ThreadPoolExecutor(len(event["places"])) as threads:
        return {f"{host}:{port}": said for (host, port, _), said in zip(event["places"], threads.map(answer, event["places"]))}
"""
REFUSED_S, ALLOWED_S = 1.0, 30.0  # nobody waits for what answers; what must not is given a moment
FAILOVER_S = 60.0  # how long it takes is measured by bench-tunnels


class World:
    """The bed, the platform on its node, and each tenant's key."""

    def __init__(self, made: Bed, folder: Path, backend: str) -> None:
        self.bed, self.backend = made, "kernel" if backend == "auto" else backend  # where both work
        self.platform = Inside(made.nodes[0], folder, FOREGLOW_TUNNELS=backend, FOREGLOW_UNDERLAY=made.nodes[0].address)
        self.keys: dict[str, str] = {}
        self.proxies: dict[str, list[Any]] = {}
        for tenant in TENANTS:
            self.platform.foreglow("tenants", "create", tenant)
            made_key = self.platform.foreglow("keys", "create", "k", "--tenant", tenant, "--json")
            self.keys[tenant] = json.loads(made_key)["token"]
            lan = made.networks[tenant].server
            for key, value in (("customer:7", f"a customer of {tenant}"), ("stock:tea", "5" if tenant == TENANTS[0] else "1")):
                lan.run(lambda key=key, value=value: redis("SET", key, value))  # type: ignore[misc]

    def ask(self, tenant: str, method: str, path: str, body: object = None) -> Any:
        return self.platform.ask(method, path, self.keys[tenant], body)

    def get(self, tenant: str, path: str) -> Any:
        return self.platform.get(path, self.keys[tenant])

    def deploy(self, tenant: str, folder: Path) -> None:
        """By the CLI, with the tenant's key."""
        state = self.platform.folder / f"cli-{tenant}"
        state.mkdir(exist_ok=True)
        shutil.copy(self.platform.state / "addresses.json", state / "addresses.json")
        (state / "key").write_text(self.keys[tenant])
        self.platform.foreglow("deploy", str(folder), state=state)

    def opened(self, tenant: str) -> None:
        """Waits until the node's tunnel is, by the backend that is to carry it."""

        def carried() -> bool:
            (tunnel,) = self.network(tenant)["tunnels"]
            return bool(tunnel["ready"] and tunnel["backend"] == self.backend)

        try:
            eventually(carried, "the tunnel is open")
        except AssertionError as error:
            raise AssertionError(f"{error}: {self.get(tenant, '/v1/vpcs/shop')}\n{self.platform.logs()}") from error

    def network(self, tenant: str) -> Any:
        """With the node's tunnel: a node that does not answer control in time is left out of what it tells."""

        def told() -> Any:
            found = self.get(tenant, "/v1/vpcs/shop")
            return found if found["tunnels"] else None

        return eventually(told, "the node tells of its tunnel")


@pytest.fixture(scope="module", params=["portable", "kernel", "auto"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    with tempfile.TemporaryDirectory(prefix="fg-vpc-") as folder, bed() as made:
        there = World(made, Path(folder), request.param)
        yield there
        assert there.platform.stop() == 0, there.platform.logs()


def test_a_network_is_made_its_proxies_join_and_the_tunnel_is_there_before_any_function(world: World) -> None:
    for tenant in TENANTS:
        wanted = {"name": "shop", "cidrs": [CIDR], "rules": [f"tcp:{SERVER}/32:{REDIS_PORT}"]}
        if world.backend == "kernel":
            wanted["address"] = VIRTUAL
        assert world.ask(tenant, "POST", "/v1/vpcs", wanted).status_code == 201
        world.proxies[tenant] = [world.platform.join_proxy(host, f"{tenant}/shop") for host in world.bed.proxies[tenant]]
    for tenant in TENANTS:
        world.opened(tenant)
        found = world.network(tenant)
        assert [one["role"] for one in found["proxies"]] == ["primary", "backup"]
        assert found["tunnels"][0]["backend"] == world.backend
        assert found["tunnels"][0]["attached"] == 0
    assert world.network(TENANTS[0])["number"] != world.network(TENANTS[1])["number"]


def test_functions_read_their_own_tenants_database_at_the_same_address(world: World) -> None:
    for tenant in TENANTS:
        world.deploy(tenant, ROOT / "examples" / "orders")
        described = world.get(tenant, "/v1/functions/order")
        network = next(one for one in described["versions"][0]["conditions"] if one["name"] == "network")
        assert network["status"] == "true"
        assert f"({world.backend})" in network["reason"]
    for tenant, accepted in zip(TENANTS, (True, False), strict=True):
        answer = world.platform.invoke("order", ORDER, world.keys[tenant])
        assert answer.status_code == 200, answer.text + world.platform.logs()
        assert answer.json() == {"for": f"a customer of {tenant}", "item": "tea", "accepted": accepted}
        assert "net;dur=" in answer.headers["server-timing"]


def test_one_plan_prepares_tunnel_code_and_clone(world: World) -> None:
    tenant = TENANTS[0]
    world.ask(tenant, "POST", "/v1/cool", {})
    assert world.ask(tenant, "POST", "/v1/functions/order/warm", {}).status_code == 200

    def decided() -> Any:
        latest = world.get(tenant, "/v1/decisions?limit=100")["decisions"]
        ready = {one["function"]: one for one in latest if one["outcome"] == "ready" and one["trigger"] == "warm"}
        return ready if ready.keys() >= {"order", "customer", "stock"} else None

    for one in eventually(decided, "all three are ready").values():
        assert one["steps_ms"]["net"] > 0, one
        assert one["steps_ms"]["clone"] > 0
        assert one["steps_ms"]["code"] > 0
    attached = world.network(tenant)["tunnels"][0]["attached"]
    assert attached >= 3
    answer = world.platform.invoke("order", ORDER, world.keys[tenant])
    assert answer.headers["x-foreglow-start"] == "prewarmed"
    assert answer.json()["for"] == f"a customer of {tenant}"


def test_nothing_else_is_reached(world: World, tmp_path: Path) -> None:
    (tmp_path / "probe.py").write_text(PROBE)
    (tmp_path / "foreglow.toml").write_text(
        '[functions.inside]\nhandler = "probe:handle"\nvpc = "shop"\ntimeout_s = 80\n'
        '[functions.apart]\nhandler = "probe:handle"\n'
    )
    tenant = TENANTS[0]
    world.deploy(tenant, tmp_path)
    node = world.bed.nodes[0].address
    proxies = [host.address for host in world.bed.proxies[tenant]]
    port = int(world.platform.addresses["control"].rpartition(":")[2])
    forbidden = [
        (SERVER, 7777), (SERVER, 5432), ("10.0.0.1", 53), ("10.0.0.11", 8706), ("203.0.113.9", 7777), ("169.254.169.254", 80),
        (node, port), ("127.0.0.1", port), ("100.64.0.1", port), *((address, 8706) for address in proxies),
    ]  # fmt: skip
    refused = [[*one, REFUSED_S] for one in forbidden]
    places = [[SERVER, REDIS_PORT, ALLOWED_S], *refused]
    inside = world.platform.invoke("inside", {"places": places}, world.keys[tenant]).json()
    assert inside.pop(f"{SERVER}:{REDIS_PORT}").startswith("+PONG")
    assert not any(inside.values()), inside
    places = [[SERVER, REDIS_PORT, REFUSED_S], *refused]
    apart = world.platform.invoke("apart", {"places": places}, world.keys[tenant]).json()
    assert not any(apart.values()), "a function in no network reaches nothing"


def test_a_network_in_use_stays_and_one_with_its_primary_gone_serves_on(world: World) -> None:
    tenant = TENANTS[0]
    refused = world.ask(tenant, "DELETE", "/v1/vpcs/shop")
    assert refused.status_code == 409
    assert "order" in refused.json()["detail"]
    primary = world.proxies[tenant][0]
    primary.kill()
    primary.wait(10)
    began = time.monotonic()
    eventually(
        lambda: world.platform.invoke("customer", ORDER, world.keys[tenant]).status_code == 200,
        "the backup serves",
        FAILOVER_S,
    )
    print(f"{world.backend}: {time.monotonic() - began:.1f} s until the backup served")
    assert world.platform.invoke("order", ORDER, world.keys[TENANTS[1]]).status_code == 200, "the other tenant noticed nothing"


def test_changed_rules_count_at_once_and_a_network_nobody_uses_goes(world: World) -> None:
    tenant = TENANTS[1]
    before = world.network(tenant)
    settings = {name: before[name] for name in ("cidrs", "address", "resolver")}
    assert world.ask(tenant, "PUT", "/v1/vpcs/shop", {**settings, "rules": ["tcp:10.0.9.0/24:1"]}).status_code == 200
    eventually(
        lambda: world.platform.invoke("customer", ORDER, world.keys[tenant]).status_code == 502, "the database is not allowed"
    )
    for name in ("order", "customer", "stock"):
        assert world.ask(tenant, "DELETE", f"/v1/functions/{name}").status_code == 204
    assert world.ask(tenant, "DELETE", "/v1/vpcs/shop").status_code == 204
    assert world.ask(tenant, "GET", "/v1/vpcs/shop").status_code == 404
