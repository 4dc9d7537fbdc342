"""Which template serves which memory shape: booted at need, refused when what made it has changed, replaced when used up."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import structlog

from workers.drivers.microvm.fingerprint import Fingerprint
from workers.drivers.microvm.template import Template
from workers.ports import DriverError

CLONES = 500  # then a fresh one: clones share an address layout, process ids and a hash seed
MAX_AGE_S = 6 * 3600.0
RETRY_S = 30.0
STOP_TIMEOUT_S = 15.0

log = structlog.get_logger(__name__)


class Templates:
    """`boot(memory_mb, somebody_waits)` makes one. No tenant's code is in any: all tenants share them. For one event loop."""

    def __init__(
        self,
        boot: Callable[[int, bool], Awaitable[Template]],
        fingerprint: Callable[[int], Fingerprint],
        clones: int = CLONES,
        max_age_s: float = MAX_AGE_S,
    ) -> None:
        self._boot = boot
        self._fingerprint = fingerprint
        self._clones, self._max_age_s = clones, max_age_s
        self._serving: dict[int, Template] = {}
        self._making: dict[int, asyncio.Task[Template]] = {}
        self._not_before: dict[int, float] = {}
        self.refused = 0

    async def get(self, memory_mb: int) -> Template:
        """One that fits; boots it when there is none, which takes seconds. Raises DriverError."""
        template = self._serving.get(memory_mb)
        if template is not None and (why := template.fingerprint.refuses(self._fingerprint(memory_mb))):
            log.warning("template.refused", memory_mb=memory_mb, changed=why)
            self.refused += 1
            self._serving.pop(memory_mb).close()
            template = None
        if template is None:
            return await asyncio.shield(self._make(memory_mb))
        if self._used_up(template) and self._not_before.get(memory_mb, 0.0) <= time.monotonic():
            self._make(memory_mb)
        return template

    def _used_up(self, template: Template) -> bool:
        return template.made >= self._clones or time.monotonic() - template.born > self._max_age_s

    def _make(self, memory_mb: int) -> "asyncio.Task[Template]":
        task = self._making.get(memory_mb)
        if task is None:
            task = self._making[memory_mb] = asyncio.get_running_loop().create_task(self._replace(memory_mb))
            task.add_done_callback(lambda done: self._made(memory_mb, done))
        return task

    async def _replace(self, memory_mb: int) -> Template:
        try:
            fresh = await self._boot(memory_mb, memory_mb not in self._serving)
        except TimeoutError as error:
            raise DriverError(f"the microVM of {memory_mb} MB did not boot in time") from error
        old = self._serving.get(memory_mb)
        self._serving[memory_mb] = fresh
        if old is not None:
            old.close()
        return fresh

    def _made(self, memory_mb: int, task: "asyncio.Task[Template]") -> None:
        del self._making[memory_mb]
        if not task.cancelled() and (error := task.exception()) is not None:
            self._not_before[memory_mb] = time.monotonic() + RETRY_S
            log.warning("template.not_made", memory_mb=memory_mb, error=str(error))

    @property
    def memory_bytes(self) -> int:
        return sum(template.memory_bytes for template in self._serving.values())

    async def stop(self) -> None:
        for task in list(self._making.values()):
            task.cancel()
        if self._making:
            await asyncio.wait(list(self._making.values()), timeout=STOP_TIMEOUT_S)
        while self._serving:
            self._serving.popitem()[1].close()
