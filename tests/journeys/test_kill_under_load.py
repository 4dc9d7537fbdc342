"""Killing control, flow or planner under load fails no invocation, and each comes back with what it knew."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

pytestmark = pytest.mark.system

READY_S = 60.0
SETTLE_S = 1.5
ROUNDS = 10 if os.environ.get("FULL") else 1  # `make soak`

FILES = {
    "foreglow.toml": """
[functions.front]
handler = "front:handle"
calls = ["back"]
[functions.back]
handler = "back:handle"
""",
    "front.py": """
def handle(event, context):
    return {"n": event["n"], "back": context.invoke("back", {"n": event["n"]})}
""",
    "back.py": "def handle(event, context):\n    return event['n'] * 2\n",
}


class Running:
    """`foreglow up` in a folder of its own, and its command line."""

    def __init__(self, folder: Path) -> None:
        self.state = folder / "state"
        self.environment = {**os.environ, "FOREGLOW_HOME": str(self.state)}
        self._command = [sys.executable, "-m", "orchestrator.cli.main"]
        ports = ["--functions-port", "0", "--control-port", "0", "--otlp-port", "0"]
        self.process = subprocess.Popen(
            [*self._command, "up", *ports], env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            self.wait_for(lambda: any(line.startswith("ready") for line in self.lines), "ready")
        except AssertionError:
            self.stop()
            raise
        self.addresses = json.loads((self.state / "addresses.json").read_text())
        self.key = (self.state / "key").read_text().strip()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + READY_S
        while not condition():
            assert self.process.poll() is None, f"up ended: {self.lines}"
            assert time.monotonic() < deadline, f"no {what} within {READY_S} s: {self.lines}"
            time.sleep(0.05)

    def managed(self) -> bool:
        """Control answers: while it starts again the command line says that nobody does."""
        try:
            return httpx.get(f"{self.addresses['control']}/readyz", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def run(self, *words: str) -> str:
        done = subprocess.run(
            [*self._command, *words], check=False, env=self.environment, capture_output=True, text=True, timeout=90
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def pid(self, name: str) -> int:
        return int(json.loads((self.state / "processes.json").read_text())["processes"][name]["pid"])

    def client(self) -> httpx.Client:
        headers = {"Authorization": f"Bearer {self.key}"}
        return httpx.Client(base_url=self.addresses["functions"], headers=headers, timeout=30)

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(30)
        finally:
            self.process.kill()
            assert self.process.stdout is not None
            self._reader.join(5)
            self.process.stdout.close()


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    platform = Running(tmp_path)
    try:
        project = tmp_path / "project"
        project.mkdir()
        for name, text in FILES.items():
            (project / name).write_text(text)
        platform.run("deploy", str(project))
        yield platform
    finally:
        platform.stop()


class Load:
    """Warm workflows all the time, one of them cold every half second; every answer is checked."""

    def __init__(self, platform: Running) -> None:
        self.answered = 0
        self.wrong: list[str] = []
        self._platform = platform
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._send, args=(number,)) for number in range(2)]

    def _send(self, number: int) -> None:
        with self._platform.client() as client:
            count = 0
            while not self._stop.is_set():
                count += 1
                n = number * 1_000_000 + count
                try:
                    answer = client.post("/function/front", json={"n": n})
                    if answer.status_code != 200 or answer.json() != {"n": n, "back": n * 2}:
                        self.wrong.append(f"{answer.status_code} {answer.text[:200]}")
                except httpx.HTTPError as error:
                    self.wrong.append(repr(error))
                self.answered += 1
                time.sleep(0.002)

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)


def test_killing_the_control_flow_or_the_planner_fails_no_invocation(running: Running) -> None:
    with Load(running) as load:
        for name in ("control", "flow", "planner") * ROUNDS:
            before = running.pid(name)
            answered = load.answered
            os.kill(before, signal.SIGKILL)
            running.wait_for(lambda: load.answered > answered + 50, "answers after the kill")  # noqa: B023
            running.wait_for(lambda: running.pid(name) != before, f"new {name}")  # noqa: B023
            time.sleep(SETTLE_S)
    assert load.wrong == []
    assert load.answered > 150
    # All three do their work again: a new version is deployed and served, and the graph is still known.
    project = running.state.parent / "project"
    (project / "back.py").write_text("def handle(event, context):\n    return event['n'] * 3\n")
    running.wait_for(running.managed, "control again")
    running.run("deploy", str(project))
    with running.client() as client:  # a gateway that had lost Valkey hears of the route when it looks again
        served = lambda: client.post("/function/front", json={"n": 5}).json() == {"n": 5, "back": 15}  # noqa: E731
        running.wait_for(served, "the new version")
    edges = json.loads(running.run("graph", "--json"))["edges"]
    assert ("front", "back") in {(edge["caller"], edge["callee"]) for edge in edges}


def test_killing_valkey_fails_no_invocation_and_routes_come_back(running: Running) -> None:
    with Load(running) as load:
        before = running.pid("valkey")
        answered = load.answered
        os.kill(before, signal.SIGKILL)
        running.wait_for(lambda: load.answered > answered + 50, "answers after the kill")
        running.wait_for(lambda: running.pid("valkey") != before, "new valkey")
        time.sleep(SETTLE_S)
    assert load.wrong == []
    project = running.state.parent / "project"
    (project / "back.py").write_text("def handle(event, context):\n    return event['n'] * 4\n")
    running.run("deploy", str(project))
    with running.client() as client:
        served = lambda: client.post("/function/front", json={"n": 5}).json() == {"n": 5, "back": 20}  # noqa: E731
        running.wait_for(served, "the new version")
