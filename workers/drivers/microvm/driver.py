"""MicroVmDriver: sandboxes as clones of a QEMU memory template, one template per memory shape, shared by all tenants."""

import asyncio
import contextlib
import os
import resource
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from weakref import WeakSet

import structlog

from workers.drivers.limits import CONTROLLERS
from workers.drivers.microvm import fingerprint, template
from workers.drivers.microvm.accel import AccelError, choose
from workers.drivers.microvm.apart import ORDINARY, Apart
from workers.drivers.microvm.clone import MicroVmClone
from workers.drivers.microvm.code import MOST_INLINE, CodeSource
from workers.drivers.microvm.confinement import Confinement
from workers.drivers.microvm.disk import Disks
from workers.drivers.microvm.functions import MicroVmFunctionTemplate, make_function_template
from workers.drivers.microvm.image import OVERHEAD_MB, GuestImage
from workers.drivers.microvm.machine import RESUME_TIMEOUT_S, line_of
from workers.drivers.microvm.places import Places
from workers.drivers.microvm.qemu import BINARY, DISK_BYTES, Shape, arguments
from workers.drivers.microvm.template import Template
from workers.drivers.microvm.templates import Templates
from workers.drivers.microvm.tsc import tsc_khz
from workers.ports import DriverError, IsolationReport, Specialisation, Traits
from workers.versions import SHAPES_MB, Kind

log = structlog.get_logger(__name__)

PROBE_TIMEOUT_S = 60.0
PROBE_SOURCE = "def handler(event, context):\n    return None\n"
DISKS_KEPT = 4 << 30  # bytes of images on the node's disk
STOPPED = "the driver has not been started, or has stopped"
BESIDE_MB = 128  # QEMU, translated code, what a full guest no longer shares with its template: microvm.full.beside_mb


