"""Function templates of microVMs: a machine in which one version's module has been imported, kept as a template of its own.

The original runs on a copy of its shape's memory that it may write; with the state it then has, that is sealed like any other
template. So whatever the module made (threads, files, sockets, processes) is in each clone as it was; threads and processes stand
still from before the snapshot until the clone has its own entropy and clock (workers/guest/held.py)."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Protocol

from workers.drivers.microvm.clone import MicroVmClone
from workers.drivers.microvm.code import CodeSource, Given
from workers.drivers.microvm.fingerprint import Fingerprint
from workers.drivers.microvm.template import SETTLE_S, Template, copied, saved, sealed
from workers.drivers.microvm.threads import in_thread
from workers.drivers.originals import import_once
from workers.ports import DriverError, Specialisation


class MachineMaker(Protocol):
    async def __call__(self, source: Template, memory: int) -> MicroVmClone:
        """A clone that runs on `memory`, and writes it. Raises DriverError."""
        ...


class MicroVmFunctionTemplate:
    """Implements workers.ports.FunctionTemplate."""

    def __init__(
        self,
        template: Template,
        clone: Callable[[Template], Awaitable[MicroVmClone]],
        fingerprint: Callable[[], Fingerprint],
        init_ms: float,
    ) -> None:
        self.init_ms = init_ms
        self.memory_mb = (template.memory_bytes >> 20) + 1
        self.on_gone: Callable[[str], None] = lambda _reason: None
        self.template = template
        self._clone = clone
        self._fingerprint = fingerprint

    async def clone(self, memory_mb: int) -> MicroVmClone:
        if self.template.closed:
            raise DriverError("the function template has ended")
        if why := self.template.fingerprint.refuses(self._fingerprint()):
            self.template.close()
            self.on_gone(f"it was made with another host: {why}")
            raise DriverError(f"the function template was made with another host: {why}")
        return await self._clone(self.template)

    async def end(self, reason: str) -> None:
        self.template.close()


async def make_function_template(
    source: Template,
    make: MachineMaker,
    clone: Callable[[Template], Awaitable[MicroVmClone]],
    fingerprint: Callable[[], Fingerprint],
    code: CodeSource,
    work: Specialisation,
    timeout_s: float,
) -> MicroVmFunctionTemplate:
    """Raises what Driver.template does; nothing is left then. `clone`: makes one of the finished template."""
    carried = await code.carry(work.layers)
    images, memory, state = list(carried.descriptors), -1, -1
    try:
        memory = await _copy(source)
        original = await make(source, memory)
        try:
            original.speculative(True)  # nobody waits for it
            original.code = Given(carried)
            report = await import_once(original, work, timeout_s)
            await asyncio.sleep(SETTLE_S)
            await original.machine.hold()
            state = await saved(original.machine)
        finally:
            await original.kill("its function template was made")
    except BaseException:
        for one in (*images, memory, state):
            if one >= 0:
                os.close(one)
        raise
    template = sealed(source.shape, source.fingerprint, memory, state, images)
    return MicroVmFunctionTemplate(template, clone, fingerprint, report.init_ms)


async def _copy(source: Template) -> int:
    if source.closed:
        raise DriverError("the template was replaced just then")
    held = os.dup(source.memory)  # it may be replaced meanwhile
    return await in_thread(partial(copied, held), os.close, partial(os.close, held))
