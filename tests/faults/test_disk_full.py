"""The disk of the state folder is full: nothing is lost, errors say so, and with space again all goes on by itself."""

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults import table
from faults.bench import settings
from faults.load import CLIENT_S, MANAGE_S, MARKED, SERVED_S, Load
from faults.running import Running, put, wait_for

pytestmark = [pytest.mark.system, pytest.mark.needs_root]

SIZE_MB = 160
SAVES_S = 7.0  # the planner saves what it learned every 5 s


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """The state folder as a small file system of its own."""
    state = tmp_path / "state"
    state.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE_MB}m,mode=700", "tmpfs", str(state)], check=True)
    try:
        yield tmp_path
    finally:
        subprocess.run(["umount", str(state)], check=True)


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            try:
                while True:
                    file.write(os.urandom(size))
            except OSError:
                continue


def test_a_full_disk_costs_only_what_must_be_written(small_disk: Path) -> None:
    allowed = table.rows()["state folder", "disk full"]
    with Running(small_disk, settings()) as platform:
        load = Load(platform)
        load.prepare()
        with platform.control(MANAGE_S) as control, platform.functions(CLIENT_S) as functions:
            kept = wait_for(lambda: load.deploy(control, "kept"), "a deploy", SERVED_S)
            wait_for(lambda: functions.post("/function/kept").status_code == 200, "kept answers", SERVED_S)
            before = {name: platform.pid(name) for name in ("control", "planner", "node", "gateway", "flow", "valkey")}
            load.start()
            filler = platform.state / "filler"
            fill(filler)
            refused = put(control, "kept", MARKED % -1)
            assert allowed.allows("manage", str(refused.status_code)), refused.text
            assert "full" in refused.text.lower() or "space" in refused.text.lower(), refused.text
            assert control.get("/v1/functions/kept").json()["versions"][0]["number"] == kept.number
            answered = load.answered
            wait_for(lambda: load.answered > answered + 20, "warm invocations go on", SERVED_S)
            time.sleep(SAVES_S)
            half = platform.state / "planner" / "state.new"  # there for moments while it is tried again
            wait_for(lambda: not half.exists(), "a save that failed leaves nothing half written", SAVES_S)
            filler.unlink()
            made = wait_for(lambda: load.deploy(control, "kept"), "a deploy is taken again", SERVED_S)
            wait_for(lambda: functions.post(f"/function/kept:{made.number}").status_code == 200, "it is served", SERVED_S)
            load.stop()
            assert load.wrong == []
            assert [one for one in load.seen if not allowed.allows(one.flow, one.what)] == []
            load.check_acknowledged()
            ended = [name for name, pid in before.items() if platform.pid(name) != pid]
            assert ended == [], [(platform.state / "logs" / f"{name}.log").read_text()[-3000:] for name in ended]
        assert platform.stop() == 0
    with Running(small_disk, settings()) as again:
        load.platform = again
        load.check_acknowledged()
