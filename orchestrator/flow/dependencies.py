"""Resolves requirements with uv into a lock and installs from it: wheels only, so nothing of a tenant is executed here.

What has no wheel is built elsewhere, in a sandbox (source_builds.py), and comes as a folder of wheels.
"""

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import uv

from orchestrator.flow.bounded import Bounds, TimedOut, run_bounded
from orchestrator.flow.locks import MAX_LOCK, LockError, held_to, read_lock, write_lock
from orchestrator.flow.wheels import Wheels
from workers.code.layers import Limits
from workers.code.requirements import REQUIREMENTS_FILE

TIME_LIMIT_S = 120.0
"""Of resolving, and again of installing."""

MAX_REASON = 2000
UNSATISFIABLE = 1
"""uv's exit code for a resolution that has no solution; anything else is trouble on the way, and worth a retry."""

NO_WHEEL = ("has no usable wheels", "building from source is disabled", "no wheels")
HINT = "; build = true in the manifest builds what has no wheel, in a sandbox"


class BuildFailed(Exception):
    """The user's part cannot be built; the message says why, trying again would not help."""


class NoWheels(BuildFailed):
    """There is no solution of wheels alone."""


class Busy(Exception):
    """It cannot be done this moment; nothing is wrong. Worth another look in `again_s`."""

    def __init__(self, why: str, again_s: float = 0.1) -> None:
        super().__init__(why)
        self.again_s = again_s


class BuildInterrupted(Exception):
    """Trouble that may pass: the package index is away, the time limit was hit."""


class Installer:
    """uv for one runtime. `python`: its interpreter, for whose version and platform everything is resolved; `cache`: of files
    from the indexes, shared by all tenants, so nothing that a tenant built ever goes into it."""

    def __init__(self, python: str, cache: Path) -> None:
        self._python = python
        self._cache = cache

    def resolve(self, requirements: Sequence[str], scratch: Path, wheels: Wheels | None = None) -> str:
        """The lock: every version pinned, with the hashes of its wheels.

        Raises NoWheels, BuildFailed, BuildInterrupted, OSError.
        """
        with tempfile.TemporaryDirectory(prefix="resolve-", dir=scratch) as folder:
            asked, locked = Path(folder) / REQUIREMENTS_FILE, Path(folder) / "lock"
            asked.write_text("\n".join(requirements) + "\n")
            command = ["compile", "--generate-hashes", "--no-header", "--quiet", "--output-file", str(locked), REQUIREMENTS_FILE]
            if wheels is not None:
                (Path(folder) / "pins.txt").write_text("".join(f"{pin}\n" for pin in wheels.pins))
                command += ["--constraints", "pins.txt", "--find-links", str(wheels.folder)]
            self._run(command, Path(folder), MAX_LOCK, wheels is not None)
            try:
                pins = held_to(read_lock(locked.read_text()), requirements, wheels.hashes if wheels else {})
            except LockError as error:
                raise BuildFailed(f"{REQUIREMENTS_FILE}: {error}") from error
        return write_lock(pins, [f"built here: {line}" for line in wheels.built] if wheels else ())

    def install(self, lock: str, target: Path, limits: Limits, wheels: Wheels | None = None) -> None:
        """Installs a lock into the folder `target`, every file checked. Raises BuildFailed, BuildInterrupted, OSError."""
        with tempfile.TemporaryDirectory(prefix="install-", dir=target.parent) as folder:
            (Path(folder) / "lock").write_text(lock)
            command = ["install", "--require-hashes", "--no-deps", "--target", str(target), "--requirements", "lock"]
            if wheels is not None:
                command += ["--find-links", str(wheels.folder)]

            def watch() -> None:
                if folder_size(target) > limits.size:
                    raise BuildFailed(f"{REQUIREMENTS_FILE}: over {limits.size >> 20} MiB installed")

            self._run(command, Path(folder), limits.size, wheels is not None, watch)
        (target / ".lock").unlink(missing_ok=True)  # uv's own, of no use in a layer

    def _run(
        self, command: Sequence[str], folder: Path, file_bytes: int, private: bool, watch: Callable[[], None] = lambda: None
    ) -> None:
        """`uv pip` in `folder`, with a cache of its own when it is `private`."""
        # every option that matters is said here; configuration files of this machine's users are not read
        always = ["--no-config", "--no-progress", "--only-binary", ":all:", "--python", self._python, "--no-python-downloads"]
        cache = folder / "cache" if private else self._cache
        output = folder / "output"
        whole = [uv.find_uv_bin(), "pip", command[0], *always, *command[1:]]
        # files of the cache are written by it as well, and may be larger than what it makes here
        bounds = Bounds(TIME_LIMIT_S, max(file_bytes, 512 << 20))
        try:
            code = run_bounded(whole, index_environment(folder, cache), output, bounds, watch)
        except TimedOut as error:
            raise BuildInterrupted(f"{REQUIREMENTS_FILE}: {error}") from error
        if code:
            with output.open("rb") as file:
                text = file.read(64 << 10).decode(errors="replace")
            reason = told_reason(text, (str(folder), str(folder.parent), str(cache)))
            if code != UNSATISFIABLE:
                raise BuildInterrupted(reason)
            if any(words in text for words in NO_WHEEL):
                raise NoWheels(reason)
            raise BuildFailed(reason)


def index_environment(home: Path, cache: Path) -> dict[str, str]:
    """What the operator has set for reaching a package index, nothing else of the platform's environment."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name.startswith(("UV_", "SSL_CERT_")) or name.upper() in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
    }
    return {**kept, "PATH": os.defpath, "HOME": str(home), "TMPDIR": str(home), "UV_CACHE_DIR": str(cache), "NO_COLOR": "1"}


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


def told_reason(text: str, folders: Sequence[str] = ()) -> str:
    """The resolver's words from its first `error:` on, without this machine's folders."""
    _, found, rest = text.partition("error:")
    text = rest if found else text
    for folder in folders:
        text = text.replace(folder, "")
    return f"{REQUIREMENTS_FILE}: " + " ".join(text.split())[:MAX_REASON]
