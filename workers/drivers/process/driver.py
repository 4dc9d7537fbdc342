"""ProcessDriver: sandboxes as clones of a warm template process, one template per tenant."""

import asyncio
import contextlib
import hashlib
import os
import resource
import socket
from pathlib import Path

from workers.drivers.process import syscalls
from workers.drivers.process.clone import ProcessClone
from workers.drivers.process.interpreter import Interpreter, NoInterpreter, find_interpreter
from workers.drivers.process.layers import LayerSource, can_detach
from workers.drivers.process.limits import CONTROLLERS, Cell, Cgroups, detect, sweep
from workers.drivers.process.templates import CloneRequest, Template, start_template
from workers.ports import DriverError, IsolationReport, Specialisation
from workers.versions import SHAPES_MB, Kind

UID_BASE, UID_COUNT = 200_000, 60_000
CLONES_PER_TEMPLATE = 500
PROBE_TIMEOUT_S = 20.0
PROBE_TENANT = ""


class ProcessDriver:
    """Implements workers.ports.Driver. `folder` is its own, for what it must remember across a crash."""

    name = "process"

    def __init__(self, folder: Path, python: str = "", allow_no_isolation: bool = False) -> None:
        self._folder = folder
        self._python = python
        self._allow_no_isolation = allow_no_isolation
        self._interpreter: Interpreter | None = None
        self._cgroups: Cgroups | None = None
        self._layers: LayerSource | None = None
        self._sandboxed = True
        self._templates: dict[str, asyncio.Task[Template]] = {}
        self._retired: set[Template] = set()
        self._clones: set[ProcessClone] = set()
        self._spare: Template | None = None
        self._numbers = 0
        self._uids = 0
        self._freeing: set[asyncio.Future[None]] = set()

    async def start(self) -> IsolationReport:
        if not syscalls.SUPPORTED:
            raise DriverError("the process driver runs on x86_64 Linux only")
        self._folder.mkdir(parents=True, exist_ok=True)
        _raise_open_files()
        loop = asyncio.get_running_loop()
        try:
            self._interpreter = await loop.run_in_executor(None, find_interpreter, self._python)
        except NoInterpreter as error:
            raise DriverError(str(error)) from error
        missing = await loop.run_in_executor(None, self._open_cgroups)
        self._layers = LayerSource("" if can_detach(self._folder) else self._interpreter.executable)
        facts = await self._probe()
        del facts
        kinds = {c: self._cgroups.layout.kind(c) if self._cgroups else "none" for c in CONTROLLERS}
        if os.geteuid() == 0:
            tier = "root+cgroups" if kinds["memory"] != "none" else "root"
        else:
            tier = "userns"
        return IsolationReport("process", tier, kinds, tuple(missing))

    def _open_cgroups(self) -> list[str]:
        layout = detect(Path("/proc/self/mountinfo").read_text(), Path("/proc/self/cgroup").read_text())
        digest = hashlib.sha256(str(self._folder.resolve()).encode()).hexdigest()[:10]
        prefix = f"foreglow-{digest}-"
        sweep(layout, prefix)
        self._cgroups = Cgroups(layout, f"{prefix}{os.getpid()}")
        return self._cgroups.open()

    async def _probe(self) -> object:
        """Makes a sandbox, runs a function in it, takes it apart: what works here is what was seen to work."""
        code = self._folder / "probe"
        code.mkdir(exist_ok=True)
        (code / "probe.py").write_text("def handler(event, context):\n    return None\n")
        clone = await self.clone(PROBE_TENANT, SHAPES_MB[0])
        try:
            await clone.specialise(
                Specialisation("probe/probe:1", "probe:handler", Kind.EVENT, 1, SHAPES_MB[0], (code,), {}), PROBE_TIMEOUT_S
            )
        finally:
            await clone.kill("the probe is done")
        self._spare = await self._templates.pop(PROBE_TENANT)
        return None

    async def clone(self, tenant: str, memory_mb: int) -> ProcessClone:
        template = await self._template(tenant)
        self._numbers += 1
        number = self._numbers
        cell = self._cell(memory_mb, template.uid)
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        outputs: dict[str, int] = {}
        theirs_out: list[int] = []
        for stream in ("out", "err"):
            outputs[stream], end = os.pipe2(os.O_CLOEXEC)
            os.set_blocking(outputs[stream], False)
            theirs_out.append(end)
        status: list[str] = []
        waiting: list[ProcessClone] = []

        def on_status(how: str) -> None:
            status.append(how)
            for one in waiting:
                one.exit_status(how)

        request = CloneRequest(
            number, max(64, memory_mb // 2), 0 if cell else 4 * memory_mb + 1024, bool(cell and cell.into_cgroup)
        )
        try:
            pid, pidfd = await template.clone(request, [theirs.fileno(), *theirs_out, *(cell.join if cell else [])], on_status)
        except BaseException:
            ours.close()
            for descriptor in outputs.values():
                os.close(descriptor)
            if cell is not None and self._cgroups is not None:
                self._cgroups.give_back(cell)
            raise
        finally:
            theirs.close()
            for descriptor in theirs_out:
                os.close(descriptor)
        layers = self._layers if self._sandboxed else None

        def freed(clone: ProcessClone) -> None:
            self._clones.discard(clone)
            template.clone_gone()
            if cell is not None and self._cgroups is not None:
                future = asyncio.get_running_loop().run_in_executor(None, self._cgroups.give_back, cell)
                self._freeing.add(future)
                future.add_done_callback(self._freeing.discard)

        clone = ProcessClone(f"p{number}", pid, pidfd, ours, outputs, cell, layers, freed)
        waiting.append(clone)
        self._clones.add(clone)
        return clone

    def _cell(self, memory_mb: int, owner: int) -> Cell | None:
        if self._cgroups is None or not self._cgroups.usable:
            return None
        try:
            return self._cgroups.take(memory_mb, owner)
        except OSError as error:
            raise DriverError(f"limits: {error}") from error

    async def _template(self, tenant: str) -> Template:
        task = self._templates.get(tenant)
        if task is not None and task.done():
            if task.cancelled() or task.exception() is not None or task.result().gone:
                task = None
            elif task.result().made >= CLONES_PER_TEMPLATE:
                task.result().retire()
                self._retired.add(task.result())
                task = None
        if task is None:
            task = asyncio.get_running_loop().create_task(self._new_template())
            self._templates[tenant] = task
        return await asyncio.shield(task)

    async def _new_template(self) -> Template:
        if self._spare is not None and not self._spare.gone:
            template, self._spare = self._spare, None
            return template
        assert self._interpreter is not None
        uid = 0
        if os.geteuid() == 0:
            uid = UID_BASE + self._uids % UID_COUNT
            self._uids += 1
        return await start_template(self._interpreter, uid, self._sandboxed)

    async def retire(self, tenant: str) -> None:
        task = self._templates.pop(tenant, None)
        if task is not None:
            with contextlib.suppress(DriverError):
                template = await task
                template.retire()
                self._retired.add(template)

    async def stop(self) -> None:
        await asyncio.gather(*(clone.kill("the node stops") for clone in list(self._clones)), return_exceptions=True)
        for tenant in list(self._templates):
            await self.retire(tenant)
        if self._spare is not None:
            self._spare.end()
            self._retired.add(self._spare)
        await asyncio.gather(*(template.wait() for template in self._retired), return_exceptions=True)
        if self._freeing:
            await asyncio.wait(self._freeing, timeout=5.0)
        if self._cgroups is not None:
            await asyncio.get_running_loop().run_in_executor(None, self._cgroups.close)
        if self._layers is not None:
            self._layers.close()


def _raise_open_files() -> None:
    """Five descriptors a sandbox: the usual soft limit holds few."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
