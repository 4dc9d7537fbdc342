"""A proxy that dies or stands still, under requests: its backup takes over, and only who was connected through it notices.

The rows of docs/failures.md say what a client may see.
"""

import os
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from doubles.inside import Inside, eventually
from doubles.private_networks import CIDR, REDIS_PORT, SERVER, TENANTS, Bed, bed, redis
from faults import table

pytestmark = [pytest.mark.system, pytest.mark.needs_root]

ROOT = Path(__file__).parents[2]
ORDER = {"customer": "7", "item": "tea"}
TENANT = TENANTS[0]
HELD_S = 5.0  # a proxy stands still
RECOVERS_S = 20.0


class World:
    def __init__(self, made: Bed, folder: Path) -> None:
        self.bed = made
        self.platform = Inside(made.nodes[0], folder, FOREGLOW_TUNNELS="portable")
        for key, value in (("customer:7", "Ann"), ("stock:tea", "5")):
            made.networks[TENANT].server.run(lambda key=key, value=value: redis("SET", key, value))  # type: ignore[misc]
        wanted = {"name": "shop", "cidrs": [CIDR], "rules": [f"tcp:{SERVER}/32:{REDIS_PORT}"]}
        assert self.platform.ask("POST", "/v1/vpcs", body=wanted).status_code == 201
        self.proxies = [self.platform.join_proxy(host, "default/shop") for host in made.proxies[TENANT]]
        self.platform.foreglow("deploy", str(ROOT / "examples" / "orders"))
        eventually(lambda: self.platform.invoke("order", ORDER).status_code == 200, "it is served")

    def carrier(self) -> int:
        """The place of the proxy that the node's tunnel goes by, as the tunnel says."""
        reason = self.platform.get("/v1/vpcs/shop")["tunnels"][0]["reason"]
        return next(place for place, host in enumerate(self.bed.proxies[TENANT]) if f"by {host.name} " in reason)


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with tempfile.TemporaryDirectory(prefix="fg-faults-") as folder, bed() as made:
        there = World(made, Path(folder))
        yield there
        assert there.platform.stop() == 0, there.platform.logs()


def asking(world: World, seen: "list[tuple[float, str]]", ended: threading.Event) -> None:
    """One request after the other, until told to end; what each came to."""
    platform = world.platform

    def work() -> None:
        headers = {"Authorization": f"Bearer {platform.key}"}
        with httpx.Client(base_url=platform.addresses["functions"], headers=headers, trust_env=False, timeout=15) as client:
            while not ended.is_set():
                try:
                    what = str(client.post("/function/customer", json=ORDER).status_code)
                except httpx.TimeoutException:
                    what = "timeout"
                except httpx.HTTPError:
                    what = "reset"
                seen.append((time.monotonic(), what))
                time.sleep(0.02)

    platform.host.run(work)


@pytest.mark.parametrize("fault", ["SIGSTOP", "kill -9"])
def test_a_proxy_that_fails_costs_what_went_through_it(world: World, fault: str) -> None:
    row = table.rows()["vpc-proxy", fault]
    seen: list[tuple[float, str]] = []
    ended = threading.Event()
    load = threading.Thread(target=asking, args=(world, seen, ended))
    load.start()
    try:
        eventually(lambda: len(seen) > 20, "the load runs")
        struck = world.proxies[world.carrier()].pid
        began = time.monotonic()
        os.kill(struck, signal.SIGKILL if fault == "kill -9" else signal.SIGSTOP)
        if fault == "SIGSTOP":
            time.sleep(HELD_S)
            os.kill(struck, signal.SIGCONT)

        def recovered() -> bool:
            return len([what for at, what in seen[-20:] if what == "200" and at > began]) == 20

        eventually(recovered, f"requests are served again, now {seen[-5:]}\n{world.platform.logs()}", RECOVERS_S)
    finally:
        ended.set()
        load.join(30)
    bad = [(at, what) for at, what in seen if what != "200"]
    counted = Counter(what for _, what in bad)
    last_s = max((at for at, _ in bad), default=began) - began
    print(f"{fault}: {len(seen)} requests, {dict(counted)}, the last {last_s:.1f} s after")
    assert all(row.allows("invoke", what) for what in counted), counted
    assert world.platform.get("/v1/functions/order")["versions"][0]["state"] == "ready"
