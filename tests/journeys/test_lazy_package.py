"""A large package through the whole platform: deployed, started before it is whole, invoked, killed, and gone without a trace."""

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from doubles.lazy_layers import mounted_below
from doubles.platforms import FOREGLOW, Platform

pytestmark = [pytest.mark.system, pytest.mark.needs_root]

WAIT_S = 60.0
HANDLER = """
import part00

def handle(event, context):
    with open("/var/task/big17.bin", "rb") as file:
        return [part00.VALUE, len(file.read())]
"""
MANIFEST = '[functions.large]\nhandler = "front:handle"\nmemory_mb = 256\ntimeout_s = 60\n'
SIZE = 600_000


def eventually(true: Callable[[], object], what: str) -> None:
    end = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < end, what
        time.sleep(0.05)


def test_a_large_package_starts_before_it_is_whole(tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    (project / "front.py").write_text(HANDLER)
    (project / "part00.py").write_text("VALUE = 7\n")
    (project / "foreglow.toml").write_text(MANIFEST)
    for number in range(40):
        (project / f"big{number:02}.bin").write_bytes(random.Random(number).randbytes(SIZE))
    # with so little room for code nothing of it comes ahead of need
    platform = Platform(tmp_path, FOREGLOW_STANDBYS="0", FOREGLOW_NODE_CODE_BYTES="1000000")
    try:

        def foreglow(*words: str) -> dict[str, object]:
            command = [*FOREGLOW, *words, "--state", str(platform.state), "--json"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=False)
            assert done.returncode == 0, done.stderr + platform.logs()
            return json.loads(done.stdout)  # type: ignore[no-any-return]

        foreglow("deploy", str(project))
        assert foreglow("invoke", "large")["body"] == [7, SIZE], platform.logs()
        node = platform.pids()["node"]
        log = (platform.state / "logs" / "node.log").read_text()
        possible = [json.loads(line) for line in log.splitlines() if '"node.lazy_starts"' in line]
        assert [one["possible"] for one in possible] == [True], log
        assert ".lazy-" in Path(f"/proc/{node}/mountinfo").read_text()
        assert not mounted_below(platform.state)  # it is the node's alone
        orders = platform.state / "origin" / "layers" / "default"
        eventually(lambda: list(orders.glob("*.order")), "what the start touched is kept")
        (layer,) = {path.name.partition(".")[0] for path in orders.glob("*.order")}
        held = next(platform.state.rglob(f"code/default/{layer}.lazy-*")).parent / layer
        eventually(held.exists, "the plain tree takes over")
        os.kill(node, signal.SIGKILL)
        eventually(lambda: platform.pids()["node"] != node, "the node is started again")
        assert foreglow("invoke", "large")["body"] == [7, SIZE]
        eventually(lambda: not list(platform.state.rglob("code/default/*.lazy-*")), "nothing of the mount is left")
    finally:
        code = platform.stop()
    assert code == 0
    assert not mounted_below(platform.state)
