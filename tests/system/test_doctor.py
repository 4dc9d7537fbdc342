"""`foreglow doctor` on real troubles: each is made, found, and gone again with its cause; and it changes nothing."""

import contextlib
import json
import os
import resource
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator import preflight, valkey
from orchestrator.catalog.store import Store
from orchestrator.doctor import host, installation, services
from orchestrator.doctor.findings import Finding, Level
from orchestrator.settings import Settings

pytestmark = pytest.mark.system

WAIT_S = 90.0
FOREGLOW = [sys.executable, "-P", "-m", "orchestrator.cli.main"]


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    made = Settings(state=tmp_path / "state", functions_port=0, control_port=0, otlp_port=0)
    preflight.make_state_folder(made.state)
    yield made
    shutil.rmtree(made.runtime_folder, ignore_errors=True)


def doctor(settings: Settings, *words: str, **more: Any) -> tuple[int, dict[str, list[dict[str, str]]]]:
    ports = ("--functions-port", "0", "--control-port", "0", "--otlp-port", "0")
    done = subprocess.run(
        [*FOREGLOW, "doctor", "--state", str(settings.state), "--json", *ports, *words],
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
        **more,
    )
    found: dict[str, list[dict[str, str]]] = {}
    for one in json.loads(done.stdout or "[]"):
        found.setdefault(one["probe"], []).append(one)
    assert found, done.stderr
    return done.returncode, found


def level(findings: list[Finding], probe: str) -> Level:
    """The worst of this probe."""
    order = [Level.OK, Level.WARN, Level.FAIL]
    return max((one.level for one in findings if one.probe == probe), key=order.index)


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.lstat().st_mode, path.lstat().st_mtime_ns) for path in [folder, *folder.rglob("*")]}


# -- the whole command


def sound_machine(settings: Settings) -> None:
    before = tree(settings.state.parent)
    troubles, deadline = [], time.monotonic() + WAIT_S
    while True:
        code, found = doctor(settings)
        troubles = [one for many in found.values() for one in many if one["level"] == "fail"]
        busy = [one["probe"] for one in troubles] == ["disk"] and "one fsync" in troubles[0]["found"]  # as neighbours leave it
        if not busy or time.monotonic() > deadline:
            break
    assert (code, troubles) == (0, [])
    assert {"isolation", "disk", "clock", "redis", "database", "schema", "origin", "files", "ports", "release"} - set(found) <= {
        "ports"
    }
    assert tree(settings.state.parent) == before
    assert not settings.runtime_folder.exists()


def test_a_sound_machine_has_no_failure_and_nothing_is_changed(settings: Settings) -> None:
    sound_machine(settings)


@pytest.mark.needs_user
def test_nor_for_an_ordinary_user(settings: Settings) -> None:
    sound_machine(settings)


def test_low_limits_are_found_and_end_the_command_with_1(settings: Settings) -> None:
    code, found = doctor(settings, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (512, 512)))
    assert code == 1
    (one,) = found["open files"]
    assert (one["level"], "512" in one["found"]) == ("fail", True)
    assert "LimitNOFILE" in one["advice"]


def test_beside_a_running_platform_it_knows_what_is_ours_and_after_kill_9_what_is_left(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOREGLOW_ZONE_CACHE", "1")
    held = preflight.reserve_ports(settings)
    ports = {name: str(bound.getsockname()[1]) for name, bound in held.items()}
    words = [word for name, port in ports.items() for word in (f"--{name}-port", port)]
    running = subprocess.Popen([*FOREGLOW, "up", "--state", str(settings.state), *words], stdout=subprocess.PIPE, text=True)
    try:
        assert running.stdout is not None
        assert any(line.startswith("ready") for line in running.stdout)
        code, found = doctor(settings, *words)
        deadline = time.monotonic() + WAIT_S  # flow is not what `ready` waits for
        while code and time.monotonic() < deadline:
            code, found = doctor(settings, *words)
        assert code == 0, found
        assert [one["found"] for one in found["ports"]] == [f"{name} {port}: ours" for name, port in ports.items()]
        assert {one["found"].split()[0] for one in found["process"]} >= {
            "control",
            "gateway",
            "planner",
            "node",
            "flow",
            "zone-cache",
        }
        assert found["redis"][0]["found"].startswith("answers")
        assert found["schema"][0]["level"] == "ok"
        stopped = json.loads((settings.state / "processes.json").read_text())["processes"]["planner"]["pid"]
        os.kill(stopped, signal.SIGSTOP)
        left, deadline = list[str](), time.monotonic() + WAIT_S  # on a busy machine others too may not answer at once
        try:
            while left != ["planner: does not answer"] and time.monotonic() < deadline:
                left = [one.found for one in installation.processes(settings, True) if one.level is Level.FAIL]
        finally:
            os.kill(stopped, signal.SIGCONT)
        assert left == ["planner: does not answer"]
        running.kill()
        running.wait(WAIT_S)
        assert installation.leftovers(settings, installation.is_running(settings)).level is Level.WARN
    finally:
        running.kill()
        running.wait(WAIT_S)
        assert running.stdout is not None
        running.stdout.close()
        for bound in held.values():  # so long nobody else was given these ports
            bound.close()
        deadline = time.monotonic() + WAIT_S  # the processes die with their supervisor
        while preflight.noted_processes(preflight.processes_file(settings)) and time.monotonic() < deadline:
            time.sleep(0.05)


# -- the machine


@pytest.mark.needs_root
def test_a_full_disk_and_one_that_cannot_be_written_are_found(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(small)], check=True)
    try:
        found = host.disk(small / "state")
        assert (found.level, "MB" in found.found) == (Level.FAIL, True)
        subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
        assert "cannot be written" in host.disk(small / "state").found
    finally:
        subprocess.run(["umount", str(small)], check=True)


