"""The backup of docs/operating.md, taken from a running platform, restored into a fresh folder, serves."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from orchestrator.settings import Settings

pytestmark = pytest.mark.system

ROOT = Path(__file__).parents[2]
WAIT_S = 60.0
FOREGLOW = [sys.executable, "-P", "-m", "orchestrator.cli.main"]
PORTS = ("--functions-port", "0", "--control-port", "0", "--otlp-port", "0")
MANIFEST = """
[functions.tells]
handler = "tells:handle"
environment = {WORD = "swordfish"}
"""
CODE = "import os\ndef handle(event, context):\n    return os.environ['WORD']\n"


def script(name: str) -> str:
    """The shell block that follows <!-- name --> in the document."""
    found = re.search(rf"<!-- {name} -->\n```sh\n(.*?)```", (ROOT / "docs" / "operating.md").read_text(), re.DOTALL)
    assert found is not None
    return found[1]


def run(name: str, **places: Path) -> None:
    variables = {where.upper(): str(path) for where, path in places.items()}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    subprocess.run(["sh", "-euc", script(name)], env={"PATH": path, **variables}, check=True, timeout=WAIT_S)


@contextmanager
def running(state: Path) -> Iterator[dict[str, str]]:
    up = subprocess.Popen([*FOREGLOW, "up", "--state", str(state), *PORTS], stdout=subprocess.PIPE, text=True)
    assert up.stdout is not None
    try:
        assert any(line.startswith("ready") for line in up.stdout)
        yield json.loads(Settings(state=state).addresses_file.read_text())
    finally:
        up.terminate()
        up.wait(WAIT_S)
        up.stdout.close()


def invoked(addresses: dict[str, str], key: str) -> httpx.Response:
    """Routes may still be on their way to the gateway."""
    deadline = time.monotonic() + WAIT_S
    while True:
        answer = httpx.post(
            f"{addresses['functions']}/function/tells", headers={"Authorization": f"Bearer {key}"}, json={}, timeout=WAIT_S
        )
        if answer.status_code == 200 or time.monotonic() > deadline:
            return answer
        time.sleep(0.1)


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="fg-"))
    yield made
    shutil.rmtree(made)


def test_a_backup_restored_into_a_fresh_folder_serves(folder: Path) -> None:
    first, second, backup, project = (folder / name for name in ("first", "second", "backup", "project"))
    project.mkdir()
    (project / "foreglow.toml").write_text(MANIFEST)
    (project / "tells.py").write_text(CODE)
    with running(first):
        deploy = [*FOREGLOW, "deploy", str(project), "--state", str(first)]
        deployed = subprocess.run(deploy, capture_output=True, text=True, timeout=WAIT_S, check=False)
        assert deployed.returncode == 0, deployed.stderr
        run("backup", state=first, backup=backup)
    key = (first / "key").read_text().strip()
    shutil.rmtree(first)
    for secret in ("cluster.key", "key", "foreglow.db"):
        assert (backup / secret).stat().st_mode & 0o077 == 0
    run("restore", state=second, backup=backup)
    with running(second) as addresses:
        answer = invoked(addresses, key)
        assert (answer.status_code, answer.text) == (200, '"swordfish"')
        deploy = [*FOREGLOW, "deploy", str(project), "--state", str(second)]
        assert subprocess.run(deploy, capture_output=True, timeout=WAIT_S, check=False).returncode == 0
