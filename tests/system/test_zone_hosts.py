"""A zone cache on a host of its own: it joins, is filled over mutual TLS, and a node on a third host lives from it alone."""

import json
from collections.abc import Iterator

import httpx
import pytest
from doubles.clusters import RPC, Cluster, running_cluster

from orchestrator.settings import Settings

pytestmark = [pytest.mark.system, pytest.mark.needs_root]

ZONE = 8705


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """All but the node on host `a`; a zone cache comes to `b`, and to `c` a node that has no way to the origin."""
    with running_cluster() as made:
        yield made


def asked(cluster: Cluster, path: str) -> str:
    """What the operations listener of the cache says; empty while there is none."""
    transport = httpx.HTTPTransport(uds=str(Settings(state=cluster.folder / "z1").ops_socket("zone-cache")))
    try:
        with httpx.Client(transport=transport, timeout=5) as client:
            return client.get(f"http://operations{path}").text
    except httpx.HTTPError:
        return ""


def metric(cluster: Cluster, shown: str) -> float:
    found = [float(line.split()[-1]) for line in asked(cluster, "/metrics").splitlines() if line.startswith(f"{shown} ")]
    return found[0] if found else 0.0


def deployed(cluster: Cluster, number: int) -> tuple[str, str]:
    """Status and reason of the newest version's condition `code`; it answers with the number."""
    cluster.deploy(f"def handle(event, context):\n    return {number}\n")
    newest = max(cluster("describe", "nap")["versions"], key=lambda one: int(one["number"]))
    (code,) = (one for one in newest["conditions"] if one["name"] == "code")
    return code["status"], code["reason"]


@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
def test_a_node_on_another_host_lives_from_the_cache_of_its_zone(cluster: Cluster) -> None:
    nowhere = cluster.folder / "no-origin"
    cache = cluster.member("b", "zone-cache", "z1", ZONE)
    cluster.wait(lambda: json.loads(asked(cluster, "/readyz") or "{}").get("ready"), "the cache serves")
    cluster.member("c", "node", "n1", RPC, FOREGLOW_ORIGIN_URL=nowhere.as_uri())
    cluster.wait(
        lambda: {one["name"]: one["state"] for one in cluster("nodes")["nodes"]} == {"n1": "up", "z1": "up"}, "both joined"
    )
    number = 0

    def filled() -> bool:
        """A version that meets a cache without CPU for a second says for good that it is not filled: the next one is tried."""
        nonlocal number
        number += 1
        return deployed(cluster, number) == ("true", "")

    cluster.wait(filled, "a version is filled")
    cluster.wait(lambda: metric(cluster, "foreglow_zone_bytes") > 0, "filled before any start")
    cluster.wait(lambda: cluster.invoke(0.0).result().text == f"{number}", "the node, which has no origin, has the code")
    cluster.wait(lambda: metric(cluster, "foreglow_zone_served_bytes_total") > 0, "the cache has served it")
    assert not list(nowhere.rglob("*.manifest"))

    # bound to another tenant: no instance of ours is placed there, and no code given to it
    assert cluster.hosts.run("a", "tenants", "create", "acme", "--state", str(cluster.state)).returncode == 0
    assert cluster.hosts.run("a", "nodes", "allow", "n1", "acme", "--state", str(cluster.state)).returncode == 0
    cluster.wait(lambda: cluster.invoke(0.0).result().status_code == 429, "the only node may not host it")
    assert cluster.hosts.run("a", "nodes", "allow", "n1", "--state", str(cluster.state)).returncode == 0
    cluster.wait(lambda: cluster.invoke(0.0).result().text == f"{number}", "it may again")

    # without the cache a deploy goes on, and says so
    cache.kill()
    cache.wait(10)
    number += 1
    status, reason = deployed(cluster, number)
    assert status == "true"
    assert reason.startswith(f"zone default: not filled, {cluster.hosts.address('b')}:{ZONE}: ConnectionRefusedError")
    cluster.start("b", "zone-cache", "z1")
    cluster.wait(lambda: cluster.invoke(0.0).result().text == f"{number}", "what it was not filled with it reads through")
