"""Policies that only keep instances alive: for a fixed time, by a histogram of idle times, by value while memory lasts."""

from collections import Counter, deque
from typing import NamedTuple

from graph.ids import FunctionId
from orchestrator.whatif.instances import Instance, State
from orchestrator.whatif.policy import Policy


class KeepAlive(Policy):
    """An instance waits `keep_s` for its next call."""

    def __init__(self, keep_s: float) -> None:
        super().__init__()
        self.name = "keep-alive"
        self._keep_s = keep_s

    def keep_s(self, one: Instance) -> float:
        return self._keep_s


BIN_S = 60.0
BINS = 240
HEAD, TAIL, MARGIN = 0.05, 0.99, 0.10
OUT_OF_BOUNDS = 0.5
REPRESENTATIVE_CV = 2.0
FORECAST_PREWARM, FORECAST_KEEP = 0.85, 0.30
_FORECAST_FROM = 5


class Windows(NamedTuple):
    """Seconds after a call has ended: gone at once when `prewarm_s` > 0 and back then, until `until_s`."""

    prewarm_s: float
    until_s: float


class IdleTimes:
    """The idle times of one function, in 1-minute bins over 4 hours."""

    def __init__(self) -> None:
        self.bins = [0] * BINS
        self._count = 0
        self._squares = 0
        self._beyond: deque[float] = deque(maxlen=_FORECAST_FROM)
        self._beyond_count = 0

    def add(self, idle_s: float) -> None:
        at = int(idle_s // BIN_S)
        if at >= BINS:
            self._beyond.append(idle_s)
            self._beyond_count += 1
            return
        self._squares += 2 * self.bins[at] + 1
        self.bins[at] += 1
        self._count += 1

    def windows(self) -> Windows:
        """Serverless in the Wild (ATC'20), section 4.2. Its ARIMA forecast for functions called less often than the histogram
        reaches is the mean of the last 5 idle times here."""
        beyond = self._beyond_count
        if beyond and beyond / (self._count + beyond) >= OUT_OF_BOUNDS:
            forecast_s = sum(self._beyond) / len(self._beyond)
            return Windows(FORECAST_PREWARM * forecast_s, (FORECAST_PREWARM + FORECAST_KEEP) * forecast_s)
        squared_cv = BINS * self._squares / self._count**2 - 1.0 if self._count else 0.0
        if squared_cv < REPRESENTATIVE_CV**2:
            return Windows(0.0, BINS * BIN_S)
        head, tail = self._percentile(HEAD), self._percentile(TAIL)
        return Windows(head * BIN_S * (1 - MARGIN), (tail + 1) * BIN_S * (1 + MARGIN))

    def _percentile(self, share: float) -> int:
        left = share * self._count
        for at, count in enumerate(self.bins):
            left -= count
            if left <= 1e-9 and count:
                return at
        return BINS - 1


class HybridHistogram(Policy):
    """Each function by itself: unloaded after a call, loaded again before the next is due, kept until it is overdue."""

    name = "hybrid histogram"

    def __init__(self) -> None:
        super().__init__()
        self._times: dict[FunctionId, IdleTimes] = {}
        self._busy: Counter[FunctionId] = Counter()
        self._ended_at: dict[FunctionId, float] = {}
        self._coming: dict[FunctionId, Instance] = {}

    def wanted(self, function: FunctionId) -> None:
        if not self._busy[function] and function in self._ended_at:
            self._times.setdefault(function, IdleTimes()).add(self.world.now - self._ended_at[function])
        self._busy[function] += 1
        coming = self._coming.pop(function, None)
        if coming is not None and coming.state is State.SCHEDULED:
            self.world.give_up(coming)

    def keep_s(self, one: Instance) -> float:
        function = one.function
        assert function is not None
        self._busy[function] -= 1
        self._ended_at[function] = self.world.now
        prewarm_s, until_s = self._times.setdefault(function, IdleTimes()).windows()
        if prewarm_s <= 0.0 or self._busy[function]:
            return until_s
        coming = self._coming.get(function)
        if coming is not None:
            self.world.give_up(coming)
        start_s = self.world.starts.mean_s(function)
        self._coming[function] = self.world.prepare(
            one.run, function, max(0.0, prewarm_s - start_s), max(0.0, until_s - prewarm_s), "histogram"
        )
        return 0.0


class GreedyDual(Policy):
    """FaasCache (ASPLOS'21): nothing expires; when `capacity_gb` is full, the idle instance worth least goes.

    Worth: clock + frequency * start time / memory; the clock is what the last one that had to go was worth, and a function's
    frequency counts its calls since it last had no instance. What is busy stays, whatever the capacity.
    """

    def __init__(self, capacity_gb: float) -> None:
        super().__init__()
        self.name = "greedy dual"
        self._capacity_gb = capacity_gb
        self._clock = 0.0
        self._calls: Counter[FunctionId] = Counter()
        self._worth: dict[FunctionId, float] = {}
        self._instances: Counter[FunctionId] = Counter()
        self._idle: Counter[FunctionId] = Counter()

    def wanted(self, function: FunctionId) -> None:
        self._calls[function] += 1
        memory_gb = self.world.memory_mb(function) / 1024
        self._worth[function] = self._clock + self._calls[function] * self.world.starts.mean_s(function) / memory_gb

    def starting(self, function: FunctionId) -> None:
        self._make_room(self.world.memory_mb(function) / 1024)
        self._instances[function] += 1

    def keep_s(self, one: Instance) -> float:
        over_gb = self.world.alive_gb() - self._capacity_gb
        if over_gb > 0.0 and one.function is not None:
            self._make_room(0.0)
            if self.world.alive_gb() > self._capacity_gb:
                self._gone(one.function)
                return 0.0
        return float("inf")

    def _make_room(self, more_gb: float) -> None:
        while self.world.alive_gb() + more_gb > self._capacity_gb:
            idle = [function for function in self._instances if self.world.idle(function)]
            if not idle:
                return
            victim = min(idle, key=lambda function: (self._worth[function], function))
            self._clock = self._worth[victim]
            self.world.give_up(self.world.idle(victim)[0])
            self._gone(victim)

    def _gone(self, function: FunctionId) -> None:
        self._instances[function] -= 1
        if self._instances[function] <= 0:
            del self._instances[function]
            del self._calls[function]
