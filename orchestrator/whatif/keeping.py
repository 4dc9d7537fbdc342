"""Policies that only keep instances alive: for a fixed time, by a histogram of idle times, by value while memory lasts."""

from collections import Counter, defaultdict

from graph.arrivals import Arrivals
from graph.ids import FunctionId
from graph.keepalive import window
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


class HybridHistogram(Policy):
    """Serverless in the Wild (ATC'20), each function by itself: unloaded after a call, loaded again before the next is due, kept
    until it is overdue (graph.keepalive)."""

    name = "hybrid histogram"

    def __init__(self) -> None:
        super().__init__()
        self._arrivals: dict[FunctionId, Arrivals] = defaultdict(Arrivals)
        self._coming: dict[FunctionId, Instance] = {}

    def wanted(self, function: FunctionId) -> None:
        self._arrivals[function].started(self.world.now)
        coming = self._coming.pop(function, None)
        if coming is not None and coming.state is State.SCHEDULED:
            self.world.give_up(coming)

    def keep_s(self, one: Instance) -> float:
        function = one.function
        assert function is not None
        known = self._arrivals[function]
        known.ended(self.world.now)
        held = window(known)
        if held.from_s <= 0.0 or known.running:
            return held.until_s
        coming = self._coming.get(function)
        if coming is not None:
            self.world.give_up(coming)
        start_s = self.world.starts.mean_s(function)
        self._coming[function] = self.world.prepare(
            one.run, function, max(0.0, held.from_s - start_s), max(0.0, held.until_s - held.from_s), "histogram"
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