class MicroVmDriver:
    """Implements workers.ports.Driver. Use it on one event loop, in a thread that lives as long as the node: machines die with
    the thread that started them.

    `folder` is its own; its name (with the process id) names the control groups. `accel`: auto | tcg | kvm. `network`: guests
    have a card, where that can be. `qemu`: its binary, found when empty."""

    name = "microvm"
    traits = Traits(shared_standbys=True, beside_mb=BESIDE_MB, template_beside_mb=OVERHEAD_MB)

    def __init__(self, folder: Path, image: GuestImage, accel: str, qemu: str = "", network: bool = True) -> None:
        self._folder = folder
        self._image = image
        self._accel = accel
        self._qemu = qemu
        self._network = network
        self._tsc_khz = 0
        self._places: Places | None = None
        self._disks: Disks
        self._code: CodeSource
        self._templates = Templates(self._boot, self._fingerprint)
        self._clones: set[MicroVmClone] = set()
        self._function_templates: WeakSet[Template] = WeakSet()
        self._numbers = 0
        self._coming: set[asyncio.Future[None]] = set()  # clones on their way
        self._stopping = False

    # -- start and stop

    async def start(self) -> IsolationReport:
        loop = asyncio.get_running_loop()
        found = shutil.which(self._qemu or BINARY)
        if found is None:
            raise DriverError(
                f"{self._qemu or BINARY} is not there: install QEMU (Debian: qemu-system-x86), or use the process driver"
            )
        self._qemu, self._stopping = os.path.realpath(found), False
        _raise_open_files()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._tsc_khz = await loop.run_in_executor(None, tsc_khz)
            choice = await loop.run_in_executor(None, choose, self._accel, self._probing_line)
            self._accel = choice.accel
            read = [self._image.kernel.parent, *([] if self._qemu.startswith("/usr/") else [Path(self._qemu).parent])]
            confinement = Confinement(read, kvm=self._accel == "kvm")
            self._places = Places(self._folder, confinement)
            apart = Apart(confinement, self._places.yielding_doors)
            self._disks = await loop.run_in_executor(None, Disks, self._folder / "disks", DISK_BYTES, DISKS_KEPT, apart)
            self._code = CodeSource(self._disks, self._image.python, apart)
            refused = await self._places.open(self._network)
        except (OSError, AccelError, DriverError) as error:
            await self.stop()
            raise DriverError(str(error)) from error
        log.info("microvm.accel", accel=choice.accel, why=choice.why)
        try:
            await self._probe()
        except (DriverError, TimeoutError, OSError) as error:
            await self.stop()
            raise DriverError(f"no microVM could be made: {error or 'timed out'}") from error
        return self._report(refused)

    def _probing_line(self, accel: str, ends: Sequence[int]) -> list[str]:
        return arguments(Shape(self._qemu, accel, SHAPES_MB[0], self._tsc_khz), ends, "", shared=False, boot=self._image)

    async def _probe(self) -> None:
        """Boots, clones, runs a function's module, takes it apart: what works here is what was seen to work."""
        code = self._folder / "probe"
        code.mkdir(exist_ok=True)
        (code / "probe.py").write_text(PROBE_SOURCE)
        clone = await self.clone("", SHAPES_MB[0])
        try:
            work = Specialisation("probe/probe:1", "probe:handler", Kind.EVENT, 1, SHAPES_MB[0], (code,), {})
            await clone.specialise(work, PROBE_TIMEOUT_S)
        finally:
            await clone.kill("the probe is done")

    def _report(self, refused: list[str]) -> IsolationReport:
        assert self._places is not None
        cgroups = self._places.cgroups
        assert cgroups is not None
        limits = {controller: cgroups.kind(controller) for controller in CONTROLLERS}
        missing = list(refused)
        if self._disks.missing:
            missing.append(f"code: packages of more than {MOST_INLINE >> 20} MB do not start: {self._disks.missing}")
        if not self._places.privileged:
            missing.append(ORDINARY)
        if limits["memory"] == "none":
            missing.append("memory: no control group; the guest's memory is bounded, QEMU's own is not")
        if limits["cpu"] == "none":
            missing.append("cpu: no control group; speculative work does not yield")
        if not self._places.network:
            limits["network"] = "none"
        return IsolationReport("microvm", self._accel, limits, tuple(missing))

    async def stop(self) -> None:
        self._stopping = True
        await self._templates.stop()
        if self._coming:
            await asyncio.wait(self._coming, timeout=RESUME_TIMEOUT_S)
        for one in self._function_templates:
            one.close()
        await asyncio.gather(*(clone.kill("the node stops") for clone in list(self._clones)), return_exceptions=True)
        if self._places is not None:
            await self._places.close()
            self._places = None

    async def retire(self, tenant: str) -> None:
        """Nothing here is a tenant's own but its instances and function templates."""

    # -- clones

    async def clone(self, tenant: str, memory_mb: int) -> MicroVmClone:
        source = await self._templates.get(memory_mb)
        try:
            return await self._clone(source)
        except DriverError:
            if not source.closed:
                raise
        return await self._clone(await self._templates.get(memory_mb))  # another took its place just then

    async def template(self, tenant: str, work: Specialisation, timeout_s: float) -> MicroVmFunctionTemplate:
        source = await self._templates.get(work.memory_mb)
        made = await make_function_template(
            source,
            self._clone,
            partial(self._clone, coded=True),
            partial(self._fingerprint, work.memory_mb),
            self._code,
            work,
            timeout_s,
        )
        if self._stopping:
            made.template.close()
            raise DriverError(STOPPED)
        self._function_templates.add(made.template)
        return made

    async def _clone(self, source: Template, memory: int = -1, coded: bool = False) -> MicroVmClone:
        places, coming = self._started(), asyncio.get_running_loop().create_future()
        self._coming.add(coming)
        try:
            place = await places.take(source.shape.limit_mb)
            try:
                machine = await source.clone(place, memory)
            except BaseException as error:
                places.give_back(place)
                if isinstance(error, TimeoutError):
                    raise DriverError("a microVM did not resume in time") from error
                raise
            self._numbers += 1
            name, freed = f"v{self._numbers}", partial(self._freed, places)
            clone = MicroVmClone(name, source.shape.memory_mb, machine, self._code, freed, coded)
            self._clones.add(clone)
        finally:
            self._coming.discard(coming)
            coming.set_result(None)
        return clone

    def _freed(self, places: Places, clone: MicroVmClone) -> None:
        self._clones.discard(clone)
        places.give_back(clone.machine.place)

    def _started(self) -> Places:
        if self._places is None or self._stopping:
            raise DriverError(STOPPED)
        return self._places

    # -- templates

    def _shape(self, memory_mb: int) -> Shape:
        return Shape(self._qemu, self._accel, memory_mb, self._tsc_khz, self._started().network)

    def _fingerprint(self, memory_mb: int) -> fingerprint.Fingerprint:
        shape = self._shape(memory_mb)
        tap = 0 if shape.network else None
        return fingerprint.take(self._qemu, line_of(shape, 0, self._image, tap=tap)((0, 0, 0)), self._tsc_khz, self._image)

    async def _boot(self, memory_mb: int, somebody_waits: bool) -> Template:
        places, shape = self._started(), self._shape(memory_mb)
        place = await places.take(shape.limit_mb)
        try:
            if place.cell is not None and not somebody_waits:
                with contextlib.suppress(OSError):
                    place.cell.speculative(True)
            return await template.boot(shape, self._image, lambda: self._fingerprint(memory_mb), place)
        finally:
            places.give_back(place)


def _raise_open_files() -> None:
    """Four descriptors a machine here, and more on its way."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
