"""The supervisor's parts on their own: back-off, bounded logs, safe folders, held ports, the settings children read."""

import os
import socket
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.logging import mask
from orchestrator.preflight import NotPossible, make_runtime_folder, reserve_ports, started_at
from orchestrator.settings import Settings
from orchestrator.supervised import MAX_DELAY_S, BoundedLog, restart_delay
from orchestrator.supervisor import child_environment, reachable


@given(st.integers(1, 10_000))
def test_the_delay_grows_to_its_bound_and_never_shrinks(crashes: int) -> None:
    assert 0 < restart_delay(crashes) <= restart_delay(crashes + 1) <= MAX_DELAY_S


@given(st.lists(st.binary(max_size=300), max_size=40))
def test_a_log_keeps_the_newest_within_twice_its_limit(chunks: list[bytes]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        log = BoundedLog(Path(folder) / "x.log", limit=500)
        for chunk in chunks:
            log.write(chunk)
        kept = b"".join(path.read_bytes() for path in sorted(Path(folder).iterdir(), reverse=True))
        assert len(kept) <= 2 * 500
        assert b"".join(chunks).endswith(kept)


def test_a_log_that_cannot_be_written_keeps_its_last_words(tmp_path: Path) -> None:
    log = BoundedLog(tmp_path / "gone" / "x.log")
    log.write(b"one\ntwo\npar")
    log.write(b"t\n\n")
    assert list(log.tail) == ["one", "two", "part"]


def test_a_runtime_folder_is_ours_and_closed(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    make_runtime_folder(folder)
    folder.chmod(0o755)
    make_runtime_folder(folder)
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_runtime_folder_somebody_could_swap_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(NotPossible, match="belongs to somebody else"):
        make_runtime_folder(tmp_path / "run")
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(NotPossible, match="can be changed by other users"):
        make_runtime_folder(tmp_path / "open" / "run")
    with pytest.raises(NotPossible, match="too long a name"):
        make_runtime_folder(tmp_path / ("x" * 100) / "run")
    with pytest.raises(NotPossible, match="cannot make"):
        make_runtime_folder(tmp_path / "missing" / "run")


@pytest.mark.needs_root
def test_a_runtime_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    os.chown(tmp_path / "run", 65534, 65534)
    with pytest.raises(NotPossible, match="belongs to somebody else"):
        make_runtime_folder(tmp_path / "run")


def test_a_held_port_is_given_to_its_listener_and_to_nobody_else(tmp_path: Path) -> None:
    held = reserve_ports(Settings(state=tmp_path, functions_port=0, control_port=0, otlp_port=0))
    try:
        ports = {name: bound.getsockname()[1] for name, bound in held.items()}
        assert len(set(ports.values())) == 3
        with socket.create_server(("127.0.0.1", ports["control"])):
            asked = Settings(state=tmp_path, functions_port=0, control_port=ports["control"], otlp_port=0)
            with pytest.raises(NotPossible, match=f"port {ports['control']} on 127.0.0.1 is taken: .* --control-port"):
                reserve_ports(asked)
    finally:
        for bound in held.values():
            bound.close()


def test_an_address_that_is_not_here_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotPossible, match=r"port 0 on 192\.0\.2\.1 cannot be used"):
        reserve_ports(Settings(state=tmp_path, host="192.0.2.1", functions_port=0))


def test_children_read_the_same_settings_with_the_real_ports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOREGLOW_HOME", "/somewhere/else")
    monkeypatch.setenv("FOREGLOW_MAX_WAITING", "7")
    asked = Settings(state=tmp_path, functions_port=0, control_port=0, otlp_port=0, prewarm="off", allow_no_isolation=True)
    environment = child_environment(asked, {"functions": 1001, "control": 1002, "otlp": 1003})
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    child = Settings()
    assert (child.state, child.functions_port, child.control_port, child.otlp_port) == (tmp_path, 1001, 1002, 1003)
    assert (child.prewarm, child.allow_no_isolation, child.max_waiting) == ("off", True, 7)


def test_a_wildcard_listener_is_reached_by_loopback() -> None:
    assert [reachable(host) for host in ("0.0.0.0", "::", "10.0.0.1")] == ["127.0.0.1", "::1", "10.0.0.1"]


def test_a_process_is_named_by_pid_and_start() -> None:
    one = subprocess.Popen(["sleep", "60"])
    assert started_at(one.pid) > 0
    one.kill()
    os.waitid(os.P_PID, one.pid, os.WEXITED | os.WNOWAIT)
    assert started_at(one.pid) == 0  # a zombie is gone already
    one.wait()
    assert started_at(one.pid) == 0


def test_no_secret_reaches_a_log() -> None:
    event = mask(None, "info", {"event": "a key was made", "api_key": "x", "Authorization": "Bearer x", "monkey": "y", "port": 1})
    assert event == {"event": "a key was made", "api_key": "***", "Authorization": "***", "monkey": "y", "port": 1}
