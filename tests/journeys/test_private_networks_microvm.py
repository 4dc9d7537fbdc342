"""A microVM in a private network: its card is where a process's own network would be, all else is the same."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from doubles.inside import Inside, eventually
from doubles.microvms import guest_image
from doubles.private_networks import CIDR, REDIS_PORT, SERVER, TENANTS, VIRTUAL, bed, redis

pytestmark = [pytest.mark.system, pytest.mark.needs_root]

PROJECT = """
[functions.stock]
handler = "records:stock"
vpc = "shop"
timeout_s = 60
environment = { DATABASE = "10.0.1.5:6379" }
"""
ROOT = Path(__file__).parents[2]
READY_S = 180.0


@pytest.fixture(scope="module", params=["portable", "kernel"])
def platform(request: pytest.FixtureRequest) -> Iterator[Inside]:
    image = guest_image().kernel.parents[2]
    with tempfile.TemporaryDirectory(prefix="fg-vpc-") as folder, bed() as made:
        node = made.nodes[0]
        there = Inside(
            node,
            Path(folder),
            FOREGLOW_TUNNELS=request.param,
            FOREGLOW_UNDERLAY=node.address,
            FOREGLOW_DRIVER="microvm",
            FOREGLOW_ACCEL="tcg",
            FOREGLOW_IMAGE=str(image),
            FOREGLOW_STANDBYS="1",
        )
        made.networks[TENANTS[0]].server.run(lambda: redis("SET", "stock:tea", "5"))
        wanted = {"name": "shop", "cidrs": [CIDR], "rules": [f"tcp:{SERVER}/32:{REDIS_PORT}"], "address": ""}
        if request.param == "kernel":
            wanted["address"] = VIRTUAL
        assert there.ask("POST", "/v1/vpcs", body=wanted).status_code == 201
        there.join_proxy(made.proxies[TENANTS[0]][0], "default/shop")
        eventually(lambda: any(one["ready"] for one in there.get("/v1/vpcs/shop")["tunnels"]), "the tunnel is open")
        yield there
        assert there.stop() == 0, there.logs()


def test_a_guest_reads_the_database(platform: Inside, tmp_path: Path) -> None:
    for name in ("records.py", "database.py"):
        (tmp_path / name).write_text((ROOT / "examples" / "orders" / name).read_text())
    (tmp_path / "foreglow.toml").write_text(PROJECT)
    platform.foreglow("deploy", str(tmp_path))

    def served() -> bool:
        return platform.invoke("stock", {"item": "tea"}).status_code == 200

    eventually(served, "it is served", READY_S)
    platform.ask("POST", "/v1/cool", body={})
    answer = platform.invoke("stock", {"item": "tea"})
    assert answer.json() == {"item": "tea", "left": 5}, answer.text + platform.logs()
    assert "net;dur=" in answer.headers["server-timing"]
