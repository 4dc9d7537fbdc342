"""A tenant's life by the command line on a platform that runs: made, keyed, limited, removed."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from doubles.crossings import Side, eventually

pytestmark = pytest.mark.system

FOREGLOW = [sys.executable, "-P", "-m", "orchestrator.cli.main"]
PORTS = ("--functions-port", "0", "--control-port", "0", "--otlp-port", "0")
MANIFEST = '[functions.nap]\nhandler = "nap:handle"\ntimeout_s = 600\n'
NAP = "import time\ndef handle(event, context):\n    time.sleep(event)\n    return event\n"


class Shell:
    """The command line on one state folder, with a key of one's own."""

    def __init__(self, state: Path, key: str = "") -> None:
        self.state = state
        self.environment = os.environ | ({"FOREGLOW_KEY": key} if key else {})

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [*FOREGLOW, *words, "--state", str(self.state)]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60, check=False)

    def __call__(self, *words: str) -> str:
        done = self.run(*words)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def json(self, *words: str) -> Any:
        return json.loads(self(*words, "--json"))

    def refused(self, *words: str) -> str:
        done = self.run(*words)
        assert done.returncode == 1
        return done.stderr


@pytest.fixture
def operator(tmp_path: Path) -> Iterator[Shell]:
    state = tmp_path / "state"
    command = [*FOREGLOW, "up", "--state", str(state), *PORTS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, process_group=0) as process:
        assert process.stdout is not None
        try:
            assert any(line.startswith("ready") for line in process.stdout)
            yield Shell(state)
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=60)


def test_a_tenant_is_made_limited_and_removed(operator: Shell, tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    (project / "foreglow.toml").write_text(MANIFEST)
    (project / "nap.py").write_text(NAP)
    addresses = json.loads((operator.state / "addresses.json").read_text())

    assert "foreglow keys create" in operator("tenants", "create", "acme", "--functions", "1")
    token = operator("keys", "create", "ci", "--tenant", "acme").strip()
    acme, side = Shell(operator.state, token), Side(addresses, "acme", token, "")
    assert "operator key" in acme.refused("tenants", "list")
    acme("deploy", str(project))
    (project / "foreglow.toml").write_text(MANIFEST + MANIFEST.replace("nap]", "more]"))
    assert "quota functions of tenant acme is 1" in acme.refused("deploy", str(project))

    # what only the gateway saw counts as use
    used = Side(addresses, "acme", acme("keys", "create", "used").strip(), "")

    def naps(one: Side, seconds: float = 0) -> int:
        return one.functions.post("/function/nap", json=seconds).status_code

    def key(name: str) -> Any:
        return next(one for one in side.get("/v1/keys")["keys"] if one["name"] == name)

    eventually(lambda: naps(used) == 200, "the new key invokes")
    assert eventually(lambda: key("used")["last_used"], "the gateway told of it")

    operator("tenants", "quotas", "acme", "--concurrency", "1")
    with ThreadPoolExecutor(1) as pool:
        busy = pool.submit(naps, side, 300)
        eventually(lambda: side.get("/v1/tenant")["use"]["concurrency"] == 1, "one is in flight")
        refused = "quota concurrency of tenant acme is 1"
        eventually(lambda: refused in side.functions.post("/function/nap", json=0).text, "the gateway knows of the quota")
        assert refused in acme.refused("invoke", "nap", "--data", "0")
        shown = operator.json("tenants", "quotas", "acme", "--concurrency", "default", "--invocations-per-s", "0")
        assert (shown["own"]["concurrency"], shown["own"]["functions"]) == (None, 1)
        eventually(lambda: "invocations_per_s" in side.functions.post("/function/nap", json=0).text, "the rate is in force")

        acme("keys", "revoke", key("used")["key_id"])
        eventually(lambda: naps(used) == 401, "the gateway knows the key no more")
        assert "make another one first" in acme.refused("keys", "revoke", key("ci")["key_id"])

        assert "remove them first" in operator.refused("tenants", "remove", "acme")
        operator("tenants", "remove", "acme", "--functions")
        assert busy.result(60) == 502, "what runs ends with its tenant"
    assert side.control.get("/v1/functions").status_code == 401
    eventually(lambda: not (operator.state / "node" / "code" / "acme").exists(), "the node has forgotten it")
    assert "never given again" in operator.refused("tenants", "create", "acme")
    for one in (side, used):
        one.close()
