"""The supervisor with real Valkey and tiny stand-ins for the five processes: start, heal, stop, sweep, refuse."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from orchestrator.preflight import record
from orchestrator.settings import Settings
from orchestrator.supervisor import process_commands
from orchestrator.valkey import answers

pytestmark = pytest.mark.system

WAIT_S = 30.0

STANDIN = """
import http.server, os, signal, socket, socketserver, sys, threading, time
name = sys.argv[1]
signal.signal(signal.SIGTERM, lambda *a: (print("stopping", name, time.monotonic_ns(), flush=True), os._exit(0)))
if os.environ.get("CRASH") == name:
    print("no such luck", flush=True); sys.exit(3)
if os.environ.get("STUBBORN") == name:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
runtime = os.environ["RUNTIME"]
if name in ("gateway", "planner", "node"):
    path = os.path.join(runtime, name + ".sock")
    if os.path.exists(path): os.unlink(path)
    s = socket.socket(socket.AF_UNIX); s.bind(path); s.listen()
port = {"gateway": "FUNCTIONS", "control": "CONTROL", "planner": "OTLP"}.get(name)
if os.environ.get("LEAVES") == name:
    import subprocess
    left = subprocess.Popen(["sleep", "600"], start_new_session=True)
    print("left", left.pid, flush=True)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(name.encode())
    def address_string(self): return "somebody"
if os.environ.get("UNREADY") != name:
    path = os.path.join(runtime, name + "-ops.sock")
    if os.path.exists(path): os.unlink(path)
    ops = socketserver.ThreadingUnixStreamServer(path, Handler)
    threading.Thread(target=ops.serve_forever, daemon=True).start()
print("up", name, os.getpid(), flush=True)
if port:
    http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ[f"FOREGLOW_{port}_PORT"])), Handler).serve_forever()
while True:
    time.sleep(1)
"""

RUN = """
import signal, sys, os
signal.signal(signal.SIGINT, signal.default_int_handler)  # a run in the background has it ignored
from pathlib import Path
from orchestrator import preflight, supervisor
from orchestrator.settings import Settings
settings = Settings(state=Path(sys.argv[1]), functions_port=0, control_port=0, otlp_port=0)
os.environ["RUNTIME"] = str(settings.runtime_folder)
supervisor.START_TIMEOUT_S = float(os.environ.get("START_S", "20"))
supervisor.STOP_TIMEOUTS_S = {"valkey": 5.0}
supervisor.STOP_TIMEOUT_S = float(os.environ.get("STOP_S", "5"))
commands = {name: [sys.executable, sys.argv[2], name] for name in ("control", "gateway", "planner", "node", "flow")}
try:
    supervisor.run(settings, lambda line: print(line, flush=True), commands)
except (preflight.NotPossible, supervisor.StartFailed) as error:
    print(error, flush=True); sys.exit(1)
