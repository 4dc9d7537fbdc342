"""In which order speculative instances run their users' init.

Init holds no core slot: most of it may be waiting. But inits that burn CPU beside the init a request waits for would slow it
down, and without control groups nothing can give it more weight. So speculative ones start while fewer than `cores` of
those under way burn CPU, the earliest needed first. What burns is seen, not guessed: every TICK_S each of them is looked
at; one that neither runs nor stands in a run queue, and mostly did not, waits for something else and does not count.
"""

import asyncio
import heapq
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field

TICK_S = 0.005
BURNING_SHARE = 0.5

CpuClock = Callable[[], tuple[float, bool] | None]
"""Seconds of CPU used or queued for so far, and whether a core is wanted now; None: cannot be read (counts as burning)."""


@dataclass(slots=True, eq=False)
class _UnderWay:
    clock: CpuClock
    seen: tuple[float, bool] | None
    at: float
    burning: bool = True  # until seen otherwise

    def look(self, now: float) -> None:
        seen = self.clock()
        if seen is not None and self.seen is not None and now > self.at:
            self.burning = seen[1] or (seen[0] - self.seen[0]) / (now - self.at) > BURNING_SHARE
        self.seen, self.at = seen, now


@dataclass(order=True, slots=True)
class _Queued:
    needed_at: float
    number: int
    key: object = field(compare=False)
    turn: asyncio.Future[None] = field(compare=False)


class InitOrder:
    """`cores` is how many burning inits may run side by side before a speculative one has to wait."""

    def __init__(self, cores: int) -> None:
        self._cores = cores
        self._under_way: dict[object, _UnderWay] = {}
        self._queue: list[_Queued] = []
        self._numbers = itertools.count()
        self._ticker: asyncio.TimerHandle | None = None

    async def turn(self, key: object, needed_at: float) -> None:
        """Waits until the speculative init of `key` may start."""
        if self._room() > 0 and not self._queue:
            return
        queued = _Queued(needed_at, next(self._numbers), key, asyncio.get_running_loop().create_future())
        heapq.heappush(self._queue, queued)
        self._tick_later()
        try:
            await queued.turn
        finally:
            if queued in self._queue:
                self._queue.remove(queued)
                heapq.heapify(self._queue)

    def hurry(self, key: object) -> None:
        """A request waits for it now: it does not wait here any more."""
        for queued in self._queue:
            if queued.key is key and not queued.turn.done():
                queued.turn.set_result(None)

    def began(self, key: object, clock: CpuClock) -> None:
        """The init of `key` starts, on demand or speculative."""
        self._under_way[key] = _UnderWay(clock, clock(), time.monotonic())

    def ended(self, key: object) -> None:
        self._under_way.pop(key, None)
        self._admit()

    def _room(self) -> int:
        return self._cores - sum(1 for one in self._under_way.values() if one.burning)

    def _admit(self) -> None:
        """Lets in as many as there is room for; those just let in count as burning until they have begun and were seen."""
        room = self._room()
        while self._queue and room > 0:
            queued = heapq.heappop(self._queue)
            if not queued.turn.done():
                queued.turn.set_result(None)
                room -= 1

    def _tick_later(self) -> None:
        if self._ticker is None and self._queue:
            self._ticker = asyncio.get_running_loop().call_later(TICK_S, self._tick)

    def _tick(self) -> None:
        self._ticker = None
        now = time.monotonic()
        for one in self._under_way.values():
            one.look(now)
        self._admit()
        self._tick_later()