@pytest.mark.needs_user
def test_a_folder_of_somebody_else_cannot_be_written() -> None:
    assert host.disk(Path("/proc/state")).level is Level.FAIL
    assert host.disk(Path("/usr/state")).level is Level.FAIL


def test_without_an_interpreter_no_sandbox_can_be_made() -> None:
    found = host.isolation("/nowhere/python3.11", os.geteuid() == 0)
    assert (found.level, "/nowhere" in found.found) == (Level.FAIL, True)


def test_a_missing_and_an_old_package_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        host, "requires", lambda name: ["redis>=999", "no-such-package>=1", 'pytest>=999; extra == "dev"', "httpx>=0.1"]
    )
    assert set(host.broken_packages()) == {"redis>=999", "no-such-package>=1"}
    assert host.broken_packages()["no-such-package>=1"] == "none"


# -- what it stands on


@pytest.fixture
def redis_server() -> Iterator[Callable[..., str]]:
    folder = Path(tempfile.mkdtemp(prefix="fg-"))
    started: list[subprocess.Popen[bytes]] = []

    def start(*words: str) -> str:
        path = folder / "r.sock"
        started.append(subprocess.Popen([*valkey.command(path, folder / "data"), *words], stdout=subprocess.DEVNULL))
        deadline = time.monotonic() + WAIT_S
        while not valkey.answers(path):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return f"unix://{path}"

    yield start
    for one in started:
        one.terminate()
        one.wait(WAIT_S)
    shutil.rmtree(folder)


def test_a_redis_that_is_there_stops_or_forgets(settings: Settings, redis_server: Callable[..., str]) -> None:
    url = redis_server("--maxmemory-policy", "allkeys-lru")
    chosen = settings.model_copy(update={"redis_url": url})
    found = list(services.of_redis(chosen, False))
    assert level(found, "redis") is not Level.FAIL
    assert level(found, "clock") is Level.OK
    assert level(found, "redis settings") is Level.FAIL


def test_a_redis_that_is_away_is_named_without_its_password(settings: Settings) -> None:
    chosen = settings.model_copy(update={"redis_url": "redis://user:hunter2@127.0.0.1:1/0"})
    (one,) = services.of_redis(chosen, False)
    assert one.level is Level.FAIL
    assert "127.0.0.1:1" in one.found
    assert "hunter2" not in one.found + one.advice


def test_an_old_schema_a_broken_file_and_an_absent_server_are_found(settings: Settings, tmp_path: Path) -> None:
    assert level(list(services.of_database(settings)), "schema") is Level.OK
    assert not (settings.state / "foreglow.db").exists()
    store = Store(settings.effective_database_url)
    store.migrate()
    store.close()
    assert level(list(services.of_database(settings)), "schema") is Level.OK
    with contextlib.closing(sqlite3.connect(settings.state / "foreglow.db")) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '0001'")
        connection.commit()
    assert level(list(services.of_database(settings)), "schema") is Level.WARN
    (settings.state / "foreglow.db").write_bytes(b"no database" * 1000)
    assert level(list(services.of_database(settings)), "database") is Level.FAIL
    away = settings.model_copy(update={"database_url": "postgresql+psycopg://user:hunter2@127.0.0.1:1/x"})
    (one,) = services.of_database(away)
    assert one.level is Level.FAIL
    assert "hunter2" not in one.found + one.advice


def test_an_origin_that_is_no_folder_or_does_not_answer_is_found(settings: Settings, tmp_path: Path) -> None:
    assert services.of_origin(settings).level is Level.OK
    assert not settings.origin_folder.exists()
    assert services.of_origin(settings.model_copy(update={"origin_url": (tmp_path / "no").as_uri()})).level is Level.FAIL
    assert services.of_origin(settings.model_copy(update={"origin_url": "what://ever"})).level is Level.FAIL


# -- the installation


def test_secrets_that_others_may_read_are_found(settings: Settings) -> None:
    settings.key_file.write_text("x")
    settings.key_file.chmod(0o600)
    assert level(list(installation.files(settings)), "files") is Level.OK
    settings.key_file.chmod(0o644)
    (one,) = installation.files(settings)
    assert (one.level, f"chmod 600 {settings.key_file}") == (Level.FAIL, one.advice)


def test_a_long_runtime_folder_is_found(settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / ("x" * 100)))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert level(list(installation.sockets(settings)), "sockets") is Level.FAIL


def test_a_port_of_another_program_is_found(settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        chosen = settings.model_copy(update={"functions_port": taken.getsockname()[1]})
        (one,) = installation.ports(chosen, False)
        assert (one.level, "--functions-port" in one.advice) == (Level.FAIL, True)
    assert level(list(installation.ports(chosen, False)), "ports") is Level.OK


def test_sockets_nobody_listens_on_are_left_over(settings: Settings) -> None:
    settings.runtime_folder.mkdir(mode=0o700, parents=True)
    assert installation.leftovers(settings, False).level is Level.OK
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(settings.socket("gateway")))
    found = installation.leftovers(settings, False)
    assert (found.level, found.found) == (Level.WARN, "socket gateway.sock")