"""


class Up:
    """One `up` under test, in a process of its own."""

    def __init__(self, state: Path, standin: Path, **environment: str) -> None:
        self.settings = Settings(state=state)
        self.process = subprocess.Popen(
            [sys.executable, "-c", RUN, str(state), str(standin)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | environment,
            process_group=0,
        )

    def lines_until(self, word: str) -> list[str]:
        assert self.process.stdout is not None
        lines = []
        for line in self.process.stdout:
            lines.append(line.rstrip())
            if word in line:
                return lines
        raise AssertionError(f"ended before {word!r}: {lines}")

    def pids(self) -> dict[str, int]:
        noted = json.loads((self.settings.state / "processes.json").read_text())
        return {name: entry["pid"] for name, entry in noted["processes"].items()}

    def addresses(self) -> dict[str, str]:
        return dict(json.loads(self.settings.addresses_file.read_text()))


@pytest.fixture
def standin(tmp_path: Path) -> Path:
    path = tmp_path / "standin.py"
    path.write_text(STANDIN)
    return path


@pytest.fixture
def start(tmp_path: Path, standin: Path) -> Iterator[Callable[..., Up]]:
    started: list[Up] = []

    def start(**environment: str) -> Up:
        started.append(Up(tmp_path / "state", standin, **environment))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.process.send_signal(signal.SIGTERM)
            one.process.wait(WAIT_S)
        assert one.process.stdout is not None
        one.process.stdout.close()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def eventually(true: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + WAIT_S
    while not (value := true()):
        assert time.monotonic() < deadline, "did not come true in time"
        time.sleep(0.02)
    return value


def test_ready_tells_true_addresses_and_stop_leaves_nothing(start: Callable[..., Up]) -> None:
    up = start()
    ready = up.lines_until("ready")[-1]
    addresses = up.addresses()
    assert ready == "ready  " + "  ".join(f"{name} {address}" for name, address in addresses.items())
    served = {name: httpx.get(f"{address}/healthz", timeout=5).text for name, address in addresses.items()}
    assert served == {"functions": "gateway", "control": "control", "otlp": "planner"}
    runtime = up.settings.runtime_folder
    assert runtime.stat().st_mode & 0o777 == 0o700
    assert (runtime / "valkey.sock").stat().st_mode & 0o777 == 0o600
    assert answers(runtime / "valkey.sock")
    pids = up.pids()
    assert sorted(pids) == ["control", "flow", "gateway", "node", "planner", "valkey"]
    assert len({os.getpgid(pid) for pid in pids.values()} | {os.getpgid(up.process.pid)}) == 7

    up.process.send_signal(signal.SIGINT)
    assert up.process.wait(WAIT_S) == 0
    assert not [pid for pid in pids.values() if alive(pid)]
    assert not runtime.exists()
    assert not up.settings.addresses_file.exists()


def test_the_gateway_stops_before_what_it_needs(start: Callable[..., Up]) -> None:
    up = start()
    up.lines_until("ready")
    logs = up.settings.state / "logs"
    eventually(lambda: (logs / "flow.log").exists() and "up flow" in (logs / "flow.log").read_text())
    up.process.terminate()
    assert up.process.wait(WAIT_S) == 0

    def stopped_at(name: str) -> int:
        lines = (logs / f"{name}.log").read_text().splitlines()
        return next(int(line.split()[2]) for line in lines if line.startswith("stopping"))

    assert min(("gateway", "control", "planner", "node", "flow"), key=stopped_at) == "gateway"


def test_a_crashed_process_comes_back_at_the_same_address(start: Callable[..., Up]) -> None:
    up = start()
    up.lines_until("ready")
    before = up.pids()["gateway"]
    os.kill(before, signal.SIGKILL)
    assert "gateway was killed by SIGKILL; it starts again in 0.2 s" in up.lines_until("gateway was killed")[-1]
    eventually(lambda: up.pids().get("gateway", before) != before)

    def served() -> bool:
        try:
            return httpx.get(up.addresses()["functions"], timeout=5).text == "gateway"
        except httpx.TransportError:
            return False

    eventually(served)


def test_kill_9_takes_every_process_along_and_the_next_start_sweeps(start: Callable[..., Up]) -> None:
    up = start()
    up.lines_until("ready")
    pids = up.pids()
    up.process.kill()
    up.process.wait(WAIT_S)
    eventually(lambda: not [pid for pid in pids.values() if alive(pid)])
    assert up.settings.socket("node").exists()

    again = start()
    lines = again.lines_until("ready")
    assert any("removed the stale socket of node" in line for line in lines)


def test_what_a_killed_run_left_running_is_ended_and_nothing_else(start: Callable[..., Up], tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    left = subprocess.Popen(["sleep", "600"])
    innocent = subprocess.Popen(["sleep", "600"])
    try:
        path = tmp_path / "state" / "processes.json"
        record(path, {"valkey": left.pid, "node": innocent.pid})
        noted = json.loads(path.read_text())
        noted["processes"]["node"]["started"] -= 1  # the pid was given to somebody else since
        path.write_text(json.dumps(noted))
        lines = start().lines_until("ready")
        assert f"ended valkey (process {left.pid}) of an earlier run" in lines
        assert left.wait(WAIT_S) == -signal.SIGKILL
        assert innocent.poll() is None
    finally:
        for one in (left, innocent):
            one.kill()
            one.wait()


def test_a_process_that_never_comes_up_is_one_clear_line(start: Callable[..., Up]) -> None:
    up = start(CRASH="planner")
    lines = up.lines_until("3 times in a row")
    assert "planner ended with code 3, 3 times in a row: no such luck (see " in lines[-1]
    assert up.process.wait(WAIT_S) == 1
    assert not up.settings.runtime_folder.exists()


def test_one_that_runs_and_does_not_say_it_is_ready_is_not(start: Callable[..., Up]) -> None:
    up = start(UNREADY="node", START_S="8")
    assert "node was not ready in 8 s: up node" in up.lines_until("was not ready")[-1]
    assert up.process.wait(WAIT_S) == 1


def test_one_that_ignores_sigterm_is_killed_in_time(start: Callable[..., Up]) -> None:
    up = start(STUBBORN="node", STOP_S="3")
    up.lines_until("ready")
    pid = up.pids()["node"]
    up.process.terminate()
    assert "node did not stop in time and was killed" in up.lines_until("node did not stop in time")[-1]
    assert up.process.wait(WAIT_S) == 0
    assert not alive(pid)


def test_what_a_process_left_behind_ends_too(start: Callable[..., Up]) -> None:
    up = start(LEAVES="flow")
    up.lines_until("ready")
    log = up.settings.state / "logs" / "flow.log"
    eventually(lambda: log.exists() and "up flow" in log.read_text())  # the line before is whole then
    left = int(log.read_text().split()[1])
    os.kill(up.pids()["flow"], signal.SIGKILL)
    up.lines_until("flow was killed")
    assert alive(left)
    up.process.terminate()
    up.lines_until("processes that others had left behind")
    assert up.process.wait(WAIT_S) == 0
    assert not alive(left)


def test_a_second_up_on_the_same_folder_says_who_runs(start: Callable[..., Up]) -> None:
    up = start()
    up.lines_until("ready")
    second = start()
    line = second.lines_until("already runs")[-1]
    assert f"(process {up.process.pid})" in line
    assert "--state" in line
    assert second.process.wait(WAIT_S) == 1
    assert answers(up.settings.socket("valkey"))


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The real command, to its end; for what fails before a process starts."""
    return subprocess.run(
        [sys.executable, "-P", "-m", "orchestrator.cli.main", *arguments],
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
        env=os.environ | environment,
    )


