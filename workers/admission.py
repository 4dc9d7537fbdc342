"""Who may use this node's cores and memory, in which order."""

import asyncio
import heapq
from dataclasses import dataclass, field
from pathlib import Path

ON_DEMAND = 0.0
BACKGROUND = float("inf")
"""Priorities: on-demand first, then by the time (loop clock) an instance is needed, refills last."""


@dataclass(order=True, slots=True)
class _Waiter:
    priority: float
    number: int
    key: object = field(compare=False)
    turn: asyncio.Future[None] = field(compare=False)


class CoreGate:
    """At most `cores` steps of the platform that hold a CPU (clone, unpack, template) run at once.

    User code holds no slot: it is bounded by memory. A queued step can be moved ahead when a request adopts its instance.
    """

    def __init__(self, cores: int) -> None:
        self._free = cores
        self._queue: list[_Waiter] = []
        self._numbers = 0

    async def enter(self, priority: float, key: object = None) -> None:
        if self._free > 0 and not self._queue:
            self._free -= 1
            return
        self._numbers += 1
        waiter = _Waiter(priority, self._numbers, key, asyncio.get_running_loop().create_future())
        heapq.heappush(self._queue, waiter)
        try:
            await waiter.turn
        except asyncio.CancelledError:
            if waiter.turn.done() and not waiter.turn.cancelled():
                self.leave()  # the slot was handed over just before
            else:
                self._queue = [one for one in self._queue if one is not waiter]
                heapq.heapify(self._queue)
            raise

    def leave(self) -> None:
        while self._queue:
            waiter = heapq.heappop(self._queue)
            if not waiter.turn.done():
                waiter.turn.set_result(None)
                return
        self._free += 1

    def hurry(self, key: object) -> None:
        """Puts the queued step of `key` first among on-demand ones."""
        for waiter in self._queue:
            if waiter.key is key:
                waiter.priority = ON_DEMAND
        heapq.heapify(self._queue)

    @property
    def waiting(self) -> int:
        return len(self._queue)


CHILD_SHARE = 0.1
"""Part of the memory only child calls may use: parents that wait for their children must not keep them out for ever."""


class MemoryLedger:
    """Megabytes promised to instances. A node never admits past its total."""

    def __init__(self, total_mb: int, beside_mb: int = 0) -> None:
        self.total_mb = total_mb
        self.beside_mb = beside_mb
        self.used_mb = 0

    def of_instance(self, shape_mb: int) -> int:
        """What an instance of that shape counts: the driver needs `beside_mb` beside it."""
        return shape_mb + self.beside_mb

    def missing(self, memory_mb: int, child: bool) -> int:
        """How many MB must be freed before `memory_mb` may be reserved; 0 or less: none."""
        kept_back = 0 if child else int(self.total_mb * CHILD_SHARE)
        return memory_mb + kept_back - self.free_mb

    @property
    def free_mb(self) -> int:
        return self.total_mb - self.used_mb

    def reserve(self, memory_mb: int) -> bool:
        if memory_mb > self.free_mb:
            return False
        self.used_mb += memory_mb
        return True

    def give_back(self, memory_mb: int) -> None:
        self.used_mb -= memory_mb


def machine_memory_mb() -> int:
    """What the kernel says is available now (MemAvailable), in MB."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) // 1024
    raise OSError("/proc/meminfo has no MemAvailable")
