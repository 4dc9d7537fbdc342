"""The wheel holds all it needs: built, unpacked somewhere else, and used from there as a whole platform."""

import json
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.system

ROOT = Path(__file__).parents[2]
WAIT_S = 180.0


def test_a_platform_runs_from_the_wheel_alone(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True, timeout=120)
    (wheel,) = tmp_path.glob("foreglow-*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    assert not (site / "tests").exists()
    environment = {**os.environ, "PYTHONPATH": str(site), "FOREGLOW_HOME": str(tmp_path / "state")}
    command = [sys.executable, "-P", "-m", "orchestrator.cli.main"]

    def run(*words: str) -> str:
        done = subprocess.run(
            [*command, *words], check=False, env=environment, capture_output=True, text=True, timeout=WAIT_S, cwd=tmp_path
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    ports = ["--functions-port", "0", "--control-port", "0", "--otlp-port", "0"]
    with (tmp_path / "up.log").open("w") as log:
        up = subprocess.Popen([*command, "up", *ports], env=environment, stdout=log, stderr=subprocess.STDOUT, cwd=tmp_path)
    try:
        deadline = time.monotonic() + WAIT_S
        while "ready" not in (tmp_path / "up.log").read_text():
            assert up.poll() is None, (tmp_path / "up.log").read_text()
            assert time.monotonic() < deadline, (tmp_path / "up.log").read_text()
            time.sleep(0.1)
        node = int(json.loads((tmp_path / "state" / "processes.json").read_text())["processes"]["node"]["pid"])
        assert str(site) in Path(f"/proc/{node}/environ").read_text()
        run("init", str(tmp_path / "project"))
        run("deploy", str(tmp_path / "project"))
        assert "Hello, wheel!" in run("invoke", "hello", "--data", '{"name": "wheel"}')
    finally:
        up.terminate()
        assert up.wait(WAIT_S) == 0