def test_a_taken_port_names_port_and_option(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = command("up", "--state", str(tmp_path), "--functions-port", "0", "--control-port", str(port), "--otlp-port", "0")
    assert done.returncode == 1
    assert done.stderr == f"foreglow: port {port} on 127.0.0.1 is taken: choose another with --control-port\n"


def test_a_folder_that_takes_no_writes_is_one_clear_line() -> None:
    done = command("up", "--state", "/proc/foreglow")
    assert done.returncode == 1
    assert done.stderr.startswith("foreglow: cannot use the state folder /proc/foreglow: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.needs_root
def test_a_full_disk_is_one_clear_line(tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(tmp_path)], check=True)
    try:
        little = command("up", "--state", str(tmp_path / "state"))
        subprocess.run(["dd", "if=/dev/zero", f"of={tmp_path / 'filler'}", "bs=64k"], check=False, capture_output=True)
        full = command("up", "--state", str(tmp_path / "state"))
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
    assert (little.returncode, full.returncode) == (1, 1)
    assert "MB free and needs 64" in little.stderr
    assert "No space left on device" in full.stderr
    assert little.stderr.count("\n") == full.stderr.count("\n") == 1


def test_each_process_is_started_by_this_interpreter() -> None:
    usual = process_commands(Settings())
    assert set(usual) == {"control", "flow", "gateway", "planner", "node", "page"}
    commands = process_commands(Settings(zone_cache=True))
    assert set(commands) == {*usual, "zone-cache"}
    for name, line in commands.items():
        helped = subprocess.run([*line, "--help"], capture_output=True, text=True, timeout=WAIT_S, check=True)
        assert f"foreglow {name}" in helped.stdout


def test_a_wrong_option_is_one_line_that_names_it(tmp_path: Path) -> None:
    for arguments, said in {
        ("--driver", "vm"): "is not one of process, microvm (option --driver, FOREGLOW_DRIVER)\n",
        ("--prewarm", "maybe"): "Input should be 'off', 'path' or 'priced' (option --prewarm, FOREGLOW_PREWARM)\n",
        ("--standbys", "-1"): "(option --standbys, FOREGLOW_STANDBYS)\n",
    }.items():
        done = command("up", "--state", str(tmp_path / "state"), *arguments)
        assert done.returncode == 1
        assert done.stderr.endswith(said)
        assert done.stderr.count("\n") == 1
