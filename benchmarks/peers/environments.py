"""What peers need, installed by name and pinned version into folders outside the repository, once."""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path

INSTALL_TIMEOUT_S = 240.0


class PeerMissing(Exception):
    """This peer cannot be set up here; the message says why. The run goes on without it."""


def cache_folder() -> Path:
    """FOREGLOW_BENCH_CACHE, else below the user's cache folder."""
    named = os.environ.get("FOREGLOW_BENCH_CACHE")
    if named:
        return Path(named).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "foreglow-benchmarks"


def python_with(name: str, requirements: list[str]) -> Path:
    """The interpreter of an environment that holds exactly these. Raises PeerMissing."""
    with _installed(f"python-{name}", [sys.version, *requirements]) as folder:
        if not (folder / "done").exists():
            # the interpreter below our own environment, so that nothing of ours is seen
            venv.EnvBuilder(with_pip=True, symlinks=True).create(folder)
            _run([folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--only-binary", ":all:", *requirements], name)
    return folder / "bin" / "python"


def node_package(name: str, version: str) -> Path:
    """The folder that holds node_modules with this package. Raises PeerMissing."""
    if shutil.which("npm") is None:
        raise PeerMissing(f"{name}: npm is not installed")
    with _installed(f"node-{name}", [version]) as folder:
        if not (folder / "done").exists():
            (folder / "package.json").write_text(json.dumps({"name": "peer", "private": True}))
            _run(["npm", "install", "--no-audit", "--no-fund", "--prefix", folder, f"{name}@{version}"], name)
    return folder


@contextlib.contextmanager
def _installed(name: str, pins: list[str]) -> Iterator[Path]:
    """A folder for these pins, one installer at a time; marked `done` when the body did not fail, else removed."""
    digest = hashlib.sha256("\0".join(pins).encode()).hexdigest()[:12]
    folder = cache_folder() / f"{name}-{digest}"
    folder.mkdir(parents=True, exist_ok=True)
    with (cache_folder() / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield folder
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        (folder / "done").touch()


def _run(command: list[str | Path], name: str) -> None:
    try:
        done = subprocess.run(
            [str(one) for one in command], capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise PeerMissing(f"{name}: not installed within {INSTALL_TIMEOUT_S:g} s") from error
    if done.returncode:
        raise PeerMissing(f"{name}: cannot be installed: {' '.join(done.stderr.split())[-300:]}")
