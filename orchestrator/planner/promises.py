"""Which idle instances are spoken for by live runs, so that two plans never count on the same one. Pure bookkeeping."""

from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from graph.ids import FunctionId, TenantId
from graph.plans import PrewarmDecision

LIVE_RUNS = 10_000
RUN_S = 1000.0
"""No run lasts longer than its entry's timeout (900 s at most): an older one ended without our hearing of it."""


@dataclass(slots=True, eq=False)
class LiveRun:
    """A run between its trigger and its end. `promised`: instances per function it still counts on. `seen`: the stages that have
    started, `seen_at_s` when, from when the run began; `used`: of them, those that are known to have found an instance, `warm`
    those that are going to find one that was idle."""

    trace_id: str
    tenant: TenantId
    entry: FunctionId
    seen: list[FunctionId] = field(default_factory=list)
    seen_at_s: list[float] = field(default_factory=list)
    used: Counter[FunctionId] = field(default_factory=Counter)
    warm: Counter[FunctionId] = field(default_factory=Counter)
    promised: Counter[FunctionId] = field(default_factory=Counter)
    decisions: dict[str, PrewarmDecision] = field(default_factory=dict)
    began: float = 0.0
    foreseen: dict[FunctionId, float] = field(default_factory=dict)  # when it began: the probability of each function


class Promises:
    """Live runs, the newest LIVE_RUNS; totals are kept so that a look costs nothing. `now` never goes back. `dropped`: runs that
    made room, or of whose end nobody told."""

    def __init__(self, dropped: Callable[[LiveRun], None] = lambda run: None) -> None:
        self._dropped = dropped
        self._runs: OrderedDict[str, LiveRun] = OrderedDict()
        self._totals: Counter[FunctionId] = Counter()

    def __len__(self) -> int:
        return len(self._runs)

    def get(self, trace_id: str) -> LiveRun | None:
        return self._runs.get(trace_id)

    def begin(self, trace_id: str, tenant: TenantId, entry: FunctionId, now: float) -> LiveRun:
        self._drop(trace_id)
        run = self._runs[trace_id] = LiveRun(trace_id, tenant, entry, began=now)
        while True:
            oldest = next(iter(self._runs.values()))
            if len(self._runs) <= LIVE_RUNS and oldest.began >= now - RUN_S:
                return run
            self._drop(oldest.trace_id)

    def _drop(self, trace_id: str) -> None:
        run = self.end(trace_id)
        if run is not None:
            self._dropped(run)

    def promise(self, run: LiveRun, function: FunctionId, count: int) -> None:
        run.promised[function] += count
        self._totals[function] += count

    def started(self, run: LiveRun, function: FunctionId, now: float) -> None:
        """A stage of the run took its instance."""
        run.seen.append(function)
        run.seen_at_s.append(max(0.0, now - run.began))
        if run.warm[function] > 0:
            run.warm[function] -= 1
            run.used[function] += 1
        self.release(run, function)

    def release(self, run: LiveRun, function: FunctionId) -> None:
        """The run counts on one less of them, if it did."""
        if run.promised[function] > 0:
            run.promised[function] -= 1
            self._subtract(function, 1)

    def keep_only(self, run: LiveRun, functions: set[FunctionId]) -> None:
        """The run counts on nothing but these any more."""
        for function in [one for one in run.promised if one not in functions]:
            self._subtract(function, run.promised.pop(function))

    def end(self, trace_id: str) -> LiveRun | None:
        run = self._runs.pop(trace_id, None)
        if run is not None:
            self.keep_only(run, set())
        return run

    def forget_tenant(self, tenant: str) -> None:
        """Its runs end without a word: what would be learned or given up at their end is nobody's."""
        for trace_id in [one for one, run in self._runs.items() if run.tenant == tenant]:
            self.end(trace_id)

    def total(self, function: FunctionId) -> int:
        return self._totals[function]

    def _subtract(self, function: FunctionId, count: int) -> None:
        left = self._totals[function] - count
        if left > 0:
            self._totals[function] = left
        else:
            del self._totals[function]
