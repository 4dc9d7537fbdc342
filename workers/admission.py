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
    """At most `cores` steps of the platform that hold a CPU (clone, unpack, template) run at once. As many of those that requests
    wait for do, whatever else is under way; while one of them runs no other begins. So a speculative step keeps nobody's place,
    and of those that share a core with a request's there are no more than had begun before it came.

    User code holds no slot: it is bounded by memory. A queued step can be moved ahead when a request adopts its instance.
    """

    def __init__(self, cores: int, yielding: bool = True) -> None:
        """Not `yielding`: steps that mostly wait, which do not hinder each other."""
        self._cores = cores
        self._yielding = yielding
        self._demanded = 0  # steps inside that requests wait for
        self._others = 0
        self._queue: list[_Waiter] = []
        self._numbers = 0

    async def enter(self, priority: float, key: object = None) -> float:
        """Waits for a place. Returns the priority under which it was given, for `leave`."""
        if self._room(priority) and (not self._queue or priority < self._queue[0].priority):
            self._count(priority, 1)
            return priority
        self._numbers += 1
        waiter = _Waiter(priority, self._numbers, key, asyncio.get_running_loop().create_future())
        heapq.heappush(self._queue, waiter)
        try:
            await waiter.turn
        except asyncio.CancelledError:
            if waiter.turn.done() and not waiter.turn.cancelled():
                self.leave(waiter.priority)  # the place was handed over just before
            else:
                self._queue = [one for one in self._queue if one is not waiter]
                heapq.heapify(self._queue)
            raise
        return waiter.priority

    def leave(self, priority: float) -> None:
        self._count(priority, -1)
        self._admit()

    def hurry(self, key: object) -> None:
        """Puts the queued step of `key` first among on-demand ones."""
        for waiter in self._queue:
            if waiter.key is key:
                waiter.priority = ON_DEMAND
        heapq.heapify(self._queue)
        self._admit()

    def _room(self, priority: float) -> bool:
        if priority > ON_DEMAND:
            demanded = self._cores if self._yielding and self._demanded else self._demanded
            return demanded + self._others < self._cores
        return self._demanded < self._cores

    def _count(self, priority: float, step: int) -> None:
        if priority > ON_DEMAND:
            self._others += step
        else:
            self._demanded += step

    def _admit(self) -> None:
        while self._queue and self._room(self._queue[0].priority):
            waiter = heapq.heappop(self._queue)
            if not waiter.turn.done():
                self._count(waiter.priority, 1)
                waiter.turn.set_result(None)

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
