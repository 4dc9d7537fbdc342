"""A whole platform in a namespace that stands for its host, and members of it on other hosts."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from doubles.private_networks import Host

FOREGLOW = str(Path(sys.executable).with_name("foreglow"))
JOIN_PORT, PROXY_PORT = 8709, 8706
WAIT_S = 90.0


def eventually(true: Callable[[], Any], what: str, limit_s: float = WAIT_S) -> Any:
    deadline = time.monotonic() + limit_s
    while not (value := true()):
        assert time.monotonic() < deadline, f"did not come true in time: {what}"
        time.sleep(0.1)
    return value


class Inside:
    """`foreglow up` on `host`, where members of other hosts join by its address on the underlay."""

    def __init__(self, host: Host, folder: Path, **environment: str) -> None:
        self.host, self.folder = host, folder
        self.state = folder / "state"
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("FOREGLOW_")},
            "FOREGLOW_JOIN_HOST": host.address,
            "FOREGLOW_JOIN_PORT": str(JOIN_PORT),
            **environment,
        }
        ports = [word for name in ("functions", "control", "otlp") for word in (f"--{name}-port", "0")]
        self.process = self.start(host, "up", "--state", str(self.state), *ports)
        eventually(lambda: (self.state / "addresses.json").exists() or self.process.poll() is not None, "the platform is ready")
        assert self.process.poll() is None, self.logs()
        self.addresses: dict[str, str] = json.loads((self.state / "addresses.json").read_text())
        self.key = (self.state / "key").read_text().strip()

    def start(self, host: Host, *arguments: str) -> "subprocess.Popen[bytes]":
        output = (self.folder / f"{host.name}.log").open("ab")
        with output:
            return host.start(FOREGLOW, *arguments, env=self._environment, stdout=output, stderr=output)

    def foreglow(self, *arguments: str, host: Host | None = None, state: Path | None = None, good: bool = True) -> str:
        """A command of the CLI, on the platform's host or another; what it printed."""
        where = ["--state", str(state or self.state)]
        command = [FOREGLOW, *arguments, *where]
        done = (host or self.host).run(
            lambda: subprocess.run(command, check=False, capture_output=True, text=True, timeout=WAIT_S, env=self._environment)
        )
        assert (done.returncode == 0) is good, f"{' '.join(command)}\n{done.stdout}{done.stderr}\n{self.logs()}"
        return done.stdout + done.stderr

    def ask(self, method: str, path: str, key: str = "", body: object = None, listener: str = "control") -> httpx.Response:
        """A request from the platform's host."""
        headers = {"Authorization": f"Bearer {key or self.key}"}
        url = self.addresses[listener] + path
        return self.host.run(lambda: httpx.request(method, url, json=body, headers=headers, timeout=WAIT_S, trust_env=False))

    def get(self, path: str, key: str = "") -> Any:
        answer = self.ask("GET", path, key)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def invoke(self, name: str, event: object, key: str = "") -> httpx.Response:
        return self.ask("POST", f"/function/{name}", key, event, "functions")

    def join_proxy(self, host: Host, vpc: str) -> "subprocess.Popen[bytes]":
        """A proxy on its host, joined by a token; it runs when this returns."""
        token = self.foreglow("node-token", "--role", "vpc-proxy", "--vpc", vpc).strip()
        state = self.folder / host.name
        listen = f"{host.address}:{PROXY_PORT}"
        control = f"{self.host.address}:{JOIN_PORT}"
        self.foreglow(
            "join", control, token, "--role", "vpc-proxy", "--name", host.name, "--listen", listen, host=host, state=state
        )
        assert not (state / "cluster.key").exists(), "a proxy opens nothing sealed"
        return self.start(host, "vpc", "proxy", "--state", str(state))

    def logs(self) -> str:
        files = [*self.folder.glob("*.log"), *(self.state / "logs").glob("*.log")]
        return "\n".join(f"== {file.name}\n{file.read_text()[-3000:]}" for file in files)

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(60)
