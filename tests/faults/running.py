"""`foreglow up` in a folder of its own, as the fault tests use it: its processes by name, faults put into them, its end."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx

from orchestrator.settings import Settings

READY_S = 90.0
PROCESSES = ("control", "flow", "gateway", "planner", "node", "valkey", "page", "zone-cache")
UP = [
    sys.executable,
    "-P",
    "-m",
    "orchestrator.cli.main",
    "up",
    "--functions-port",
    "0",
    "--control-port",
    "0",
    "--otlp-port",
    "0",
]


class Running:
    """`environment` adds settings, such as a database elsewhere. Use `with`."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.state = folder / "state"
        self.settings = Settings(state=self.state)
        self.environment = {**os.environ, **environment, "FOREGLOW_STATE": str(self.state)}
        self.lines: list[str] = []
        self.process = subprocess.Popen(UP, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            wait_for(lambda: self._said("ready") or self.process.poll() is not None, "ready", READY_S)
            assert self.process.poll() is None, self.lines
        except AssertionError:
            self.stop()
            raise
        self.addresses = json.loads((self.state / "addresses.json").read_text())
        self.key = (self.state / "key").read_text().strip()

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.lines.extend(self.process.stdout)

    def _said(self, word: str) -> bool:
        return any(line.startswith(word) for line in self.lines)

    def __enter__(self) -> "Running":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> int:
        """SIGTERM, as a user stops it. The exit code."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(45)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)
        self._reader.join(5)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return self.process.returncode

    # -- processes and faults

    def pid(self, name: str) -> int | None:
        """None while it is down."""
        if name == "supervisor":
            return self.process.pid
        with contextlib.suppress(OSError, ValueError, KeyError):
            pid = int(json.loads((self.state / "processes.json").read_text())["processes"][name]["pid"])
            return pid if Path(f"/proc/{pid}").exists() else None
        return None

    def new_pid(self, name: str, old: int) -> None:
        wait_for(lambda: self.pid(name) not in (None, old), f"a new {name}", READY_S)

    # -- its two interfaces

    def functions(self, timeout_s: float) -> httpx.Client:
        return self._client("functions", timeout_s)

    def control(self, timeout_s: float) -> httpx.Client:
        return self._client("control", timeout_s)

    def _client(self, name: str, timeout_s: float) -> httpx.Client:
        headers = {"Authorization": f"Bearer {self.key}"}
        return httpx.Client(base_url=self.addresses[name], headers=headers, timeout=timeout_s)


def put(client: httpx.Client, name: str, source: str, **settings: Any) -> httpx.Response:
    """Uploads the source as a package and deploys it as `name`. The answer that failed, or the last one."""
    body = io.BytesIO()
    with zipfile.ZipFile(body, "w") as archive:
        archive.writestr("code.py", source)
    uploaded = client.post("/v1/packages", content=body.getvalue(), headers={"Content-Type": "application/zip"})
    if uploaded.status_code != 201:
        return uploaded
    wanted = {"package": uploaded.json()["digest"], "handler": "code:handle", **settings}
    return client.put(f"/v1/functions/{name}", json=wanted)


def wait_for(true: Callable[[], Any], what: str, seconds: float) -> Any:
    """What `true()` gave once it was something; bounded."""
    deadline = time.monotonic() + seconds
    while not (value := true()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.05)
    return value


@contextlib.contextmanager
def stopped(pids: list[int]) -> Iterator[None]:
    """SIGSTOP, and SIGCONT at the end whatever happens."""
    held: list[int] = []
    try:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):  # a database's worker may have ended since it was listed
                os.kill(pid, signal.SIGSTOP)
                held.append(pid)
        assert held, f"none of {pids} is there"
        yield
    finally:
        for pid in held:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
