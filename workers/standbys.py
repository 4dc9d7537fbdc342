"""Standbys: clones waiting without code, per tenant and memory shape, refilled when the node is quiet."""

import asyncio
import contextlib
import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from functools import partial

import structlog

from workers.admission import BACKGROUND, CoreGate
from workers.live_plans import LivePlans
from workers.ports import Clone, Driver, DriverError
from workers.rpc.messages import StandbyCount
from workers.tunnelling import Tunnels

RETRY_S = 5.0

Key = tuple[str, int]
"""Tenant (empty where standbys are shared) and memory shape."""

log = structlog.get_logger(__name__)


class StandbyPool:
    """Keeps `target` standbys for each (tenant, shape) that has been wanted once. Bounded by `limit` overall.

    Of a driver with shared standbys they are of no tenant, and while plans live there are as many as the largest of them draws.
    """

    def __init__(self, driver: Driver, gate: CoreGate, target: int, tunnels: Tunnels, limit: int = 500) -> None:
        self.tunnels = tunnels
        self._driver = driver
        self._shared = driver.traits.shared_standbys
        self._gate = gate
        self._target = target
        self._limit = limit
        self._waiting: dict[Key, deque[Clone]] = defaultdict(deque)
        self._wanted: dict[Key, float] = {}  # -> not before: after a failure it waits, the others do not
        self._wanters: dict[Key, set[str]] = defaultdict(set)
        self._plans = LivePlans()
        self._resting: set[Clone] = set()
        self._nudge = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.busy_until = 0.0  # monotonic; the owner moves it ahead whenever a start is under way

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def counts(self) -> list[StandbyCount]:
        """Those waiting, by tenant (empty where they are shared) and shape."""
        return [StandbyCount(*key, len(waiting)) for key, waiting in self._waiting.items() if waiting]

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._refill())

    def _key(self, tenant: str, memory_mb: int) -> Key:
        return ("" if self._shared else tenant, memory_mb)

    def want(self, tenant: str, memory_mb: int) -> None:
        """From now on keep standbys of this shape for this tenant. The tenant's template is made on the way."""
        key = self._key(tenant, memory_mb)
        self._wanters[key].add(tenant)
        if key not in self._wanted:
            self._wanted[key] = 0.0
            self._nudge.set()

    def plan(self, shapes: Mapping[str, tuple[str, int]]) -> None:
        """A plan lives until each of its decisions is `over`. `shapes`: decision -> (tenant, shape) of what it draws."""
        if self._shared and self._target:
            self._plans.begin({decision: self._key(*shape) for decision, shape in shapes.items()})
            self._nudge.set()

    def over(self, decision_id: str) -> None:
        self._plans.over(decision_id)

    async def forget(self, tenant: str) -> None:
        """The tenant is gone: its standbys end, and none is made for it until it is wanted again."""
        gone: list[Clone] = []
        for key in [key for key, tenants in self._wanters.items() if tenant in tenants]:
            self._wanters[key].discard(tenant)
            if not self._wanters[key]:
                del self._wanters[key]
                self._wanted.pop(key, None)
                gone += self._waiting.pop(key, ())
        await asyncio.gather(*(clone.kill("its tenant is gone") for clone in gone), return_exceptions=True)

    def take(self, tenant: str, memory_mb: int) -> Clone | None:
        """A standby, now somebody's own; None when there is none."""
        waiting = self._waiting.get(self._key(tenant, memory_mb))
        self._nudge.set()
        return waiting.popleft() if waiting else None

    async def make(self, tenant: str, memory_mb: int, priority: float, key: object, wanted: Callable[[], bool]) -> Clone | None:
        """A clone of the pool's kind for somebody who cannot wait for it to be refilled; None when it is not wanted any more once
        its turn has come. Raises DriverError, OSError."""
        place = await self._gate.enter(priority, key)
        try:
            return await self._driver.clone(*self._key(tenant, memory_mb)) if wanted() else None
        finally:
            self._gate.leave(place)

    def hurry(self, key: object) -> None:
        """A request waits for what `make` makes under this key, or nobody does any more."""
        self._gate.hurry(key)

    def room(self, others: int) -> bool:
        """Whether one more standby may be, beside `others` that are not in the pool."""
        return len(self) + others < self._limit

    async def give_back(self, tenant: str, memory_mb: int, clone: Clone) -> None:
        """One that was taken and not used: it waits again where one is missing, and ends where none is."""
        key = self._key(tenant, memory_mb)
        if key in self._wanted and self._short(key) and len(self) < self._limit:
            self._wait(key, clone)
        else:
            await clone.kill("not needed")

    async def stop(self) -> None:
        resting = list(self._resting)
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        left = [*resting, *(clone for waiting in self._waiting.values() for clone in waiting)]
        await asyncio.gather(*(clone.kill("node stops") for clone in left), return_exceptions=True)

    def _short(self, key: Key) -> bool:
        return len(self._waiting[key]) < max(self._target, self._plans.largest(key))

    def _missing(self, now: float) -> tuple[Key | None, float | None]:
        """The next to make, and when to look again if there is none (None: when told to)."""
        again: float | None = None
        if len(self) < self._limit:
            for key, not_before in self._wanted.items():
                if self._short(key):
                    if not_before <= now:
                        return key, None
                    again = not_before if again is None else min(again, not_before)
        return None, again

    async def _refill(self) -> None:
        while True:
            now = time.monotonic()
            key, again = self._missing(now)
            if key is None:
                self._nudge.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(None if again is None else again - now):
                        await self._nudge.wait()
            elif self.busy_until > now:
                await asyncio.sleep(self.busy_until - now)
            else:
                await self._make(key)

    async def _make(self, key: Key) -> None:
        place = await self._gate.enter(BACKGROUND)
        try:
            clone = await self._driver.clone(*key)
        except (DriverError, OSError) as error:
            self._failed(key, error)
            return
        finally:
            self._gate.leave(place)
        self._resting.add(clone)
        try:  # without a turn at the cores, which starts would wait for: it yields
            clone.speculative(True)
            await clone.rest()
            clone.speculative(False)
            await self.tunnels.wire(clone, key[0])
        except (DriverError, OSError) as error:
            self._failed(key, error)
            await self._kill(clone, "it did not become a standby")
            return
        finally:
            self._resting.discard(clone)
        if key not in self._wanted:
            await self._kill(clone, "its tenant is gone")
            return
        self._wait(key, clone)

    @staticmethod
    async def _kill(clone: Clone, reason: str) -> None:
        """One that does not die ends no refill."""
        try:
            await clone.kill(reason)
        except DriverError as error:
            log.warning("standby.not_killed", error=str(error))

    def _wait(self, key: Key, clone: Clone) -> None:
        waiting = self._waiting[key]
        waiting.append(clone)
        clone.on_exit = partial(self._died, clone, waiting)

    def _failed(self, key: Key, error: Exception) -> None:
        log.warning("standby.failed", tenant=key[0], memory_mb=key[1], error=str(error))
        if key in self._wanted:
            self._wanted[key] = time.monotonic() + RETRY_S

    def _died(self, clone: Clone, waiting: deque[Clone], _why: str) -> None:
        with contextlib.suppress(ValueError):
            waiting.remove(clone)
        self._nudge.set()
