"""A platform on host `a` and members on others, all hosts being network namespaces of this machine."""

import contextlib
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

from orchestrator.settings import Settings

WAIT_S = 120.0
JOIN, RPC, FUNCTIONS = 8702, 8703, 8700
CODE = "import time\n\ndef handle(event, context):\n    time.sleep(event)\n    return event\n"


class Cluster:
    """Control, gateway, planner, flow and Valkey on host `a`; the others join it from theirs."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder = folder
        self.hosts = Hosts("a", "b", "c")
        self.state = folder / "a"
        self.settings = Settings(state=self.state)
        self.states = [self.state]
        shared = {"FOREGLOW_NODES": "none", "FOREGLOW_JOIN_HOST": "0.0.0.0", "FOREGLOW_LOG_LEVEL": "info", **environment}
        self.up = self.hosts.start("a", folder / "a.log", "up", "--state", str(self.state), "--join-port", str(JOIN), **shared)

    def ready(self) -> None:
        self.wait((self.state / "addresses.json").exists, "the platform is ready")

    def __call__(self, *words: str) -> Any:
        done = self.hosts.run("a", *words, "--state", str(self.state), "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def token(self, role: str) -> str:
        return str(self("node-token", "--role", role)["token"])

    def join(self, host: str, role: str, name: str, port: int, token: str) -> "subprocess.CompletedProcess[str]":
        state = self.folder / name
        return self.hosts.run(
            host,
            *("join", f"{self.hosts.address('a', of=host)}:{JOIN}", token, "--role", role, "--name", name),
            *("--listen", f"{self.hosts.address(host)}:{port}", "--state", str(state)),
        )

    def member(self, host: str, role: str, name: str, port: int, **environment: str) -> "subprocess.Popen[bytes]":
        """Joined and started."""
        done = self.join(host, role, name, port, self.token(role))
        assert done.returncode == 0, done.stderr
        self.states.append(self.folder / name)
        return self.start(host, role, name, **environment)

    def start(self, host: str, role: str, name: str, **environment: str) -> "subprocess.Popen[bytes]":
        """A member that joined before."""
        redis = {"FOREGLOW_REDIS_URL": f"unix://{self.settings.socket('valkey')}"} if role != "node" else {}
        return self.hosts.start(
            host, self.folder / f"{name}.log", role, "--state", str(self.folder / name), **redis, **environment
        )

    def node(self, host: str) -> "subprocess.Popen[bytes]":
        return self.member(host, "node", f"node-{host}", RPC)

    def nodes(self) -> dict[str, dict[str, Any]]:
        return {one["name"]: one for one in self("nodes")["nodes"]}

    def served_by(self) -> list[str]:
        return [node["name"] for key, node in self("status").items() if key.startswith("node-") and isinstance(node, dict)]

    def deploy(self, code: str = CODE) -> None:
        """A version of the function `nap`."""
        project = self.folder / "project"
        (project / "nap").mkdir(parents=True, exist_ok=True)
        (project / "nap" / "nap.py").write_text(code)
        (project / "foreglow.toml").write_text('[functions.nap]\npath = "nap"\nhandler = "nap:handle"\ntimeout_s = 60\n')
        done = self.hosts.run("a", "deploy", str(project), "--state", str(self.state), timeout_s=DEPLOY_S)
        assert done.returncode == 0, done.stderr + done.stdout

    def invoke(self, seconds: float, host: str = "a") -> Any:
        return self.hosts.call(host, self._post, seconds, f"http://127.0.0.1:{FUNCTIONS}/function/nap")

    def _post(self, seconds: float, url: str) -> httpx.Response:
        headers = {"Authorization": f"Bearer {(self.state / 'key').read_text().strip()}"}
        with httpx.Client(trust_env=False, timeout=60) as client:
            return client.post(url, json=seconds, headers=headers)

    def wait(self, condition: Callable[[], object], what: str, within_s: float = WAIT_S) -> float:
        began = time.monotonic()
        while not condition():
            if time.monotonic() - began > within_s:
                pytest.fail(f"{what}: not within {within_s:.0f} s\n{self.logs()}")
            time.sleep(0.1)
        return time.monotonic() - began

    def logs(self) -> str:
        files = [*self.folder.glob("*.log"), *(self.state / "logs").glob("*.log")]
        return "\n".join(f"== {one.name}\n{one.read_text()[-2500:]}" for one in files)

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def close(self) -> None:
        try:
            self.hosts.close()
        finally:
            for state in self.states:
                shutil.rmtree(Settings(state=state).runtime_folder, ignore_errors=True)


@contextlib.contextmanager
def running_cluster(**environment: str) -> Iterator[Cluster]:
    """`environment`: of what runs on host `a`."""
    folder = Path(tempfile.mkdtemp(prefix="fg-"))
    folder.chmod(0o755)
    made: Cluster | None = None
    try:
        made = Cluster(folder, **environment)
        made.ready()
        yield made
    finally:
        if made is not None:
            made.close()
        shutil.rmtree(folder, ignore_errors=True)
