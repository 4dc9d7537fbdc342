"""Source builds: `build = true` makes wheels of what has none, in a sandbox of that tenant's; docs/decisions/0020 says how.

Nothing of a tenant is executed outside it, and the package index is the only network inside.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
import uv

from orchestrator.flow import wheelwright
from orchestrator.flow.dependencies import MAX_REASON, UNSATISFIABLE, BuildFailed, BuildInterrupted, Busy, told_reason
from orchestrator.flow.index_settings import Indexes, inside_variables, read_indexes
from orchestrator.flow.locks import LockError
from orchestrator.flow.wheels import Wheels, collect
from orchestrator.flow.wheelwright import BUILDING
from workers.code.requirements import REQUIREMENTS_FILE
from workers.drivers.limits import Cgroups
from workers.drivers.process.confinement import open_cgroups, probe, with_toolchain
from workers.drivers.process.confining import OUT, PORT, Command, ConfinementError, Confines, Ended, confined
from workers.drivers.process.interpreter import Interpreter
from workers.drivers.process.tiers import Tier

if TYPE_CHECKING:  # a client and a server of HTTP, which most flows never need
    from orchestrator.flow.index_door import IndexDoor
    from orchestrator.flow.index_upstream import Upstream

SLOTS = 2
"""Source builds at once, of different tenants."""

AGAIN_S = 1.0
TOOLS = "/opt/build"
FETCH_BYTES = 2 << 30
ENVIRONMENT = {
    "PATH": f"{TOOLS}:/usr/bin:/bin",
    "HOME": "/tmp",  # noqa: S108
    "TMPDIR": "/tmp",  # noqa: S108
    "LANG": "C.UTF-8",
    "NO_COLOR": "1",
    "UV_CACHE_DIR": "/tmp/cache",  # noqa: S108
    "UV_HTTP_TIMEOUT": "60",
    "UV_CONCURRENT_BUILDS": "2",
    "UV_CONCURRENT_DOWNLOADS": "8",
    "UV_CONCURRENT_INSTALLS": "2",
    "TOKIO_WORKER_THREADS": "2",
    "RAYON_NUM_THREADS": "2",
    "MAKEFLAGS": "-j2",
    "CARGO_BUILD_JOBS": "2",
}

log = structlog.get_logger(__name__)


class SourceBuilder:
    """Thread-safe; made once a process. `hosts`: where index pages may say that files lie, beside the index's own host.

    `stopping`: true once this process should end; builds then end too.
    """

    def __init__(
        self,
        interpreter: Interpreter,
        folder: Path,
        confines: Confines,
        hosts: Sequence[str],
        environment: Mapping[str, str] = os.environ,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self._interpreter = with_toolchain(interpreter)
        self._folder = folder
        self._confines = confines
        self._hosts = tuple(hosts)
        self._environment = environment
        self._stopping = stopping
        self._lock = threading.Lock()
        self._slots = list(range(SLOTS))
        self._tenants: set[str] = set()
        self._probing = threading.Lock()
        self._tier: Tier | None = None
        self._cgroups: Cgroups | None = None

    def build(self, tenant: str, requirements: Sequence[str], into: Path) -> Wheels:
        """Resolves, builds what has no wheel, and leaves the wheels in the empty folder `into`.

        Raises Busy, BuildFailed, BuildInterrupted.
        """
        from orchestrator.flow.index_upstream import Upstream

        with self._slot(tenant) as slot:
            tier = self._isolation()
            indexes = read_indexes(self._environment)
            asked = into.parent / "asked.txt"
            asked.write_text("\n".join(requirements) + "\n")
            asked.chmod(0o644)
            upstream = Upstream(indexes, self._hosts)
            began = time.monotonic()
            try:
                wheels = self._confined(tier, slot, indexes, upstream, asked, into)
                log.info("build.done", tenant=tenant, built=len(wheels.built), seconds=round(time.monotonic() - began, 1))
                return wheels
            except ConfinementError as error:
                raise BuildInterrupted(f"{REQUIREMENTS_FILE}: the build sandbox: {error}") from error
            finally:
                upstream.close()

    def _confined(self, tier: Tier, slot: int, indexes: Indexes, upstream: "Upstream", asked: Path, into: Path) -> Wheels:
        from orchestrator.flow.index_door import IndexDoor

        program, requirements = f"{TOOLS}/wheelwright.py", f"{TOOLS}/{REQUIREMENTS_FILE}"
        python, tool = self._interpreter.executable, f"{TOOLS}/uv"
        command = Command(
            [python, "-I", "-S", "-B", "-X", "utf8", program, tool, python, requirements, OUT],
            {**ENVIRONMENT, **inside_variables(indexes, self._environment, f"http://127.0.0.1:{PORT}")},
            [(uv.find_uv_bin(), tool), (str(wheelwright.__file__), program), (str(asked), requirements)],
        )
        with confined(self._interpreter, tier, self._cgroups, command, self._confines, slot) as (running, cell):
            assert running.listener is not None
            with IndexDoor(running.listener, upstream, FETCH_BYTES) as door:
                ended = running.wait(cell, self._go_on)
            if ended.code:
                raise _failure(ended, door)
            try:
                return collect(running.folder, into)
            except (LockError, OSError) as error:
                raise BuildFailed(f"{REQUIREMENTS_FILE}: the build left {error}{_met(ended, door)}") from error

    @contextmanager
    def _slot(self, tenant: str) -> Iterator[int]:
        """One build a tenant, so that nobody's builds keep another's waiting."""
        with self._lock:
            if tenant in self._tenants or not self._slots:
                raise Busy("other source builds run", AGAIN_S)
            self._tenants.add(tenant)
            slot = self._slots.pop()
        try:
            yield slot
        finally:
            with self._lock:
                self._tenants.discard(tenant)
                self._slots.append(slot)

    def _go_on(self) -> None:
        """A process that is told to stop does not wait for a build, which is done again by the next one."""
        if self._stopping():
            raise Busy("this process stops", AGAIN_S)

    def _isolation(self) -> Tier:
        """The strongest tier that a sandbox was really made in. Raises BuildFailed when there is none."""
        with self._probing:
            if self._tier is None:
                if self._cgroups is None:
                    self._cgroups = open_cgroups(self._folder)
                self._tier, tried = probe(self._interpreter, self._cgroups)
                if self._tier is None:
                    log.warning("builds.refused", reason=tried)
                    raise BuildFailed(f"build: this platform cannot isolate source builds ({tried}); see `foreglow doctor` there")
                log.info("builds.isolation", tier=self._tier.name, memory=self._cgroups.kind("memory"))
            return self._tier

    def close(self) -> None:
        if self._cgroups is not None:
            self._cgroups.close()


def _met(ended: Ended, door: "IndexDoor") -> str:
    """The limits it met and what it was refused, in words for the condition."""
    told = [*ended.limits, *(f"refused: {one}" for one in door.refused[:3])]
    return f" ({'; '.join(told)})" if told else ""


def _failure(ended: Ended, door: "IndexDoor") -> Exception:
    before, began, after = ended.output.rpartition(f"\n{BUILDING}")
    # a backend's own words come before uv's, and its last ones say most
    words = f"{REQUIREMENTS_FILE}: {BUILDING}{' '.join(after.split())[-MAX_REASON:]}" if began else told_reason(before or after)
    words += _met(ended, door)
    if door.troubles and not ended.limits:
        return BuildInterrupted(f"{words} (the package index: {'; '.join(door.troubles[:3])})")
    if ended.code == UNSATISFIABLE or ended.limits:
        return BuildFailed(words)
    return BuildFailed(f"{words} (the build ended with {_how(ended.code)})")


def _how(code: int) -> str:
    return f"exit {code}" if 0 <= code < 128 else f"signal {abs(code) - 128 if code > 0 else -code}"
