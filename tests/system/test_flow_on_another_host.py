"""The control flow as a member: it runs on host `b`, beside a node, and nowhere else; control, planner and gateway are on `a`.

What it needs it was told when it joined: Redis (over the network), PostgreSQL (whose socket the hosts share) and the origin.
"""

import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from doubles.hosts import DEPLOY_S, Hosts
from doubles.servers import Postgres

from orchestrator import valkey
from orchestrator.membership import load_member
from orchestrator.settings import Settings

pytestmark = [pytest.mark.system, pytest.mark.needs_root]

WAIT_S = 120.0
JOIN, RPC = 8702, 8703
CODE = "def handle(event, context):\n    return {number}\n"


class TwoHosts:
    def __init__(self, folder: Path, database_url: str) -> None:
        self.folder, self.hosts = folder, Hosts("a", "b")
        self.state = folder / "a"
        self.a = self.hosts.address("a", of="b")
        (folder / "origin").mkdir()
        redis = [*valkey.command(folder / "r.sock", folder / "valkey")]
        redis[redis.index("--port") + 1] = "6379"
        self._start_redis([*redis, "--bind", self.a, "--requirepass", "SECRET"])
        self.environment = {
            "FOREGLOW_STATE": str(self.state),
            "FOREGLOW_REDIS_URL": f"redis://:SECRET@{self.a}:6379/0",
            "FOREGLOW_DATABASE_URL": database_url,
            "FOREGLOW_ORIGIN_URL": (folder / "origin").as_uri(),
            "FOREGLOW_NODES": "none",
            "FOREGLOW_JOIN_PORT": str(JOIN),
            "FOREGLOW_JOIN_HOST": self.a,
            "FOREGLOW_CONTROL_URL": "http://127.0.0.1:8701",
            "FOREGLOW_FUNCTIONS_URL": "http://127.0.0.1:8700",
        }
        for process in ("control", "planner", "gateway"):
            self.hosts.start("a", folder / f"{process}.log", process, **self.environment)

    def _start_redis(self, command: list[str]) -> None:
        words = [word or "" for word in command]
        with (self.folder / "redis.log").open("ab") as log:
            self.hosts.processes.append(subprocess.Popen(self.hosts.inside("a", words), stdout=log, stderr=log, process_group=0))

    def run(self, *words: str, timeout_s: float = 60.0) -> "subprocess.CompletedProcess[str]":
        return self.hosts.run("a", *words, timeout_s=timeout_s, **self.environment)

    def __call__(self, *words: str) -> Any:
        done = self.run(*words, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def join(self, role: str, *more: str) -> Path:
        state = self.folder / f"{role}-b"
        token = str(self("node-token", "--role", role)["token"])
        words = ("--role", role, "--name", state.name, "--state", str(state), *more)
        done = self.hosts.run("b", "join", f"{self.a}:{JOIN}", token, *words)
        assert done.returncode == 0, done.stderr
        return state

    def start(self, role: str, state: Path) -> "subprocess.Popen[bytes]":
        """With nothing in its environment: it knows from its joining."""
        return self.hosts.start("b", self.folder / f"{state.name}.log", role, "--state", str(state))

    def deploy(self, number: int) -> None:
        project = self.folder / "project"
        (project / "one").mkdir(parents=True, exist_ok=True)
        (project / "one" / "one.py").write_text(CODE.format(number=number))
        manifest = '[functions.one]\npath = "one"\nhandler = "one:handle"\ninitial_instances = 1\n'
        (project / "foreglow.toml").write_text(manifest)
        done = self.run("deploy", str(project), timeout_s=DEPLOY_S)
        assert done.returncode == 0, done.stderr + done.stdout + self.logs()

    def invoke(self) -> Any:
        return self.hosts.call("a", self._post).result()

    def _post(self) -> httpx.Response:
        headers = {"Authorization": f"Bearer {(self.state / 'key').read_text().strip()}"}
        with httpx.Client(trust_env=False, timeout=60) as client:
            return client.post("http://127.0.0.1:8700/function/one", json=None, headers=headers)

    def wait(self, condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + WAIT_S
        while not condition():
            if time.monotonic() > deadline:
                pytest.fail(f"{what}: not within {WAIT_S:.0f} s; {self.run('nodes')}\n{self.logs()}")
            time.sleep(0.1)

    def logs(self) -> str:
        return "\n".join(f"== {one.name}\n{one.read_text()[-2500:]}" for one in self.folder.glob("*.log"))


@pytest.fixture
def two(postgres: Postgres) -> Iterator[TwoHosts]:
    folder = Path(tempfile.mkdtemp(prefix="fg-"))
    folder.chmod(0o755)
    made: TwoHosts | None = None
    try:
        made = TwoHosts(folder, postgres.fresh())
        yield made
    finally:
        try:
            if made is not None:
                made.hosts.close()
        finally:
            for state in (folder / "a", folder / "flow-b", folder / "node-b"):
                shutil.rmtree(Settings(state=state).runtime_folder, ignore_errors=True)
            shutil.rmtree(folder, ignore_errors=True)


def test_a_flow_that_joined_deploys_starts_instances_and_comes_back_after_kill_9(two: TwoHosts) -> None:
    two.wait(lambda: two.run("nodes").returncode == 0, "control answers")
    node = two.join("node", "--listen", f"{two.hosts.address('b')}:{RPC}")
    two.start("node", node)
    state = two.join("flow")
    member = load_member(state)
    assert member is not None
    assert (member.listen, member.redis_url) == ("", two.environment["FOREGLOW_REDIS_URL"])
    assert member.database_url == two.environment["FOREGLOW_DATABASE_URL"]
    flow = two.start("flow", state)
    two.deploy(1)
    (version,) = two("describe", "one")["versions"]
    conditions = {one["name"]: one["status"] for one in version["conditions"]}
    assert {conditions[name] for name in ("code", "capacity", "route")} == {"true"}, conditions
    answer = two.invoke()
    assert (answer.status_code, answer.json()) == (200, 1), two.logs()
    assert answer.headers["X-Foreglow-Start"] == "prewarmed", "flow reached the node, which takes orders of members only"

    flow.kill()
    flow.wait(10)
    two.start("flow", state)
    two.deploy(2)
    two.wait(lambda: two.invoke().json() == 2, "the second version serves")
    assert {one["role"]: one["state"] for one in two("nodes")["nodes"]} == {"node": "up", "flow": "up"}
