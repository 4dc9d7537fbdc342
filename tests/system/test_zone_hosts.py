"""A zone cache on a host of its own: it joins, is filled over mutual TLS, and a node on a third host lives from it alone."""

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from doubles.hosts import Hosts

from orchestrator.settings import Settings

pytestmark = [pytest.mark.system, pytest.mark.needs_root]

WAIT_S = 120.0
JOIN, NODE_RPC, ZONE, FUNCTIONS = 8702, 8703, 8705, 8700


class Cluster:
    """All but the node on host `a`, a zone cache on `b`, a node on `c` that has no way to the origin."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.hosts = Hosts("a", "b", "c")
        self.state = folder / "a"
        self.settings = Settings(state=self.state)
        self.states = [self.state]
        shared = {"FOREGLOW_NODES": "none", "FOREGLOW_JOIN_HOST": "0.0.0.0"}
        self.hosts.start("a", folder / "a.log", "up", "--state", str(self.state), "--join-port", str(JOIN), **shared)
        self.wait((self.state / "addresses.json").exists, "the platform is ready")

    def __call__(self, *words: str) -> Any:
        done = self.hosts.run("a", *words, "--state", str(self.state), "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def member(self, host: str, role: str, name: str, port: int, **environment: str) -> None:
        state = self.folder / name
        self.states.append(state)
        done = self.hosts.run(
            host,
            *("join", f"{self.hosts.address('a', of=host)}:{JOIN}", self("node-token", "--role", role)["token"]),
            *("--role", role, "--name", name, "--listen", f"{self.hosts.address(host)}:{port}", "--state", str(state)),
        )
        assert done.returncode == 0, done.stderr
        self.start(host, role, name, **environment)

    def start(self, host: str, role: str, name: str, **environment: str) -> None:
        redis = {"FOREGLOW_REDIS_URL": f"unix://{self.settings.socket('valkey')}"} if role != "node" else {}
        log, state = self.folder / f"{name}.log", str(self.folder / name)
        self.hosts.start(host, log, role, "--state", state, **{"FOREGLOW_LOG_LEVEL": "debug", **redis, **environment})

    def zone(self, path: str) -> str:
        """What the operations listener of the cache says; empty while there is none."""
        transport = httpx.HTTPTransport(uds=str(Settings(state=self.folder / "z1").ops_socket("zone-cache")))
        try:
            with httpx.Client(transport=transport, timeout=5) as client:
                return client.get(f"http://operations{path}").text
        except httpx.HTTPError:
            return ""

    def metric(self, shown: str) -> float:
        found = [float(line.split()[-1]) for line in self.zone("/metrics").splitlines() if line.startswith(f"{shown} ")]
        return found[0] if found else 0.0

    def deploy(self, number: int) -> tuple[str, str]:
        """Status and reason of the newest version's condition `code`."""
        project = self.folder / "project"
        project.mkdir(exist_ok=True)
        (project / "one.py").write_text(f"def handle(event, context):\n    return {number}\n")
        (project / "foreglow.toml").write_text('[functions.one]\nhandler = "one:handle"\n')
        done = self.hosts.run("a", "deploy", str(project), "--state", str(self.state))
        assert done.returncode == 0, done.stderr + done.stdout
        versions = self("describe", "one")["versions"]
        newest = max(versions, key=lambda one: one["number"])
        (code,) = (one for one in newest["conditions"] if one["name"] == "code")
        return code["status"], code["reason"]

    def invoke(self) -> httpx.Response:
        return self.hosts.call("a", self._post).result()

    def _post(self) -> httpx.Response:
        headers = {"Authorization": f"Bearer {(self.state / 'key').read_text().strip()}"}
        with httpx.Client(trust_env=False, timeout=60) as client:
            return client.post(f"http://127.0.0.1:{FUNCTIONS}/function/one", json=None, headers=headers)

    def wait(self, condition: Callable[[], object], what: str) -> None:
        began = time.monotonic()
        while not condition():
            if time.monotonic() - began > WAIT_S:
                logs = [*self.folder.glob("*.log"), *(self.state / "logs").glob("*.log")]
                told = "\n".join(f"== {one.name}\n{one.read_text()[-2000:]}" for one in logs)
                pytest.fail(f"{what}: not within {WAIT_S:.0f} s\n{told}")
            time.sleep(0.1)

    def close(self) -> None:
        try:
            self.hosts.close()
        finally:
            for state in self.states:
                shutil.rmtree(Settings(state=state).runtime_folder, ignore_errors=True)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="fg-"))
    made = Cluster(folder)
    try:
        yield made
    finally:
        made.close()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
def test_a_node_on_another_host_lives_from_the_cache_of_its_zone(cluster: Cluster) -> None:
    nowhere = cluster.folder / "no-origin"
    cluster.member("b", "zone-cache", "z1", ZONE)
    cluster.wait(lambda: json.loads(cluster.zone("/readyz") or "{}").get("ready"), "the cache serves")
    cluster.member("c", "node", "n1", NODE_RPC, FOREGLOW_ORIGIN_URL=nowhere.as_uri())
    cluster.wait(
        lambda: {one["name"]: one["state"] for one in cluster("nodes")["nodes"]} == {"n1": "up", "z1": "up"}, "both joined"
    )
    assert cluster.deploy(1) == ("true", "")
    held = cluster.metric("foreglow_zone_bytes")
    assert held > 0, "filled before any start"
    cluster.wait(lambda: cluster.invoke().text == "1", "the node, which has no origin, has the code")
    assert cluster.metric("foreglow_zone_served_bytes_total") > 0
    assert not list(nowhere.rglob("*.manifest"))

    # bound to another tenant: no instance of ours is placed there, and no code given to it
    assert cluster.hosts.run("a", "tenants", "create", "acme", "--state", str(cluster.state)).returncode == 0
    assert cluster.hosts.run("a", "nodes", "allow", "n1", "acme", "--state", str(cluster.state)).returncode == 0
    cluster.wait(lambda: cluster.invoke().status_code == 429, "the only node may not host it")
    assert cluster.hosts.run("a", "nodes", "allow", "n1", "--state", str(cluster.state)).returncode == 0
    cluster.wait(lambda: cluster.invoke().text == "1", "it may again")

    # without the cache a deploy goes on, and says so
    (cache,) = (one for one in cluster.hosts.processes if "zone-cache" in one.args)  # type: ignore[operator]
    cache.kill()
    cache.wait(10)
    status, reason = cluster.deploy(2)
    assert status == "true"
    assert reason.startswith(f"zone default: not filled, {cluster.hosts.address('b')}:{ZONE}: ConnectionRefusedError")
    cluster.start("b", "zone-cache", "z1")
    cluster.wait(lambda: cluster.invoke().text == "2", "what it was not filled with it reads through")
