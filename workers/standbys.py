"""Standbys: clones waiting without code, per tenant and memory shape, refilled when the node is quiet."""

import asyncio
import contextlib
import time
from collections import defaultdict, deque
from functools import partial

import structlog

from workers.admission import BACKGROUND, CoreGate
from workers.ports import Clone, Driver, DriverError

QUIET_S = 0.05
RETRY_S = 5.0

log = structlog.get_logger(__name__)


class StandbyPool:
    """Keeps `target` standbys for each (tenant, shape) that has been wanted once. Bounded by `limit` overall."""

    def __init__(self, driver: Driver, gate: CoreGate, target: int, limit: int = 500) -> None:
        self._driver = driver
        self._gate = gate
        self._target = target
        self._limit = limit
        self._waiting: dict[tuple[str, int], deque[Clone]] = defaultdict(deque)
        self._wanted: set[tuple[str, int]] = set()
        self._nudge = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.busy_until = 0.0  # loop time; the owner moves it ahead whenever a start is under way

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._refill())

    def want(self, tenant: str, memory_mb: int) -> None:
        """From now on keep standbys of this shape for this tenant. The tenant's template is made on the way."""
        key = (tenant, memory_mb)
        if key not in self._wanted:
            self._wanted.add(key)
            self._nudge.set()

    def take(self, tenant: str, memory_mb: int) -> Clone | None:
        """A standby, now somebody's own; None when there is none."""
        waiting = self._waiting.get((tenant, memory_mb))
        self._nudge.set()
        return waiting.popleft() if waiting else None

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        for waiting in self._waiting.values():
            while waiting:
                await waiting.popleft().kill("node stops")

    def _missing(self) -> tuple[str, int] | None:
        if len(self) >= self._limit:
            return None
        for key in self._wanted:
            if len(self._waiting[key]) < self._target:
                return key
        return None

    async def _refill(self) -> None:
        while True:
            key = self._missing()
            if key is None:
                self._nudge.clear()
                await self._nudge.wait()
                continue
            quiet_in = self.busy_until - time.monotonic()
            if quiet_in > 0:
                await asyncio.sleep(quiet_in)
                continue
            await self._gate.enter(BACKGROUND)
            try:
                clone = await self._driver.clone(*key)
            except DriverError as error:
                log.warning("standby.failed", tenant=key[0], error=str(error))
                await asyncio.sleep(RETRY_S)
                continue
            finally:
                self._gate.leave()
            waiting = self._waiting[key]
            waiting.append(clone)
            clone.on_exit = partial(self._died, clone, waiting)

    def _died(self, clone: Clone, waiting: deque[Clone], _why: str) -> None:
        with contextlib.suppress(ValueError):
            waiting.remove(clone)
        self._nudge.set()
