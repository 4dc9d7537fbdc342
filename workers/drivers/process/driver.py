"""ProcessDriver: sandboxes as clones of a warm template process, one template per tenant."""

import asyncio
import contextlib
import os
import resource
import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from workers.drivers import syscalls, watch
from workers.drivers.cells import Cell
from workers.drivers.limits import Cgroups, detect, name_of, sweep
from workers.drivers.process import tiers
from workers.drivers.process.clone import ProcessClone
from workers.drivers.process.functions import Part, ProcessFunctionTemplate, make_function_template, start_keeper
from workers.drivers.process.interpreter import Interpreter, NoInterpreter, find_interpreter
from workers.drivers.process.layers import LayerSource, can_detach
from workers.drivers.process.templates import CloneRequest, Template
from workers.drivers.process.tenants import TenantTemplates
from workers.drivers.process.tiers import Tier
from workers.ports import DriverError, IsolationReport, Specialisation, TemplateRefused, Traits
from workers.versions import SHAPES_MB, Kind

PROBE_TENANT = ""
PROBE_TIMEOUT_S = 20.0
PROBE_SOURCE = "def handler(event, context):\n    return None\n"
WATCH_EVERY_S = 0.5
STOP_TIMEOUT_S = 10.0


@dataclass
class _Ends:
    """Descriptors of one clone: ours to keep, theirs to hand over."""

    channel: socket.socket
    outputs: dict[str, int]
    theirs: list[int]

    def close_theirs(self) -> None:
        while self.theirs:
            os.close(self.theirs.pop())

    def close_ours(self) -> None:
        self.channel.close()
        for descriptor in self.outputs.values():
            os.close(descriptor)


def _open_ends() -> _Ends:
    """Raises OSError, with nothing left open."""
    ours, channel = socket.socketpair()
    ends = _Ends(ours, {}, [channel.detach()])
    try:
        for stream in ("out", "err"):
            ends.outputs[stream], theirs = os.pipe2(os.O_CLOEXEC)
            ends.theirs.append(theirs)
    except OSError:
        ends.close_theirs()
        ends.close_ours()
        raise
    return ends


