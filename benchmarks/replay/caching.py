"""Tier 1 of one node on a virtual clock: what starts find in it, and what is moved for them."""

import heapq
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from benchmarks.estimates import Estimate
from benchmarks.replay.policies import Policy, refetch_cost
from benchmarks.replay.starts import Use


@dataclass
class Moved:
    """What one replay came to."""

    starts: int = 0
    first: int = 0  # misses of code that was never here
    again: int = 0  # misses of code that had to go
    demanded_bytes: int = 0  # moved while a start waits
    ahead_bytes: int = 0  # moved in the background
    over_bytes: int = 0  # at most held over the bound, because all else was in use
    missed_at: list[float] = field(default_factory=list)

    @property
    def misses(self) -> int:
        return self.first + self.again


class Tier:
    """`bound` bytes of what is not in use: code of live instances stays, as on a node."""

    def __init__(self, policy: Policy, bound: int, sizes: Sequence[int]) -> None:
        self.moved = Moved()
        self._policy = policy
        self._bound = bound
        self._sizes = sizes
        self._pins: Counter[int] = Counter()
        self._known: set[int] = set()

    def __contains__(self, function: int) -> bool:
        return function in self._policy

    def pin(self, function: int) -> None:
        self._pins[function] += 1

    def unpin(self, function: int) -> None:
        self._pins[function] -= 1

    def start(self, function: int, now: float) -> bool:
        """An instance needs the code now. True when it is here; else it is fetched, whatever must go for it."""
        moved = self.moved
        moved.starts += 1
        if function in self._policy:
            self._policy.use(function)
            return True
        if function in self._known:
            moved.again += 1
        else:
            moved.first += 1
        moved.missed_at.append(now)
        moved.demanded_bytes += self._sizes[function]
        self.bring(function)
        return False

    def bring(self, function: int) -> None:
        """It comes, for a start or for a plan: others go as far as they may."""
        size = self._sizes[function]
        over = self._policy.size + size - self._bound
        if over > 0:
            self._policy.victims(over, self._may_go)
        self._add(function, size)
        self.moved.over_bytes = max(self.moved.over_bytes, self._policy.size - self._bound)

    def bring_ahead(self, function: int) -> bool:
        """It comes in the background, if there is room or if enough is worth less."""
        size = self._sizes[function]
        over = self._policy.size + size - self._bound
        if over > 0 and not self._policy.victims(
            over, self._may_go, self._policy.fresh(size, refetch_cost(size)), all_or_none=True
        ):
            return False
        self.moved.ahead_bytes += size
        self._add(function, size)
        return True

    def _add(self, function: int, size: int) -> None:
        self._known.add(function)
        self._policy.add(function, size, refetch_cost(size))

    def _may_go(self, function: int) -> bool:
        return self._pins[function] <= 0


def replay(uses: Iterable[Use], tier: Tier, tenants: Sequence[str] | None = None, most_called: Sequence[int] = ()) -> Moved:
    """All starts in their order. `tenants` (of each function) turns whole-tenant fetch on: a tenant's first start here brings
    all its code in the background, in the order of `most_called`; it is there by the next start."""
    ends: list[tuple[float, int]] = []
    hosted: set[str] = set()
    for use in uses:
        while ends and ends[0][0] <= use.begins:
            tier.unpin(heapq.heappop(ends)[1])
        tier.pin(use.function)
        heapq.heappush(ends, (use.ends, use.function))
        tier.start(use.function, use.begins)
        if tenants is not None and tenants[use.function] not in hosted:
            hosted.add(tenants[use.function])
            for other in most_called:
                if tenants[other] == tenants[use.function] and other not in tier and not tier.bring_ahead(other):
                    break
    return tier.moved


def outage(moved: Moved, lasts_s: float, of_s: float) -> Estimate:
    """Of all starts, those that miss tier 1 while tier 2 is away for `lasts_s` of `of_s` seconds: the mean over when that begins;
    low and high: the quietest such time and the worst."""
    at = np.asarray(moved.missed_at)
    begins = np.arange(0.0, of_s - lasts_s, 10.0)
    counts = (np.searchsorted(at, begins + lasts_s) - np.searchsorted(at, begins)) / moved.starts
    return Estimate(float(counts.mean()), float(counts.min()), float(counts.max()), len(begins))
