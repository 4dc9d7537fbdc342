"""Which code goes first, by three policies with one face. Ours is the node's own (workers.code.eviction)."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Protocol

from workers.code.eviction import Gdsf, refetch_cost

ALWAYS = float("inf")


class Policy(Protocol):
    """What is held, in bytes, and who goes."""

    size: int

    def __contains__(self, key: int) -> bool: ...
    def add(self, key: int, size: int, cost: float) -> None: ...
    def use(self, key: int) -> None: ...
    def fresh(self, size: int, cost: float) -> float:
        """What an entry would be worth if it came now: ahead of need it makes only what is worth less go."""

    def victims(
        self, excess: int, may_go: Callable[[int], bool], below: float = ALWAYS, all_or_none: bool = False
    ) -> list[tuple[int, int]]:
        """Takes out what goes first until `excess` bytes are free, with its size."""


class _Ordered(ABC):
    """Counts and the order of uses; `_worth` says by which of them something goes."""

    def __init__(self) -> None:
        self.size = 0
        self._sizes: dict[int, int] = {}
        self._uses: dict[int, int] = {}
        self._last: dict[int, int] = {}
        self._number = 0

    def __contains__(self, key: int) -> bool:
        return key in self._sizes

    def add(self, key: int, size: int, cost: float) -> None:
        self._sizes[key] = size
        self.size += size
        self._uses[key] = 0
        self.use(key)

    def use(self, key: int) -> None:
        self._uses[key] += 1
        self._number += 1
        self._last[key] = self._number

    def victims(
        self, excess: int, may_go: Callable[[int], bool], below: float = ALWAYS, all_or_none: bool = False
    ) -> list[tuple[int, int]]:
        chosen: list[int] = []
        freed = 0
        for key in sorted(self._sizes, key=lambda key: (self._worth(key), self._last[key])):
            if freed >= excess or self._worth(key) >= below:
                break
            if may_go(key):
                chosen.append(key)
                freed += self._sizes[key]
        if all_or_none and freed < excess:
            return []
        return [(key, self._remove(key)) for key in chosen]

    def _remove(self, key: int) -> int:
        size = self._sizes.pop(key)
        self.size -= size
        del self._uses[key], self._last[key]
        return size

    @abstractmethod
    def _worth(self, key: int) -> float: ...


class Lru(_Ordered):
    """What was used longest ago goes first."""

    def fresh(self, size: int, cost: float) -> float:
        return ALWAYS

    def _worth(self, key: int) -> float:
        return self._last[key]


class Lfu(_Ordered):
    """What was used least often since it came goes first; of equals the one used longest ago."""

    def fresh(self, size: int, cost: float) -> float:
        return 1.0 + 1e-9  # others that were used once give way, as if it came for a use

    def _worth(self, key: int) -> float:
        return self._uses[key]


POLICIES: dict[str, Callable[[], Policy]] = {"lru": Lru, "lfu": Lfu, "gdsf": Gdsf[int]}

__all__ = ["POLICIES", "Policy", "refetch_cost"]
