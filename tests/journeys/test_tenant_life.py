"""A tenant's life by the command line on a platform that runs: made, keyed, limited, removed."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from doubles.crossings import eventually

pytestmark = pytest.mark.system

FOREGLOW = [sys.executable, "-P", "-m", "orchestrator.cli.main"]
PORTS = ("--functions-port", "0", "--control-port", "0", "--otlp-port", "0")
MANIFEST = '[functions.nap]\nhandler = "nap:handle"\n'
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

    assert "foreglow keys create" in operator("tenants", "create", "acme", "--functions", "1")
    token = operator("keys", "create", "ci", "--tenant", "acme").strip()
    acme = Shell(operator.state, token)
    assert acme.json("tenants", "quotas")["quotas"]["functions"] == 1
    assert "operator key" in acme.refused("tenants", "list")
    assert "operator key" in acme.refused("tenants", "quotas", "acme", "--functions", "9")
    acme("deploy", str(project))
    assert "acme" in operator("tenants", "list")
    (project / "foreglow.toml").write_text(MANIFEST + MANIFEST.replace("nap]", "more]"))
    assert "quota functions of tenant acme is 1" in acme.refused("deploy", str(project))

    # what only the gateway saw counts as use
    used = Shell(operator.state, acme("keys", "create", "used").strip())
    eventually(lambda: used.run("invoke", "nap", "--data", "0").returncode == 0, "the new key invokes")
    used("invoke", "nap", "--data", "0")

    def last_used(name: str) -> Any:
        return next(one for one in operator.json("keys", "list", "--tenant", "acme")["keys"] if one["name"] == name)["last_used"]

    assert eventually(lambda: last_used("used"), "the gateway told of it")

    operator("tenants", "quotas", "acme", "--concurrency", "1")
    busy = subprocess.Popen([*FOREGLOW, "invoke", "nap", "--data", "5", "--state", str(operator.state)], env=acme.environment)
    try:
        eventually(lambda: acme.json("tenants", "quotas")["use"]["concurrency"] == 1, "one is in flight")
        assert "quota concurrency of tenant acme is 1" in acme.refused("invoke", "nap", "--data", "0")
        shown = operator.json("tenants", "quotas", "acme", "--concurrency", "default", "--invocations-per-s", "0")
        assert (shown["own"]["concurrency"], shown["own"]["functions"]) == (None, 1)
    finally:
        assert busy.wait(60) == 0
    eventually(lambda: "invocations_per_s" in acme.run("invoke", "nap", "--data", "0").stderr, "the rate is in force")
    operator("tenants", "quotas", "acme", "--invocations-per-s", "default")
    eventually(lambda: acme.run("invoke", "nap", "--data", "0").returncode == 0, "the rate is the default again")

    key_id = next(one["key_id"] for one in acme.json("keys", "list")["keys"] if one["name"] == "used")
    acme("keys", "revoke", key_id)
    eventually(lambda: "not known" in used.run("invoke", "nap", "--data", "0").stderr, "the gateway knows the key no more")
    mine = next(one["key_id"] for one in acme.json("keys", "list")["keys"] if one["name"] == "ci")
    assert "make another one first" in acme.refused("keys", "revoke", mine)

    assert "remove them first" in operator.refused("tenants", "remove", "acme")
    operator("tenants", "remove", "acme", "--functions")
    assert "key" in acme.refused("list")
    eventually(lambda: not (operator.state / "node" / "code" / "acme").exists(), "the node has forgotten it")
    assert "never given again" in operator.refused("tenants", "create", "acme")
    assert [one["name"] for one in operator.json("tenants", "list")["tenants"]] == ["default"]
