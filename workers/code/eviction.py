"""Which layers go first when there must be room: Greedy-Dual-Size-Frequency. Pure: no disk, no clock of the wall.

    priority = clock + frequency * cost / size

Each use of an entry sets its priority anew; the one with the lowest goes first, and the clock moves up to what it had, so that
what was used often long ago ages. L. Cherkasova, "Improving WWW Proxies Performance with Greedy-Dual-Size-Frequency Caching
Policy", HP Laboratories HPL-98-69R1, 1998. An entry here is a whole layer, because a start needs the whole of it.
"""

import heapq
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from workers.code.manifest import CHUNK_BYTES

SIZE_FLOOR = 4096
"""An entry takes at least a block; without a floor an empty one would outlive everything."""

AT_ONCE = 8
"""Chunks that one fetch has under way; see workers.code.fetching.AHEAD."""

Key = TypeVar("Key", bound=Hashable)


def refetch_cost(size: int) -> float:
    """How long `size` bytes would take to come again, in waits one after another: the manifest, then rounds of AT_ONCE chunks."""
    return 2.0 + max(0, size) / (CHUNK_BYTES * AT_ONCE)


@dataclass(slots=True)
class _Entry:
    size: int
    cost: float
    uses: int
    priority: float


class Gdsf(Generic[Key]):
    """Keys with their sizes in bytes, and the order in which they would go. Holds to no bound itself: `victims` is asked.

    Of equal priorities the one used longest ago goes first.
    """

    def __init__(self) -> None:
        self.clock = 0.0
        self.size = 0
        self._entries: dict[Key, _Entry] = {}
        self._queue: list[tuple[float, int, Key]] = []  # holds priorities that are no more, too
        self._numbers: dict[Key, int] = {}
        self._number = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: Key) -> bool:
        return key in self._entries

    def __iter__(self) -> Iterator[Key]:
        return iter(self._entries)

    def size_of(self, key: Key) -> int:
        return self._entries[key].size

    def priority(self, key: Key) -> float:
        return self._entries[key].priority

    def fresh(self, size: int, cost: float, uses: int = 1) -> float:
        """The priority that an entry would have if it came now."""
        return self.clock + uses * cost / max(size, SIZE_FLOOR)

    def add(self, key: Key, size: int, cost: float, uses: int = 1) -> None:
        """A new entry; one of that key is replaced and its uses count on."""
        old = self._entries.get(key)
        if old is not None:
            uses += old.uses
            self.remove(key)
        entry = _Entry(size, cost, uses, 0.0)
        self._entries[key] = entry
        self.size += size
        self._rank(key, entry)

    def use(self, key: Key) -> None:
        entry = self._entries[key]
        entry.uses += 1
        self._rank(key, entry)

    def remove(self, key: Key) -> int:
        """Out of the books, for whatever reason; does nothing to the clock. Returns its size. Raises KeyError."""
        entry = self._entries.pop(key)
        self.size -= entry.size
        del self._numbers[key]
        return entry.size

    def victims(
        self,
        excess: int,
        may_go: Callable[[Key], bool] = lambda key: True,
        below: float = float("inf"),
        all_or_none: bool = False,
    ) -> list[tuple[Key, int]]:
        """Takes out what goes first until `excess` bytes are free, and returns it with its size, in that order. Only what
        `may_go` and whose priority is under `below`; when that is not enough: all of it, or with `all_or_none` nothing."""
        chosen: list[Key] = []
        passed: list[tuple[float, int, Key]] = []
        freed = 0
        while freed < excess and self._queue:
            item = heapq.heappop(self._queue)
            priority, number, key = item
            if self._numbers.get(key) != number:
                continue  # it was used since, or is gone
            passed.append(item)
            if priority >= below:
                break
            if may_go(key):
                chosen.append(key)
                freed += self._entries[key].size
        if all_or_none and freed < excess:
            chosen = []
        gone = set(chosen)
        for item in passed:
            if item[2] not in gone:
                heapq.heappush(self._queue, item)
        for key in chosen:
            self.clock = max(self.clock, self._entries[key].priority)
        return [(key, self.remove(key)) for key in chosen]

    def _rank(self, key: Key, entry: _Entry) -> None:
        entry.priority = self.fresh(entry.size, entry.cost, entry.uses)
        self._number += 1
        self._numbers[key] = self._number
        heapq.heappush(self._queue, (entry.priority, self._number, key))
        if len(self._queue) > 2 * len(self._entries) + 64:
            self._queue = [(one.priority, self._numbers[key], key) for key, one in self._entries.items()]
            heapq.heapify(self._queue)
