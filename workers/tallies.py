"""Counts and times kept on the way, as plain numbers: whoever asks for them turns them into something else.

Adding one costs a few hundred nanoseconds; nothing is locked, because each is touched by one event loop only.
"""

from bisect import bisect_left
from collections.abc import Sequence

from tracing.records import Timings

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper bounds of times, from half a millisecond to half a minute."""

STEPS = ("queue", "clone", "code", "net", "init")  # and `place`, which the gateway adds


class Histogram:
    """How many values fell under each bound, and their sum. `counts` has one place more than `bounds`, for what is over all."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float] = SECONDS) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0

    def __len__(self) -> int:
        return sum(self.counts)

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


class StartTimes:
    """Starts by kind: how long each took in all, and in each step that happened."""

    __slots__ = ("steps", "whole")

    def __init__(self) -> None:
        self.whole: dict[str, Histogram] = {}
        self.steps: dict[tuple[str, str], Histogram] = {}

    def add(self, kind: str, timings: Timings, place_ms: float = 0.0) -> None:
        waited_ms = timings.start_ms
        whole = self.whole.get(kind)
        if whole is None:
            whole = self.whole[kind] = Histogram()
        whole.add((waited_ms + place_ms) / 1000)
        if place_ms > 0:
            self._step(kind, "place", place_ms)
        if waited_ms > 0:  # a warm one has waited for nothing
            for step in STEPS:
                if (spent_ms := getattr(timings, step)) > 0:
                    self._step(kind, step, spent_ms)

    def _step(self, kind: str, step: str, spent_ms: float) -> None:
        found = self.steps.get((kind, step))
        if found is None:
            found = self.steps[kind, step] = Histogram()
        found.add(spent_ms / 1000)
