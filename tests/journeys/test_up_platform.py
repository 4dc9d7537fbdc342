"""`foreglow up` as somebody uses it: deploy, invoke, learn; stop, kill and start again; each process alone."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator import valkey
from orchestrator.settings import Settings

pytestmark = pytest.mark.system

WAIT_S = 60.0
FOREGLOW = [sys.executable, "-P", "-m", "orchestrator.cli.main"]
PORTS = ("--functions-port", "0", "--control-port", "0", "--otlp-port", "0")

FRONT = """
import time
def handle(event, context):
    print("front asks for", event)
    return {"doubled": context.invoke("back", event), "squared": context.invoke_all([("back", event), ("back", event)])}
def sleep(event, context):
    time.sleep(60)
"""
BACK = "def handle(event, context):\n    return event * 2\n"
MANIFEST = """
[functions.front]
handler = "front:handle"
[functions.back]
handler = "back:handle"
[functions.sleeper]
handler = "front:sleep"
timeout_s = 100
"""


class Up:
    """A running platform and its command line. `processes` finds everything that belongs to it, whoever started it."""

    def __init__(self, folder: Path) -> None:
        self.state = folder / "state"
        self.settings = Settings(state=self.state)
        self.process = subprocess.Popen(
            [*FOREGLOW, "up", "--state", str(self.state), *PORTS],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            process_group=0,
        )
        self.lines: list[str] = []
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if line.startswith("ready"):
                return
        self.stop()
        raise AssertionError(f"not ready: {self.lines}")

    def __call__(self, *words: str) -> Any:
        """Runs a command with --json and returns what it printed."""
        command = [*FOREGLOW, *words, "--state", str(self.state), "--json"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def processes(self) -> dict[int, str]:
        mark = f"FOREGLOW_STATE={self.state}".encode()
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    if mark in (entry / "environ").read_bytes().split(b"\0"):
                        found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        return found

    def below(self) -> set[int]:
        """Every process that descends from this `up`, sandboxes with their own environment too."""
        parents = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        found, newest = set(), {self.process.pid}
        while newest:
            newest = {pid for pid, parent in parents.items() if parent in newest} - found
            found |= newest
        return found

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.terminate()
        code = self.process.wait(WAIT_S)
        assert self.process.stdout is not None
        if not self.process.stdout.closed:
            self.lines += self.process.stdout.readlines()
            self.process.stdout.close()
        return code


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Callable[[], Up]]:
    started: list[Up] = []

    def start() -> Up:
        started.append(Up(tmp_path))
        return started[-1]

    yield start
    for one in started:
        one.stop()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    for name, content in {"front.py": FRONT, "back.py": BACK, "foreglow.toml": MANIFEST}.items():
        (folder / name).write_text(content)
    return folder


def eventually(true: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + WAIT_S
    while not (value := true()):
        assert time.monotonic() < deadline, "did not come true in time"
        time.sleep(0.05)
    return value


def alive(pids: set[int]) -> set[int]:
    left = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX":
                left.add(pid)
    return left


def mounts(state: Path) -> list[str]:
    return [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(state) in line]


def used(platform: Up, project: Path, runs: int = 4) -> None:
    """Deploys and invokes until the graph knows the call."""
    assert {one["state"] for one in platform("deploy", str(project)).values()} == {"ready"}
    for _ in range(runs):
        answer = platform("invoke", "front", "--data", "21")
        assert answer["body"] == {"doubled": 42, "squared": [42, 42]}
    eventually(lambda: [edge for edge in platform("graph")["edges"] if edge["traces"] >= runs])


def leaves_nothing(platform: Up, project: Path) -> None:
    used(platform, project)
    belonging = platform.below() | set(platform.processes())
    assert len(belonging) > 7  # the six, and at least one sandbox
    assert platform.stop() == 0
    assert eventually(lambda: not alive(belonging))
    assert not platform.processes()
    assert not mounts(platform.state)
    assert not platform.settings.runtime_folder.exists()
    assert not platform.settings.addresses_file.exists()


def test_stopped_it_leaves_nothing(up: Callable[[], Up], project: Path) -> None:
    leaves_nothing(up(), project)


@pytest.mark.needs_user
def test_stopped_it_leaves_nothing_of_an_ordinary_user(up: Callable[[], Up], project: Path) -> None:
    leaves_nothing(up(), project)


def remembers(first: Up, again: Callable[[], Up], project: Path) -> None:
    used(first, project)
    first("warm", "front", "--count", "2")
    functions, decisions = first("list"), first("decisions")["decisions"]
    run = first("runs")["runs"][-1]["trace_id"]
    assert first.stop() == 0

    second = again()
    assert second("list") == functions
    assert [edge["callee"] for edge in second("graph")["edges"]] == ["back"]
    assert {one["decision_id"] for one in second("decisions")["decisions"]} >= {one["decision_id"] for one in decisions}
    assert second("runs", run)["root"]["function"] == "front"
    assert second("invoke", "front", "--data", "1")["body"] == {"doubled": 2, "squared": [2, 2]}


def test_a_restart_finds_functions_graph_and_decisions_again(up: Callable[[], Up], project: Path) -> None:
    remembers(up(), up, project)


def killed(first: Up, again: Callable[[], Up], project: Path) -> None:
    used(first, project)
    asleep = subprocess.Popen(
        [*FOREGLOW, "invoke", "sleeper", "--state", str(first.state)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    belonging = first.below() | set(first.processes())
    first.process.send_signal(signal.SIGKILL)
    first.process.wait(WAIT_S)
    assert asleep.wait(WAIT_S) == 1
    assert eventually(lambda: not alive(belonging))

    second = again()
    assert not mounts(first.state) or len(mounts(first.state)) <= len(second.processes())
    assert second("invoke", "front", "--data", "1")["body"] == {"doubled": 2, "squared": [2, 2]}
    second("invoke", "front", "--data", "1")
    assert second.stop() == 0
    assert not mounts(first.state)


def test_after_kill_9_nothing_runs_and_the_next_start_works(up: Callable[[], Up], project: Path) -> None:
    killed(up(), up, project)


@pytest.mark.needs_user
def test_after_kill_9_of_an_ordinary_user_too(up: Callable[[], Up], project: Path) -> None:
    killed(up(), up, project)


def test_what_a_function_prints_is_in_its_logs(up: Callable[[], Up], project: Path) -> None:
    platform = up()
    platform("deploy", str(project))
    answer = platform("invoke", "front", "--data", "3")
    (entry,) = eventually(lambda: platform("logs", "front", "--invocation", answer["invocation_id"])["logs"])
    assert "".join(part["text"] for part in entry["output"]) == "front asks for 3\n"


def test_a_version_that_asks_for_an_instance_meets_its_first_request_with_it(up: Callable[[], Up], tmp_path: Path) -> None:
    folder = tmp_path / "ahead"
    folder.mkdir()
    (folder / "app.py").write_text("def handle(event, context):\n    return 1\n")
    (folder / "foreglow.toml").write_text('[functions.ahead]\nhandler = "app:handle"\ninitial_instances = 1\n')
    platform = up()
    version = platform("deploy", str(folder))["ahead"]
    assert {one["name"]: one["status"] for one in version["conditions"]} == {
        "code": "true", "network": "not needed", "capacity": "true", "route": "true",
    }  # fmt: skip
    assert platform("invoke", "ahead")["start"] == "prewarmed"
    (decision,) = eventually(lambda: [one for one in platform("decisions")["decisions"] if one["outcome"] == "hit"])
    assert (decision["trigger"], decision["function"]) == ("deploy", "ahead")

    (folder / "app.py").write_text("raise KeyError('TOKEN')\n")
    command = [*FOREGLOW, "deploy", str(folder), "--state", str(platform.state)]
    failed = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert failed.returncode == 1
    assert "capacity: an instance did not start: KeyError: 'TOKEN'" in failed.stderr
    assert platform("describe", "ahead")["latest"] == 1
    assert platform("invoke", "ahead")["body"] == 1
    assert platform("events")["events"] == []


def ended(one: subprocess.Popen[bytes]) -> int:
    one.terminate()
    try:
        return one.wait(20)
    except subprocess.TimeoutExpired:
        one.kill()
        return one.wait()


def test_each_process_runs_alone_against_a_redis_and_a_database(tmp_path: Path, project: Path) -> None:
    state, redis = tmp_path / "state", tmp_path / "r.sock"
    settings = Settings(state=state)
    from orchestrator.preflight import reserve_ports

    held = reserve_ports(Settings(state=state, functions_port=0, control_port=0, otlp_port=0))
    environment = os.environ | {
        "FOREGLOW_STATE": str(state),
        "FOREGLOW_REDIS_URL": f"unix://{redis}",
        "FOREGLOW_DATABASE_URL": f"sqlite:///{tmp_path / 'elsewhere.db'}",
        **{f"FOREGLOW_{name.upper()}_PORT": str(bound.getsockname()[1]) for name, bound in held.items()},
    }
    running = [subprocess.Popen(valkey.command(redis, tmp_path / "valkey"), stdout=subprocess.DEVNULL)]
    try:
        eventually(lambda: valkey.answers(redis))
        names = ("node", "planner", "gateway", "flow", "control")
        running += [subprocess.Popen([*FOREGLOW, name], env=environment, stderr=subprocess.DEVNULL) for name in names]
        eventually(settings.admin_key_file.exists)
        for name in ("functions", "control"):
            environment[f"FOREGLOW_{name.upper()}_URL"] = f"http://127.0.0.1:{held[name].getsockname()[1]}"

        def foreglow(*words: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [*FOREGLOW, *words], env=environment, capture_output=True, text=True, timeout=WAIT_S, check=False
            )

        eventually(lambda: foreglow("list").returncode == 0)
        deployed = foreglow("deploy", str(project))
        assert deployed.returncode == 0, deployed.stderr
        assert json.loads(foreglow("invoke", "front", "--data", "2").stdout) == {"doubled": 4, "squared": [4, 4]}
        assert (tmp_path / "elsewhere.db").exists()
        assert not settings.socket("valkey").exists()
    finally:
        codes = [ended(one) for one in reversed(running)]
        for bound in held.values():
            bound.close()
        with contextlib.suppress(OSError):
            settings.runtime_folder.rmdir()
    assert codes == [0] * len(running)
