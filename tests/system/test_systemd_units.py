"""The systemd units: systemd finds nothing wrong with them, and their command lines run, say that they are ready, and stop."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from orchestrator import valkey
from orchestrator.ops.catalogue import PROCESSES, VPC_PROXY, ZONE_CACHE
from orchestrator.settings import Settings

pytestmark = pytest.mark.system

ROOT = Path(__file__).parents[2]
UNITS = ROOT / "deploy" / "systemd"
INSTALLED = "/opt/foreglow/bin/foreglow"
HERE = str(Path(sys.executable).with_name("foreglow"))
WAIT_S = 90.0


def unit(name: str) -> dict[str, list[str]]:
    """Settings of a unit's [Service], each with all its values."""
    found: dict[str, list[str]] = {}
    section = ""
    for line in (UNITS / name).read_text().splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif "=" in line and not line.startswith("#") and section == "Service":
            setting, _, value = line.partition("=")
            found.setdefault(setting, []).append(value)
    return found


def variables(lines: list[str]) -> dict[str, str]:
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def test_systemd_finds_nothing_wrong_with_them(tmp_path: Path) -> None:
    for path in UNITS.glob("foreglow*.*"):
        if path.suffix != ".env":
            (tmp_path / path.name).write_text(path.read_text().replace(INSTALLED, HERE))
    names = sorted(str(path) for path in tmp_path.iterdir())
    assert len(names) == 10
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *names], capture_output=True, text=True, timeout=60, check=False
    )
    told = [line for line in (done.stdout + done.stderr).splitlines() if "foreglow" in line]
    assert (done.returncode, told) == (0, [])


def test_there_is_one_for_each_process_and_they_belong_together() -> None:
    for name in (*PROCESSES, ZONE_CACHE, VPC_PROXY):
        settings = unit(f"foreglow-{name}.service")
        command = "vpc proxy" if name == VPC_PROXY else name
        assert settings["ExecStart"] == [f"{INSTALLED} {command}"]
        assert settings["Type"] == ["notify"]
        assert settings["Restart"] == ["always"]
        text = (UNITS / f"foreglow-{name}.service").read_text()
        assert "PartOf=foreglow.target" in text
        assert "WantedBy=foreglow.target" in text
        hardened = "RestrictNamespaces" in settings
        assert hardened == (name not in ("node", "flow")), "these two make sandboxes"
    assert unit("foreglow-node.service")["Delegate"] == ["yes"]
    assert unit("foreglow-flow.service")["Delegate"] == ["yes"]
    assert unit("foreglow.service")["Delegate"] == ["yes"]


def test_units_with_a_node_in_them_may_open_what_lazy_starts_need() -> None:
    for name in ("foreglow.service", "foreglow-node.service"):
        assert unit(name)["DeviceAllow"] == ["/dev/fuse rw"], name


class Started:
    """A unit's command line, as systemd would run it: its environment, a socket to say ready on, a network of its own."""

    def __init__(self, name: str, folder: Path, network: str, **environment: str) -> None:
        settings = unit(name)
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notify.settimeout(WAIT_S)
        path = folder / f"{name}.notify"
        self.notify.bind(str(path))
        told = variables((UNITS / "foreglow.env").read_text().splitlines()) | variables(settings["Environment"])
        (command,) = settings["ExecStart"]
        self.process = subprocess.Popen(
            ["ip", "netns", "exec", network, *command.replace(INSTALLED, HERE).split()],
            env={"PATH": os.environ["PATH"], **told, **environment, "NOTIFY_SOCKET": str(path)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
        )

    def ready(self) -> bool:
        return self.notify.recv(100) == b"READY=1"

    def stop(self, limit_s: float) -> int:
        self.process.terminate()
        try:
            return self.process.wait(limit_s)
        finally:
            self.process.kill()
            self.process.wait()
            self.notify.close()


@pytest.fixture
def network() -> Iterator[str]:
    name = f"fg-units-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
    yield name
    subprocess.run(["ip", "netns", "delete", name], check=True)


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="fg-"))
    yield made
    shutil.rmtree(made)


def readiness(settings: Settings, name: str) -> dict[str, object]:
    deadline = time.monotonic() + WAIT_S
    answer: dict[str, object] = {}
    while not answer.get("ready"):
        assert time.monotonic() < deadline, (name, answer)
        if not settings.ops_socket(name).exists():
            time.sleep(0.05)
            continue
        transport = httpx.HTTPTransport(uds=str(settings.ops_socket(name)))
        # a 503 is plain text
        with contextlib.suppress(httpx.HTTPError, ValueError), httpx.Client(transport=transport) as client:
            answer = json.loads(client.get("http://operations/readyz", timeout=10).text)
        time.sleep(0.05)
    return answer


@pytest.mark.needs_root
def test_the_unit_of_all_of_it_gets_ready_and_stops_in_its_time(network: str, folder: Path) -> None:
    settings = Settings(state=folder / "state")
    started = Started("foreglow.service", folder, network, FOREGLOW_STATE=str(settings.state))
    try:
        assert started.ready()
        for name in PROCESSES:
            readiness(settings, name)
    finally:
        code = started.stop(float(unit("foreglow.service")["TimeoutStopSec"][0]))
    assert code == 0
    assert not settings.runtime_folder.exists()


@pytest.mark.needs_root
def test_the_units_of_each_process_find_each_other(network: str, folder: Path) -> None:
    settings = Settings(state=folder / "state")
    redis = subprocess.Popen(valkey.command(folder / "r.sock", folder / "valkey"), stdout=subprocess.DEVNULL)
    units: dict[str, Started] = {}
    codes: dict[str, int] = {}
    try:
        for name in ("node", "planner", "gateway", "flow", "control", "page", ZONE_CACHE):
            units[name] = Started(
                f"foreglow-{name}.service",
                folder,
                network,
                FOREGLOW_STATE=str(settings.state),
                FOREGLOW_REDIS_URL=f"unix://{folder / 'r.sock'}",
            )
        for name, started in units.items():
            assert started.ready(), name
        for name in units:
            checks = readiness(settings, name)["checks"]
            assert isinstance(checks, list)
    finally:
        for name, started in units.items():
            codes[name] = started.stop(float(unit(f"foreglow-{name}.service")["TimeoutStopSec"][0]))
        redis.terminate()
        redis.wait(20)
        shutil.rmtree(settings.runtime_folder, ignore_errors=True)
    assert codes == dict.fromkeys(units, 0)
