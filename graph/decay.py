"""Decayed shares: in which part of a caller's runs something happened, with recent runs counting more.

A plain exponential average forgets too slowly: at a half-life of 200 runs, something that happened every time and then
stops needs 865 runs to fall under 0.05. So each share keeps a second, fast average. When the two differ by more than chance
allows, or something stays away longer than chance allows, the fast one takes over for a while.

Everything is lazy: a run touches only the shares of what it reached, never those of what it missed.
"""

import math
from functools import lru_cache

import msgspec

HALF_LIFE = 200
FAST_HALF_LIFE = 20
SLOW = 0.5 ** (1 / HALF_LIFE)
FAST = 0.5 ** (1 / FAST_HALF_LIFE)

CHANGE_RUNS = 100  # how long the fast share counts after a change was noticed
_FAST_RUNS = (1 + FAST) / (1 - FAST)  # runs a plain mean of the same variance would need, about 58
_CHANGE_SIGMAS = 4.5
_CHANGE_SLACK = 0.05  # keeps a share of exactly 1 or 0 from reacting to a single exception
_CHANGE_FACTOR = _CHANGE_SIGMAS**2 / _FAST_RUNS
_IMPROBABLE = math.log(1e-6)

PRIOR_WEIGHT = 20.0
PRIOR_HALF_LIFE = 50  # runs; at 200 a declared call that never comes would outlive the 200 runs it has to fall under 0.05

CAUTIOUS_RUNS = 20
_CAUTION = 0.2


class RunClock(msgspec.Struct, array_like=True, gc=False):
    """Counts the runs of one caller. Shares are read against it, so that a run that misses them costs them nothing.

    `ticks` counts the runs that decay what was before, `total` is their decayed number, `settled` grows to 1 and takes
    the fast share's start-up bias away.
    """

    runs: int = 0
    ticks: int = 0
    imports: int = 0  # runs that decayed nothing
    total: float = 0.0
    settled: float = 0.0

    def advance(self, decay: bool) -> None:
        self.runs += 1
        if decay:
            self.ticks += 1
            self.total = self.total * SLOW + 1.0
        else:
            self.imports += 1
            self.total += 1.0
        self.settled = self.settled * FAST + (1.0 - FAST)


class Share(msgspec.Struct, array_like=True, gc=False):
    """In which share of a clock's runs something happened. `count` and `fast` are as of tick `last`."""

    count: float = 0.0
    fast: float = 0.0
    last: int = 0
    changed_until: int = 0
    imports: int = 0

    def hit(self, clock: RunClock, decay: bool) -> None:
        """It happened in the run `clock` has just been advanced by. Call at most once a run."""
        before = clock.total - 1.0
        if not decay:
            gap = clock.ticks - self.last
            self.count = (self.count * SLOW**gap if gap else self.count) + 1.0
            self.fast = self.count / clock.total * clock.settled
            self.last = clock.ticks
            self.imports = clock.imports
            return
        gap = clock.ticks - self.last
        imported = self.imports != clock.imports
        if gap == 1 and not imported:  # it happened in the run before, too: nothing was missed
            share = self.count * SLOW / before if before > 0.0 else 0.0
            fast = self.fast
        else:
            settled_before = (clock.settled - (1.0 - FAST)) / FAST
            share, changed = self._estimate(gap - 1, before / SLOW, settled_before, clock.ticks - 1, imported)
            fast = share * settled_before if imported else self.fast * FAST ** (gap - 1)
            if changed:
                self.changed_until = clock.ticks + CHANGE_RUNS
        self.imports = clock.imports
        self.last = clock.ticks
        self.fast = fast = fast * FAST + (1.0 - FAST)
        slow = (share * before + 1.0) / clock.total
        recent = fast / clock.settled
        if (recent - slow) ** 2 > _CHANGE_FACTOR * (slow * (1.0 - slow) + _CHANGE_SLACK):
            self.changed_until = clock.ticks + CHANGE_RUNS
        self.count = (recent if self.changed_until > clock.ticks else slow) * clock.total

    def value(self, clock: RunClock) -> float:
        """The share now, from 0 to 1."""
        if clock.total <= 0.0:
            return 0.0
        gap = clock.ticks - self.last
        share, _ = self._estimate(gap, clock.total, clock.settled, clock.ticks, self.imports != clock.imports)
        return min(1.0, share)

    def changing(self, clock: RunClock) -> bool:
        """True while only the most recent runs count."""
        if clock.total <= 0.0:
            return False
        gap = clock.ticks - self.last
        return self._estimate(gap, clock.total, clock.settled, clock.ticks, self.imports != clock.imports)[1]

    def _estimate(self, gap: int, total: float, settled: float, ticks: int, imported: bool) -> tuple[float, bool]:
        """The share after `gap` misses, and whether the fast one counts. `total`, `settled`: the clock's at that time."""
        if total <= 0.0 or self.count <= 0.0:
            return 0.0, False
        slow = self.count * SLOW**gap / total
        if imported or not settled:  # the fast share saw none of the imported runs
            return slow, False
        if gap and self._improbable(gap, total):
            return min(slow, self.fast * FAST**gap / settled), True
        if ticks < self.changed_until:
            return (min(slow, self.fast * FAST**gap / settled) if gap else slow), True
        if gap and self.last < self.changed_until:  # missed through the end of its changing time
            fast_gap = self.changed_until - self.last
            return min(slow, self.fast * FAST**fast_gap * SLOW ** (gap - fast_gap) / settled), False
        return slow, False

    def _improbable(self, misses: int, total: float) -> bool:
        faded = SLOW**misses
        then = (total - (1.0 - faded) / (1.0 - SLOW)) / faded  # the clock's total when it last happened
        share = min(self.count / max(then, self.count), 1.0 - 1.0 / (max(then, self.count) + 2.0))
        return misses * math.log1p(-share) < _IMPROBABLE


def prior_weight(runs: int) -> float:
    """How many runs a declared call counts for, `runs` of its caller after it was declared."""
    return float(PRIOR_WEIGHT * 0.5 ** (runs / PRIOR_HALF_LIFE))


def cautious(share: float, runs: int) -> float:
    """`share`, or while it stands on fewer than 20 runs the lower 20 % bound of a Beta(1, 1) posterior."""
    if runs >= CAUTIOUS_RUNS or runs <= 0:
        return share
    return _lower_bound(min(runs, max(0, round(share * runs))), runs)


@lru_cache(maxsize=CAUTIOUS_RUNS * CAUTIOUS_RUNS)
def _lower_bound(hits: int, runs: int) -> float:
    """The 20 % quantile of Beta(1 + hits, 1 + runs - hits), by bisection of its binomial tail."""
    trials = runs + 1
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        tail = sum(math.comb(trials, k) * middle**k * (1 - middle) ** (trials - k) for k in range(hits + 1, trials + 1))
        low, high = (middle, high) if tail < _CAUTION else (low, middle)
    return (low + high) / 2
