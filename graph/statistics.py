"""What the call graph holds at each function and at each edge."""

import msgspec

from graph.calls import CallEdge
from graph.decay import SLOW, RunClock, Share, prior_weight
from graph.ids import FunctionId
from graph.plans import EdgeSource
from graph.reach import EntryReach
from graph.starts import StartTimes
from graph.timing import Reservoir, quantile

DEFAULT_MEMORY_MB = 128


class FunctionStatistics(msgspec.Struct, array_like=True, gc=False):
    """`deployed`: declare() named it. Otherwise it was observed, or is declared by a caller and not deployed.

    `start_s` is what programs before `starts` kept of start times; it is only read where `starts` has nothing yet.
    """

    memory_mb: int = DEFAULT_MEMORY_MB
    deployed: bool = False
    start_s: float | None = None
    reach: EntryReach = msgspec.field(default_factory=EntryReach)
    starts: StartTimes = msgspec.field(default_factory=StartTimes)

    def start_times(self) -> StartTimes:
        return self.starts if self.starts.smoothed is not None else StartTimes(self.start_s)


class EdgeStatistics(Share, array_like=True, gc=False):
    """Caller -> callee, in shares of the caller's runs.

    `declared_at`: the caller's number of runs when it declared the call, None when it did not. `calls` and `hits`: decayed
    calls, and runs with at least one.
    """

    declared_at: int | None = None
    calls: float = 0.0
    hits: float = 0.0
    traces: int = 0
    last_trace: str = ""
    offsets: Reservoir = msgspec.field(default_factory=Reservoir)

    def observe(self, clock: RunClock, decay: bool, calls: int, first_s: float, trace_id: str) -> None:
        self.hit(clock, decay)
        faded = SLOW if decay else 1.0
        self.calls = self.calls * faded + calls
        self.hits = self.hits * faded + 1.0
        self.offsets.offer(first_s, decay)
        if self.last_trace != trace_id:
            self.traces += 1
            self.last_trace = trace_id

    def prior(self, clock: RunClock) -> float:
        """The weight left of the declaration, in runs; 0 when there is none."""
        return 0.0 if self.declared_at is None else prior_weight(max(0, clock.runs - self.declared_at))

    def edge(self, caller: FunctionId, callee: FunctionId, clock: RunClock) -> CallEdge:
        prior = self.prior(clock)
        learned = self.value(clock)
        weighed = clock.total * learned + prior
        source = EdgeSource.LEARNED
        if self.declared_at is not None:
            source = EdgeSource.BOTH if self.traces else EdgeSource.DECLARED
        samples = self.offsets.samples()
        return CallEdge(
            caller=caller,
            callee=callee,
            probability=min(1.0, weighed / (clock.total + prior)) if weighed else 0.0,
            fan_out=self.calls / self.hits if self.hits else 1.0,
            weight=clock.total,
            traces=self.traces,
            source=str(source),
            offset_p50_s=quantile(samples, 0.5) if samples else None,
        )
