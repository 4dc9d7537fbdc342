"""Standbys held for decisions: one clone without code for several branches of a run, made what the run turns out to need.

A decision of level `standby` ends as hit when a start takes its clone, as late when the start has to wait for the clone, and
as wasted or cancelled as any other does. Only a start of the same tenant and memory shape can take it.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any

import structlog

from tracing.records import Timings
from workers.decisions import DecisionBook
from workers.ports import Clone, DriverError
from workers.standbys import StandbyPool

END_S = 10.0

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Taker:
    """Who a standby goes to: a request's invocation, empty when it is a decision's instance; and which version it becomes."""

    invocation_id: str
    version: str


@dataclass(slots=True, eq=False)
class _Held:
    """`clone`: set when it is there; until then `making` is the task that makes it. `taken`: a start has it, or waits for it."""

    decision_id: str
    tenant: str
    memory_mb: int
    trace_id: str
    clone: Clone | None = None
    making: "asyncio.Task[None] | None" = None
    taken: "asyncio.Future[Clone | None] | None" = None
    gone: bool = False


class HeldStandbys:
    """All methods run on the node's event loop. `started` is called when a clone is about to be made."""

    def __init__(self, pool: StandbyPool, decisions: DecisionBook, started: Callable[[], None]) -> None:
        self._pool = pool
        self._decisions = decisions
        self._started = started
        self._held: dict[str, _Held] = {}  # by decision; the oldest first
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, decision_id: str) -> bool:
        return decision_id in self._held

    def hold(self, decision_id: str, tenant: str, memory_mb: int, trace_id: str, needed_at: float) -> None:
        """Takes one of the pool, or makes one. When there is no room for it, the decision is cancelled."""
        if not self._pool.room(len(self._held)):
            self._decisions.lost(decision_id, "as many standbys as the node may have")
            return
        held = self._held[decision_id] = _Held(decision_id, tenant, memory_mb, trace_id)
        clone = self._pool.take(tenant, memory_mb)
        if clone is not None:
            self._ready(held, clone, 0.0)
            return
        self._started()
        held.making = asyncio.get_running_loop().create_task(self._make(held, needed_at))
        self._tasks.add(held.making)
        held.making.add_done_callback(self._tasks.discard)

    async def take(self, tenant: str, memory_mb: int, trace_id: str, by: Taker) -> Clone | None:
        """One held for this run; waits for one that is being made. None when there is none, or it came to nothing."""
        if not trace_id:
            return None
        fits = [one for one in self._held.values() if (one.tenant, one.memory_mb, one.trace_id) == (tenant, memory_mb, trace_id)]
        ready = next((one for one in fits if one.clone is not None), None)
        if ready is not None:
            return self._use(ready, by)
        coming = next((one for one in fits if one.taken is None), None)
        if coming is None:
            return None
        coming.taken = asyncio.get_running_loop().create_future()
        self._decisions.used(coming.decision_id, by.invocation_id, by.version)
        self._pool.hurry(coming)
        try:
            return await coming.taken
        except asyncio.CancelledError:
            coming.taken.cancel()
            raise

    def take_any(self, tenant: str, memory_mb: int, by: Taker) -> Clone | None:
        """One that is ready for some run: this request needs it for certain, and that run may not."""
        found = next(
            (one for one in self._held.values() if one.clone is not None and (one.tenant, one.memory_mb) == (tenant, memory_mb)),
            None,
        )
        return self._use(found, by) if found is not None else None

    def give_up(self, decision_id: str) -> None:
        """Not needed any more; the caller ends the decision. One that a start waits for goes on."""
        held = self._held.get(decision_id)
        if held is None or held.taken is not None:
            return
        self._forget(held)
        if held.clone is not None:
            self._later(self._pool.give_back(held.tenant, held.memory_mb, held.clone))
        else:
            self._pool.hurry(held)  # so that its maker learns at once

    async def end(self, why: str, tenant: str = "") -> None:
        """Ends all, or a tenant's; returns when they are gone, after a bound at most."""
        for held in [one for one in self._held.values() if not tenant or one.tenant == tenant]:
            self._decisions.lost(held.decision_id, why)
            self._forget(held)
            if held.taken is not None and not held.taken.done():
                held.taken.set_result(None)
            if held.clone is not None:
                self._later(_kill(held.clone, why))
            elif held.making is not None:
                held.making.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=END_S)

    # -- one of them

    async def _make(self, held: _Held, needed_at: float) -> None:
        began, clone = time.perf_counter(), None
        try:
            clone = await self._pool.make(held.tenant, held.memory_mb, needed_at, held, lambda: not held.gone)
            if clone is not None and held.taken is None and not held.gone:
                clone.speculative(True)
                await clone.rest()
                clone.speculative(False)
                await self._pool.tunnels.wire(clone, held.tenant)
        except (DriverError, OSError) as error:
            log.warning("standby.failed", tenant=held.tenant, memory_mb=held.memory_mb, error=str(error))
            if clone is not None:
                self._later(_kill(clone, "it did not become a standby"))
            self._decisions.lost(held.decision_id, f"killed: {type(error).__name__}: {error}"[:500])
            self._forget(held)
            if held.taken is not None and not held.taken.done():
                held.taken.set_result(None)
            return
        except asyncio.CancelledError:  # its tenant is gone, while it came to rest
            if clone is not None:
                await _kill(clone, "not needed")
            raise
        if clone is None:
            return
        if held.gone:
            await _kill(clone, "not needed")
        elif held.taken is not None:
            self._forget(held)
            if held.taken.done():  # who waited for it was cancelled
                await self._pool.give_back(held.tenant, held.memory_mb, clone)
            else:
                held.taken.set_result(clone)
        else:
            self._ready(held, clone, (time.perf_counter() - began) * 1000)

    def _ready(self, held: _Held, clone: Clone, clone_ms: float) -> None:
        held.clone, held.making = clone, None
        clone.on_exit = partial(self._died, held)
        self._decisions.ready(held.decision_id, Timings(clone=clone_ms), "standby", self._expired)

    def _use(self, held: _Held, by: Taker) -> Clone | None:
        clone = held.clone
        self._forget(held)
        self._decisions.used(held.decision_id, by.invocation_id, by.version)
        return clone

    def _expired(self, decision_id: str) -> None:
        self.give_up(decision_id)
        self._decisions.lost(decision_id, "unused for its lifetime")

    def _died(self, held: _Held, why: str) -> None:
        if not held.gone:
            self._forget(held)
            self._decisions.lost(held.decision_id, why)

    def _forget(self, held: _Held) -> None:
        held.gone = True
        self._held.pop(held.decision_id, None)

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _kill(clone: Clone, reason: str) -> None:
    try:
        await clone.kill(reason)
    except DriverError as error:
        log.warning("standby.not_killed", error=str(error))
