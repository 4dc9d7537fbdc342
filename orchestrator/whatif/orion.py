"""ORION (OSDI'22), section 5.3, right prewarming: the longest delay of each stage's start that the objective still allows."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from graph.calls import Trace
from graph.ids import FunctionId
from graph.timing import warm_offsets
from orchestrator.whatif.learning import MIN_REACH, UNUSED_S, Learning
from orchestrator.whatif.policy import Run

PROFILE = 100
PLANNED_EVERY = 25
PERCENTILE = 95
OBJECTIVE = 1.05
"""The 95th percentile of a run's duration may be this much over what it is with everything ready."""

STEPS = (8.0, 4.0, 2.0, 1.0)


@dataclass
class _Profile:
    """The last runs of an entry: when each function was first called (-1: not at all), and how long the run took, all warm."""

    first_s: deque[dict[FunctionId, float]] = field(default_factory=lambda: deque(maxlen=PROFILE))
    took_s: deque[float] = field(default_factory=lambda: deque(maxlen=PROFILE))
    seen: int = 0
    delays: dict[FunctionId, float] = field(default_factory=dict)


class Orion(Learning):
    """At the start of a run every function that 5 % of its runs reach is ordered, after its delay. Best first: of all functions
    the one is delayed further that saves most idle time, while the objective holds. A run that was late before a stage is late
    by the most that any of its stages was, because what comes after a wait comes later by it."""

    name = "orion"

    def __init__(self, keep_s: float) -> None:
        super().__init__(keep_s)
        self._profiles: dict[FunctionId, _Profile] = {}

    def taught(self, trace: Trace) -> None:
        self._learn(trace)

    def begins(self, run: Run) -> None:
        profile = self._profiles.get(run.entry)
        if profile is None:
            return
        if not profile.delays or profile.seen >= PLANNED_EVERY:
            profile.seen = 0
            profile.delays = self._delays(profile)
        for function, delay_s in profile.delays.items():
            if not self.world.free(function):
                self.world.prepare(run.number, function, delay_s, UNUSED_S)

    def ended(self, run: Run, trace: Trace) -> None:
        self._learn(trace)

    def _learn(self, trace: Trace) -> None:
        first: dict[FunctionId, float] = {}
        for call, at in zip(trace.calls, warm_offsets(trace), strict=True):
            first[call.callee] = min(first.get(call.callee, at), at)
        profile = self._profiles.setdefault(trace.entry, _Profile())
        profile.first_s.append(first)
        profile.took_s.append(trace.duration_s - trace.wait_s)
        profile.seen += 1

    def _delays(self, profile: _Profile) -> dict[FunctionId, float]:
        runs = len(profile.first_s)
        reached: dict[FunctionId, int] = {}
        for first in profile.first_s:
            for function in first:
                reached[function] = reached.get(function, 0) + 1
        functions = [function for function, count in reached.items() if count / runs >= MIN_REACH]
        if not functions:
            return {}
        called = np.array([[first.get(function, np.inf) for first in profile.first_s] for function in functions])
        starts = np.array([self.world.starts.mean_s(function) for function in functions])
        return dict(zip(functions, best_first(called, starts, profile.took_s), strict=True))


def best_first(called: NDArray[np.float64], starts: NDArray[np.float64], took_s: Sequence[float]) -> list[float]:
    """Seconds of delay of each function's start after the run's. `called[f, r]`: when run r calls f, infinite: it does not."""
    warm = np.array(took_s)
    allowed = OBJECTIVE * float(np.percentile(warm, PERCENTILE))
    delays = np.zeros(len(starts))
    earliest = np.where(np.isfinite(called), called, np.nan)
    grain = max(1e-3, float(np.nanmedian(earliest)) / 50)
    reach = np.isfinite(called).mean(axis=1)

    def late(tried: NDArray[np.float64]) -> float:
        lateness = np.maximum(0.0, (tried + starts)[:, None] - called).max(axis=0)
        return float(np.percentile(warm + lateness, PERCENTILE))

    # Nothing that is not late when started at once can be blamed on a delay.
    allowed = max(allowed, late(delays))
    slack = max(0.0, allowed - float(np.percentile(warm, PERCENTILE)))
    for step in STEPS:
        open_ones = list(range(len(starts)))
        while open_ones:
            # Idle time saved per step is the share of runs in which it would have idled; then what waits longest.
            open_ones.sort(key=lambda at: (-reach[at] * float(np.nanmedian(earliest[at]) > delays[at] + starts[at]), at))
            at = open_ones[0]
            tried = delays.copy()
            tried[at] += step * grain
            if tried[at] + starts[at] > float(np.nanmax(earliest[at])) + slack or late(tried) > allowed:
                open_ones.remove(at)
            else:
                delays = tried
    return [float(delay) for delay in delays]
