"""Prewarm decisions on this node, from the order to prepare to how each ended."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from graph.plans import Outcome
from tracing.records import Timings
from workers.rpc.messages import DecisionUpdate, PrepareItem

KEPT = 20_000


@dataclass(slots=True, eq=False)
class _Open:
    item: PrepareItem
    began: float
    right: tuple[str, int] = ("", 0)
    ready: bool = False
    timer: asyncio.TimerHandle | None = None


class DecisionBook:
    """Open decisions, each ending exactly once. `tell` gets every update; it must not block."""

    def __init__(self, tell: Callable[[DecisionUpdate], None]) -> None:
        self._tell = tell
        self._open: dict[str, _Open] = {}
        self._delayed: dict[tuple[str, str], list[_Open]] = {}  # by version and run: not begun yet

    def __len__(self) -> int:
        return len(self._open)

    def __contains__(self, decision_id: str) -> bool:
        return decision_id in self._open

    def accept(self, item: PrepareItem, begin: Callable[[PrepareItem], None], right: tuple[str, int] = ("", 0)) -> bool:
        """Takes an order; `begin` is called when its delay is over. False: known already, or the book is full. `right`: the lease
        and epoch under which it was given."""
        if item.decision_id in self._open or len(self._open) >= KEPT:
            return False
        loop = asyncio.get_running_loop()
        entry = self._open[item.decision_id] = _Open(item, time.monotonic(), right)
        if item.delay_s > 0:
            self._delayed.setdefault((item.version, item.trace_id), []).append(entry)
            entry.timer = loop.call_later(item.delay_s, self._begin, entry, begin)
        else:
            self._begin(entry, begin)
        return True

    def claim(self, version: str, trace_id: str, invocation_id: str) -> str:
        """An invocation of this run has to start an instance itself: the order for one that has not begun comes to nothing. Its
        decision, which ends as late, or empty."""
        delayed = self._delayed.get((version, trace_id)) if trace_id else None
        found = next((one for one in delayed if one.item.level == "ready"), None) if delayed else None
        if found is None:
            return ""
        found.began = time.monotonic()
        decision_id = found.item.decision_id
        self._end(decision_id, Outcome.LATE, invocation_id, "needed before its time had come")
        return decision_id

    def void(self, lease: str, epoch: int) -> None:
        """Whoever ordered under an older epoch of this lease takes nothing back any more: what has not begun never does."""
        old = [one for orders in self._delayed.values() for one in orders if one.right[0] == lease and one.right[1] < epoch]
        for one in old:
            self._end(one.item.decision_id, Outcome.CANCELLED, detail="its planner was replaced before its time had come")

    def _not_delayed(self, entry: _Open) -> None:
        key = (entry.item.version, entry.item.trace_id)
        delayed = self._delayed.get(key, [])
        if entry in delayed:
            delayed.remove(entry)
            if not delayed:
                del self._delayed[key]

    def _begin(self, entry: _Open, begin: Callable[[PrepareItem], None]) -> None:
        self._not_delayed(entry)
        entry.timer = None
        entry.began = time.monotonic()
        begin(entry.item)

    def ready(self, decision_id: str, timings: Timings, source: str, expire: Callable[[str], None]) -> None:
        """What it asked for is ready, unused; `expire` is called when it stays so for the item's lifetime."""
        entry = self._open.get(decision_id)
        if entry is None:
            return
        loop = asyncio.get_running_loop()
        entry.ready = True
        entry.timer = loop.call_later(entry.item.expires_s, expire, decision_id)
        took = time.monotonic() - entry.began
        self._tell(DecisionUpdate(decision_id, Outcome.READY, time.time(), took, timings=timings, source=source))

    def used(self, decision_id: str, invocation_id: str, became: str = "") -> None:
        """An invocation took its instance, or a start of the version `became` its standby: a hit when it was ready, late when it
        was not."""
        entry = self._open.get(decision_id)
        if entry is not None:
            self._end(decision_id, Outcome.HIT if entry.ready else Outcome.LATE, invocation_id, became=became)

    def lost(self, decision_id: str, why: str) -> None:
        """Its instance is given up: wasted when it was ready, cancelled when it was not."""
        entry = self._open.get(decision_id)
        if entry is not None:
            self._end(decision_id, Outcome.WASTED if entry.ready else Outcome.CANCELLED, detail=why)

    def is_ready(self, decision_id: str) -> bool:
        entry = self._open.get(decision_id)
        return entry is not None and entry.ready

    def _end(self, decision_id: str, outcome: Outcome, invocation_id: str = "", detail: str = "", became: str = "") -> None:
        entry = self._open.pop(decision_id)
        if entry.timer is not None:
            entry.timer.cancel()
        self._not_delayed(entry)
        took = time.monotonic() - entry.began
        self._tell(DecisionUpdate(decision_id, outcome, time.time(), took, invocation_id, detail, became=became))
