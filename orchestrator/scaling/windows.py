"""What the last seconds were like: samples of uneven length, averaged by their time. Bounded by time and by number."""

from collections import deque

from orchestrator.scaling.terms import Observed

MOST = 600
"""Samples kept, however short ticks are."""


class Windows:
    """Samples of the last `keep_s` seconds. `now` never goes back."""

    __slots__ = ("_area", "_areas", "_arrivals", "_at", "_keep_s", "_length", "_lengths", "_peaks", "_roots")

    def __init__(self, keep_s: float) -> None:
        self._keep_s = keep_s
        self._area = self._length = 0.0  # sums of those below; what their last bits lose is far below any bound
        self._at: deque[float] = deque()
        self._lengths: deque[float] = deque()
        self._areas: deque[float] = deque()
        self._peaks: deque[int] = deque()
        self._arrivals: deque[int] = deque()
        self._roots: deque[int] = deque()

    def __len__(self) -> int:
        return len(self._at)

    def add(self, now: float, observed: Observed) -> None:
        """The tick that ends at `now`."""
        self._at.append(now)
        self._lengths.append(observed.tick_s)
        area = observed.concurrency * observed.tick_s
        self._areas.append(area)
        self._area += area
        self._length += observed.tick_s
        self._peaks.append(observed.peak)
        self._arrivals.append(observed.arrivals)
        self._roots.append(observed.roots)
        oldest = now - self._keep_s + 1e-6
        while self._at[0] <= oldest or len(self._at) > MOST:
            self._area -= self._areas[0]
            self._length -= self._lengths[0]
            for held in (self._at, self._lengths, self._areas, self._peaks, self._arrivals, self._roots):
                held.popleft()

    def mean(self) -> float:
        """Concurrency, over all of what is kept."""
        return max(0.0, self._area) / self._length if self._length > 0.0 else 0.0

    def mean_over(self, seconds: float) -> float:
        """Concurrency of the last so many seconds, nothing having been there before what is kept."""
        return max(0.0, self._area) / max(seconds, self._length)

    def mean_of(self, seconds: float) -> float:
        """Concurrency of the last so many seconds; of less where there is no more."""
        area = length = 0.0
        for held, tick_s in zip(reversed(self._areas), reversed(self._lengths), strict=True):
            area += held
            length += tick_s
            if length >= seconds - 1e-6:
                break
        return area / length if length > 0.0 else 0.0

    def peak_of(self, seconds: float) -> int:
        most, length = 0, 0.0
        for peak, tick_s in zip(reversed(self._peaks), reversed(self._lengths), strict=True):
            most = max(most, peak)
            length += tick_s
            if length >= seconds - 1e-6:
                break
        return most

    def roots_per_s(self, seconds: float) -> float:
        """Invocations from outside, of the last so many seconds."""
        count, length = 0, 0.0
        for roots, tick_s in zip(reversed(self._roots), reversed(self._lengths), strict=True):
            count += roots
            length += tick_s
            if length >= seconds - 1e-6:
                break
        return count / length if length > 0.0 else 0.0

    def silent(self) -> bool:
        """Nothing happened in all that is kept."""
        return not any(self._peaks) and not any(self._arrivals) and not any(self._areas)