class ProcessDriver:
    """Implements workers.ports.Driver. Use it on one event loop, in a thread that lives as long as the node: templates die
    with the thread that started them.

    `folder` is its own; its name (with the process id) names the control groups. `python`: the runtime's interpreter,
    found when empty.
    """

    name = "process"
    traits = Traits(lazy_code=True)

    def __init__(self, folder: Path, python: str = "", allow_no_isolation: bool = False) -> None:
        self._folder = folder
        self._python = python
        self._allow_no_isolation = allow_no_isolation
        self._interpreter: Interpreter | None = None
        self._cgroups: Cgroups | None = None
        self._layers: LayerSource | None = None
        self._tier = Tier("none")
        self._templates: TenantTemplates | None = None
        self._clones: set[ProcessClone] = set()
        self._keepers: set[Template] = set()
        self._numbers = 0
        self._background: set[asyncio.Future[bool]] = set()
        self._watcher: asyncio.Task[None] | None = None

    # -- start and stop

    async def start(self) -> IsolationReport:
        if not syscalls.SUPPORTED:
            raise DriverError("the process driver runs on x86_64 Linux only")
        loop = asyncio.get_running_loop()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._interpreter = await loop.run_in_executor(None, find_interpreter, self._python)
            refused = await loop.run_in_executor(None, self._open_cgroups)
        except (NoInterpreter, OSError) as error:
            raise DriverError(str(error)) from error
        _raise_open_files()
        failures: list[str] = []
        try:
            for tier in tiers.candidates():
                try:
                    await self._probe(tier)
                    break
                except (DriverError, TimeoutError, OSError) as error:
                    failures.append(f"{tier.name}: {error or 'timed out'}")
            else:
                raise DriverError("no sandbox could be made: " + "; ".join(failures))
            assert self._cgroups is not None
            assert self._templates is not None
            report = tiers.report(self._tier, self._cgroups, [*failures, *refused, *self._templates.unlocked])
            if not report.isolated and not self._allow_no_isolation:
                raise DriverError(
                    "no isolation is possible here (" + "; ".join(failures) + "); "
                    "--allow-no-isolation runs the functions of one tenant unprotected"
                )
        except DriverError:
            await self.stop()
            raise
        if report.limits["memory"] == "rlimit":
            self._watcher = loop.create_task(self._watch())
        return report

    def _open_cgroups(self) -> list[str]:
        layout = detect(Path("/proc/self/mountinfo").read_text(), Path("/proc/self/cgroup").read_text())
        name = name_of(self._folder, os.getpid())
        sweep(layout, name)
        self._cgroups = Cgroups(layout, name)
        refused = self._cgroups.open()
        self._cgroups.own_weight()
        return refused

    async def _probe(self, tier: Tier) -> None:
        """Makes a sandbox, runs a function's module in it, takes it apart: what works here is what was seen to work."""
        assert self._interpreter is not None
        assert self._cgroups is not None
        if self._templates is not None:
            await self._templates.stop()
        self._tier, self._templates = tier, TenantTemplates(self._interpreter, tier, self._cgroups)
        code = self._folder / "probe"
        code.mkdir(exist_ok=True)
        code.chmod(0o755)
        (code / "probe.py").write_text(PROBE_SOURCE)
        (code / "probe.py").chmod(0o644)
        if tier.sandboxed and self._layers is None:
            self._layers = LayerSource("" if can_detach(code) else self._interpreter.executable)
        clone = await self.clone(PROBE_TENANT, SHAPES_MB[0])
        try:
            work = Specialisation("probe/probe:1", "probe:handler", Kind.EVENT, 1, SHAPES_MB[0], (code,), {})
            await clone.specialise(work, PROBE_TIMEOUT_S)
        finally:
            await clone.kill("the probe is done")
        self._templates.hand_over(PROBE_TENANT)

    async def stop(self) -> None:
        if self._watcher is not None:
            self._watcher.cancel()
        await asyncio.gather(*(clone.kill("the node stops") for clone in list(self._clones)), return_exceptions=True)
        for keeper in self._keepers:
            keeper.end()
        await asyncio.gather(*(keeper.wait() for keeper in list(self._keepers)), return_exceptions=True)
        if self._templates is not None:
            await self._templates.stop()
        while self._background:
            done, _ = await asyncio.wait(self._background, timeout=STOP_TIMEOUT_S)
            if not done:
                break
        if self._cgroups is not None:
            await asyncio.get_running_loop().run_in_executor(None, self._cgroups.close)
        if self._layers is not None:
            self._layers.close()
            self._layers = None

    async def retire(self, tenant: str) -> None:
        if self._templates is not None:
            await self._templates.retire(tenant)

    # -- clones

    async def clone(self, tenant: str, memory_mb: int) -> ProcessClone:
        if self._templates is None:
            raise DriverError("the driver has not been started")
        template = await self._templates.get(tenant)
        try:
            return await self._clone(template, memory_mb)
        except DriverError:
            if not template.gone:
                raise
        return await self._clone(await self._templates.get(tenant), memory_mb)  # it died under us: once more, with another

    async def template(self, tenant: str, work: Specialisation, timeout_s: float) -> ProcessFunctionTemplate:
        if self._templates is None:
            raise DriverError("the driver has not been started")
        if self._layers is None:
            raise TemplateRefused("isolation", "without isolation an instance would share everything with its template")
        template = await self._templates.get(tenant)
        keeper = await start_keeper(template, self._number(), self._layers, work.layers, self._keepers)
        try:
            return await make_function_template(keeper, self._clone, self._number, work, timeout_s)
        except BaseException:
            keeper.end()
            raise

    def _number(self) -> int:
        self._numbers += 1
        return self._numbers

    async def _clone(self, template: Template, memory_mb: int, part: Part = Part.WHOLE) -> ProcessClone:
        number = self._number()
        cell = self._take_cell(memory_mb, template.uid)
        made: list[ProcessClone] = []
        early: list[str] = []

        def on_status(how: str) -> None:
            if made:
                made[0].exit_status(how)
            else:
                early.append(how)

        def freed(gone: ProcessClone) -> None:
            self._clones.discard(gone)
            template.clone_gone()
            if cell is not None:
                self._give_back(cell, template if part is Part.INSTANCE else None)

        if cell is not None and part is Part.INSTANCE:
            cell.lend()
        try:
            ends = _open_ends()
        except OSError as error:
            self._give_back(cell)
            raise DriverError(f"descriptors of a sandbox: {error}") from error
        request = CloneRequest(
            number,
            tmp_mb=max(64, memory_mb // 2),
            address_space_mb=0 if self._held_by_cgroup else tiers.address_space_mb(memory_mb),
            into_cgroup=cell is not None and cell.into_cgroup,
            original=part is Part.ORIGINAL,
        )
        try:
            told, pidfds = await template.clone(request, [*ends.theirs, *(cell.join if cell is not None else ())], on_status)
        except BaseException:
            ends.close_ours()
            self._give_back(cell)
            raise
        finally:
            ends.close_theirs()
        layers = self._layers if self._tier.sandboxed else None
        pid, worker = told["pid"], 0
        members: Callable[[], list[int]] | None = None
        if part is not Part.WHOLE:
            pid = watch.pid_of(pidfds[0])
        if part is Part.INSTANCE:
            worker = watch.pid_of(pidfds[1])
            os.close(pidfds[1])
            members = partial(watch.members, pid, worker)
        elif part is Part.ORIGINAL:
            members = partial(self._strays, template)
        coded = part is not Part.WHOLE
        process = (pid, pidfds[0])
        clone = ProcessClone(
            f"p{number}", memory_mb, process, ends.channel, ends.outputs, cell, layers, freed, coded, worker, members
        )
        made.append(clone)
        self._clones.add(clone)
        for how in early:
            clone.exit_status(how)
        return clone

    def _strays(self, keeper: Template) -> list[int]:
        """Of a keeper's processes those that are no instance's: the original, and whatever a hostile one made."""
        instances = {pid for one in self._clones if one.worker != one.pid for pid in watch.members(one.pid, one.worker)}
        return [pid for pid in watch.members(keeper.pid) if pid != keeper.pid and pid not in instances]

    @property
    def _held_by_cgroup(self) -> bool:
        return self._cgroups is not None and self._cgroups.kind("memory") != "none"

    def _take_cell(self, memory_mb: int, owner: int) -> Cell | None:
        if self._cgroups is None or not self._cgroups.usable:
            return None
        try:
            return self._cgroups.take(memory_mb, owner)
        except OSError as error:
            raise DriverError(f"control group of a sandbox: {error}") from error

    def _give_back(self, cell: Cell | None, keeper: Template | None = None) -> None:
        """`keeper`: of the function template that the cell was lent to; it ends when its original does not let go of the cell."""
        if cell is None or self._cgroups is None:
            return

        def given_back(future: asyncio.Future[bool]) -> None:
            self._background.discard(future)
            if keeper is not None and not future.cancelled() and future.exception() is None and not future.result():
                keeper.end()
                self._give_back(cell)

        future = asyncio.get_running_loop().run_in_executor(None, self._cgroups.give_back, cell)
        self._background.add(future)
        future.add_done_callback(given_back)

    async def _watch(self) -> None:
        """Where no control group holds the memory: looks at every sandbox twice a second and ends those over their shape."""
        while True:
            await asyncio.sleep(WATCH_EVERY_S)
            for clone in list(self._clones):
                await asyncio.sleep(0)
                clone.enforce_memory()


def _raise_open_files() -> None:
    """Five descriptors a sandbox: the usual soft limit holds few."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
