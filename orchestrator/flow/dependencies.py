"""Resolves requirements with uv: wheels only, so nothing of a tenant is executed while resolving or installing."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import uv

from orchestrator.flow.bounded import Bounds, TimedOut, run_bounded
from workers.code.layers import Limits
from workers.code.requirements import REQUIREMENTS_FILE

TIME_LIMIT_S = 150.0
MAX_REASON = 2000
UNSATISFIABLE = 1
"""uv's exit code for a resolution that has no solution; anything else is trouble on the way, and worth a retry."""


class BuildFailed(Exception):
    """The user's part cannot be built; the message says why, trying again would not help."""


class Busy(Exception):
    """It cannot be done this moment; nothing is wrong."""


class BuildInterrupted(Exception):
    """Trouble that may pass: the package index is away, the time limit was hit."""


def install(requirements: Sequence[str], target: Path, python: str, cache: Path, limits: Limits) -> None:
    """Installs into the folder `target` for the interpreter `python`. Raises BuildFailed, BuildInterrupted, OSError."""
    with tempfile.TemporaryDirectory(prefix="resolve-", dir=target.parent) as scratch:
        listed = Path(scratch) / "requirements.txt"
        listed.write_text("\n".join(requirements) + "\n")
        # every option that matters is said here; configuration files of this machine's users are not read
        command = [uv.find_uv_bin(), "pip", "install", "--no-config", "--no-progress", "--only-binary", ":all:"]
        command += ["--python", python, "--no-python-downloads", "--target", str(target), "--requirements", str(listed)]
        output = Path(scratch) / "output"

        def watch() -> None:
            if folder_size(target) > limits.size:
                raise BuildFailed(f"{REQUIREMENTS_FILE}: over {limits.size >> 20} MiB installed")

        try:
            code = run_bounded(command, _environment(Path(scratch), cache), output, Bounds(TIME_LIMIT_S, limits.size), watch)
        except TimedOut as error:
            raise BuildInterrupted(f"{REQUIREMENTS_FILE}: {error}") from error
        if code:
            reason = _reason(output, (scratch, str(target), str(cache)))
            raise BuildFailed(reason) if code == UNSATISFIABLE else BuildInterrupted(reason)


def _environment(scratch: Path, cache: Path) -> dict[str, str]:
    """What the operator has set for reaching a package index, nothing else of the platform's environment."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name.startswith(("UV_", "SSL_CERT_")) or name.upper() in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
    }
    return {**kept, "PATH": os.defpath, "HOME": str(scratch), "TMPDIR": str(scratch), "UV_CACHE_DIR": str(cache), "NO_COLOR": "1"}


def folder_size(folder: Path) -> int:
    """Bytes of the files below it now, 0 when there is none; other processes may be writing."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(parent, name)).st_size
            except FileNotFoundError:
                continue
    return total


def _reason(output: Path, folders: Sequence[str]) -> str:
    """The resolver's words from its first `error:` on, without this machine's folders."""
    with output.open("rb") as file:
        text = file.read(64 << 10).decode(errors="replace")
    _, found, rest = text.partition("error:")
    text = rest if found else text
    for folder in folders:
        text = text.replace(folder, "")
    return f"{REQUIREMENTS_FILE}: " + " ".join(text.split())[:MAX_REASON]
