"""What the last seconds were like: samples of uneven length, averaged by their time. Bounded by time and by number."""

import math
from collections import deque

from orchestrator.scaling.terms import Observed

MOST = 600
"""Samples kept, however short ticks are."""


class Windows:
    """Samples of the last `keep_s` seconds: of all of them their sum, and whole those of the last `recent_s`. `now` never goes
    back."""

    __slots__ = ("_area", "_areas", "_at", "_keep_s", "_length", "_lengths", "_recent", "_recent_length", "_recent_s", "_stirred")

    def __init__(self, keep_s: float, recent_s: float = 6.0) -> None:
        self._keep_s, self._recent_s = keep_s, recent_s
        self._area = self._length = 0.0  # sums of those below; what their last bits lose is far below any bound
        self._at: deque[float] = deque()
        self._lengths: deque[float] = deque()
        self._areas: deque[float] = deque()
        self._recent: deque[tuple[float, float, int, int]] = deque()  # length, area, peak, roots
        self._recent_length = 0.0
        self._stirred = -math.inf  # when something happened last

    def __len__(self) -> int:
        return len(self._at)

    def add(self, now: float, observed: Observed) -> None:
        """The tick that ends at `now`."""
        tick_s, peak = observed.tick_s, observed.peak
        area = observed.concurrency * tick_s
        if peak or area or observed.arrivals:
            self._stirred = now
        at, lengths, areas, recent = self._at, self._lengths, self._areas, self._recent
        at.append(now)
        lengths.append(tick_s)
        areas.append(area)
        self._area += area
        self._length += tick_s
        oldest = now - self._keep_s + 1e-6
        while at[0] <= oldest or len(at) > MOST:
            at.popleft()
            self._area -= areas.popleft()
            self._length -= lengths.popleft()
        recent.append((tick_s, area, peak, observed.roots))
        self._recent_length += tick_s
        while self._recent_length - recent[0][0] >= self._recent_s - 1e-6 or len(recent) > len(at):
            self._recent_length -= recent.popleft()[0]

    def mean(self) -> float:
        """Concurrency, over all of what is kept."""
        return max(0.0, self._area) / self._length if self._length > 0.0 else 0.0

    def mean_over(self, seconds: float) -> float:
        """Concurrency of the last so many seconds, nothing having been there before what is kept."""
        return max(0.0, self._area) / max(seconds, self._length)

    def mean_recent(self) -> float:
        """Concurrency of the last `recent_s`; of less where there is no more."""
        length = sum([one[0] for one in self._recent])
        return sum([one[1] for one in self._recent]) / length if length > 0.0 else 0.0

    def peak_recent(self) -> int:
        return max([one[2] for one in self._recent], default=0)

    def roots_per_s(self, seconds: float) -> float:
        """Invocations from outside, of the last so many seconds, `recent_s` at most."""
        count, length = 0, 0.0
        for tick_s, _, _, roots in reversed(self._recent):
            count += roots
            length += tick_s
            if length >= seconds - 1e-6:
                break
        return count / length if length > 0.0 else 0.0

    def silent(self) -> bool:
        """Nothing happened in all that is kept."""
        return not self._at or self._stirred < self._at[0]
