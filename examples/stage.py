"""A platform of its own for a demo or a test: free ports, a temporary state folder, and proof that nothing is left of it."""

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from orchestrator.cli.client import Client

START_TIMEOUT_S = 60
STOP_TIMEOUT_S = 60
TRACES_TIMEOUT_S = 10


_libc = ctypes.CDLL(None)
PR_SET_PDEATHSIG = 1


def stop_with_parent() -> None:
    """Even a demo that is killed leaves no platform."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


class Platform:
    """`foreglow up` in a process of its own."""

    def __init__(self, *options: str, cache: Path | None = None, outlive: bool = False) -> None:
        self.state = Path(tempfile.mkdtemp(prefix="foreglow-demo-"))
        if cache is not None:  # wheels downloaded once serve every later demo
            cache.mkdir(parents=True, exist_ok=True)
            (self.state / "flow").mkdir(mode=0o700)
            (self.state / "flow" / "cache").symlink_to(cache)
        self.said: list[str] = []
        ports = ("--functions-port", "0", "--control-port", "0", "--otlp-port", "0")
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "orchestrator.cli.main", "up", "--state", str(self.state), *ports, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # Ctrl-C on the demo stops the demo, which then stops the platform
            preexec_fn=None if outlive else stop_with_parent,  # noqa: PLW1509 - one thread
        )

    def wait_ready(self) -> None:
        """Raises RuntimeError with what it said."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.append(line.rstrip())
            if line.startswith("ready"):
                return
        raise RuntimeError("the platform did not start: " + "\n".join(self.said))

    def client(self) -> Client:
        return Client(self.state)

    def stop(self) -> list[str]:
        """Stops it. Returns what is left: processes, sockets; nothing, when all is well."""
        runtime = self.runtime_folder()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()
        left = [f"process {pid}: {command}" for pid, command in self.processes().items()]
        if runtime.exists():
            left.append(f"folder {runtime}")
        return left

    def runtime_folder(self) -> Path:
        from orchestrator.settings import Settings

        return Settings(state=self.state).runtime_folder

    def processes(self) -> dict[int, str]:
        """Every process of this user, and as root of every user, that was given this state folder."""
        mark = f"FOREGLOW_STATE={self.state}".encode()
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                try:
                    environment = (entry / "environ").read_bytes().split(b"\0")
                    command = (entry / "cmdline").read_bytes()
                except OSError:
                    continue
                if mark in environment or str(self.state).encode() in command:
                    found[int(entry.name)] = command.replace(b"\0", b" ").decode(errors="replace")[:120]
        return found


def run_of(client: Client, trace_id: str) -> dict:
    """The finished run of a trace: its records reach the planner a moment after the answer."""
    deadline = time.monotonic() + TRACES_TIMEOUT_S
    while True:
        for run in client.get("/v1/runs", limit=50)["runs"]:
            if run["trace_id"] == trace_id:
                return client.get(f"/v1/runs/{trace_id}")
        if time.monotonic() > deadline:
            raise TimeoutError(f"run {trace_id} was not recorded in {TRACES_TIMEOUT_S} s")
        time.sleep(0.05)


def stages(run: dict) -> list[dict]:
    """A run's invocations, parents before children."""
    found, waiting = [], [run["root"]]
    while waiting:
        one = waiting.pop(0)
        found.append(one)
        waiting.extend(one["children"])
    return found
