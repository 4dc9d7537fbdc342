"""Runs of a real system's workflows, and the planner's own plans for them: which stages' code is in tier 1 when they are called.

The runs are Train-Ticket's (examples/trainticket): the earlier half of the traces teaches the call graph, the later half is
run, in an order drawn from a seed. Every trace begins at the system's gateway; what a user asked for, one call further down,
is the entry here.
"""

import gzip
import heapq
import io
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.replay.caching import Tier
from benchmarks.replay.starts import KEEP_S, Use
from graph.callgraph import CallGraph
from graph.calls import Trace
from graph.ids import FunctionId, TenantId
from graph.planning import plan
from graph.plans import Budget, Prices, Trigger
from graph.prediction import predict
from tracing.assembly import traces_of
from tracing.formats import trainticket
from workers.code.eviction import AT_ONCE
from workers.code.manifest import CHUNK_BYTES

TRACES = Path(__file__).parents[2] / "examples" / "trainticket" / "traces.csv.gz"
TENANT = TenantId("trainticket")
HOURS = 8
START_S = 0.1
"""From the order to prepare until an instance is ready, without its code: a clone and an init of 90 ms."""


@dataclass(frozen=True)
class Stage:
    """One call of a run: its function, when it is called after the entry began (all of it warm), how long it takes."""

    function: str
    caller: int  # stage number; -1: the entry
    offset_s: float
    duration_s: float


@dataclass(frozen=True)
class Run:
    entry: str
    duration_s: float
    stages: tuple[Stage, ...]


@dataclass(frozen=True)
class Transport:
    """What it costs to bring a package: `round_s` for the manifest and for each AT_ONCE chunks, and `bytes_per_s` for all that
    comes at the same time."""

    round_s: float
    bytes_per_s: float

    def rounds_s(self, size: int) -> float:
        return (1 + -(-size // (CHUNK_BYTES * AT_ONCE))) * self.round_s

    def together(self, sizes: Sequence[int]) -> list[float]:
        """Seconds until each of what begins to come at one time is here: the bytes a second are shared equally by what is not."""
        found = [0.0] * len(sizes)
        passed, before = 0.0, 0
        for done, place in enumerate(sorted(range(len(sizes)), key=lambda place: sizes[place])):
            passed += (sizes[place] - before) * (len(sizes) - done) / self.bytes_per_s
            before = sizes[place]
            found[place] = passed + self.rounds_s(sizes[place])
        return found


@dataclass
class Planned:
    """Starts of stages that a plan had ordered, by where their code was when the call came, and the others."""

    runs: int = 0
    entries: int = 0  # entries that had to start: nothing announces them
    entries_held: int = 0
    planned: int = 0
    planned_held: int = 0
    ordered_held: int = 0  # of the planned: here already when the order came
    waited_s: float = 0.0  # for code, by planned starts that came too early
    unplanned: int = 0
    unplanned_held: int = 0


def read() -> list[Trace]:
    """All recorded traces, the earliest first."""
    with gzip.open(TRACES, "rt", newline="") as text:
        return traces_of(TENANT, trainticket.read(io.StringIO(text.read(), newline="")))[0]


def halves(traces: Sequence[Trace]) -> tuple[Sequence[Trace], list[Run]]:
    """The earlier half to learn from; what users asked for in the later one, as far as it calls anything."""
    middle = len(traces) // 2
    return traces[:middle], [run for trace in traces[middle:] for run in runs_below(trace) if run.stages]


def runs_below(trace: Trace) -> list[Run]:
    """One run for each call that the trace's entry made."""
    found = []
    for number, call in enumerate(trace.calls):
        if call.caller_index >= 0:
            continue
        mine, stages = {number: -1}, []
        for index, below in enumerate(trace.calls):
            if below.caller_index in mine and index not in mine:
                stages.append(
                    Stage(below.callee, mine[below.caller_index], max(0.0, below.offset_s - call.offset_s), below.duration_s)
                )
                mine[index] = len(stages) - 1
        found.append(Run(call.callee, call.duration_s, tuple(stages)))
    return found


def learned(traces: Sequence[Trace]) -> CallGraph:
    graph = CallGraph()
    for trace in traces:
        graph.observe(trace, now=0.0, decay=False)
    return graph


def functions_of(runs: Sequence[Run], traces: Sequence[Trace]) -> list[str]:
    names = {call.callee for trace in traces for call in trace.calls} | {run.entry for run in runs}
    return sorted(names | {stage.function for run in runs for stage in run.stages})


def most_called(traces: Sequence[Trace], names: Sequence[str]) -> list[int]:
    """Places in `names`, those called most in `traces` first."""
    calls = Counter(call.callee for trace in traces for call in trace.calls)
    return sorted(range(len(names)), key=lambda place: -calls[FunctionId(names[place])])


def arrivals(runs: Sequence[Run], gap_s: float, seed: int) -> Iterator[tuple[float, Run]]:
    """Runs drawn with replacement, at times of a Poisson process with `gap_s` between two, for HOURS."""
    source = random.Random(seed)
    now = source.expovariate(1 / gap_s)
    while now < HOURS * 3600:
        yield now, source.choice(runs)
        now += source.expovariate(1 / gap_s)


class Node:
    """Tier 1 with the workflows' instances on it, one of each function at most: further ones need the same code."""

    def __init__(
        self, tier: Tier, numbers: dict[str, int], sizes: Sequence[int], transport: Transport, keep_s: float = KEEP_S
    ) -> None:
        self.planned = Planned()
        self._tier = tier
        self._numbers = numbers
        self._sizes = sizes
        self._transport = transport
        self._keep_s = keep_s
        self._until: dict[str, float] = {}  # function -> when its idle instance goes
        self._here_at: dict[int, float] = {}  # what is on its way
        self._unpin: list[tuple[float, int]] = []
        self._line_free_at = 0.0

    def settle(self, now: float) -> None:
        """What ends by `now` is no longer in use."""
        while self._unpin and self._unpin[0][0] <= now:
            self._tier.unpin(heapq.heappop(self._unpin)[1])

    def run(self, run: Run, now: float, graph: CallGraph, budget: Budget) -> None:
        """A run begins: its entry and the plan for it, their code on its way together; then its stages when they are called."""
        self.planned.runs += 1
        entry_late, missing = 0.0, []
        if starts := self._needs_start(run.entry, now):
            number = self._numbers[run.entry]
            held = self._tier.start(number, now)
            self.planned.entries += 1
            self.planned.entries_held += held
            missing = [] if held else [number]
        ordered = self._order(FunctionId(run.entry), now, missing, graph, budget)
        if starts:
            entry_late = self._waits(self._numbers[run.entry], now) + START_S
        self._used(run.entry, now + entry_late + run.duration_s)
        late = [0.0] * len(run.stages)
        for number, stage in enumerate(run.stages):
            behind = entry_late if stage.caller < 0 else late[stage.caller]
            late[number] = behind + self._stage(stage.function, now + behind + stage.offset_s, ordered)
            self._used(stage.function, now + late[number] + stage.offset_s + stage.duration_s)

    def _order(
        self, entry: FunctionId, now: float, missing: list[int], graph: CallGraph, budget: Budget
    ) -> dict[str, tuple[float, bool]]:
        """When each instance that the plan orders is ready, and whether its code was here already. `missing`: what comes with
        it."""
        idle = Counter({FunctionId(name): 1 for name, until in self._until.items() if until > now})
        made = plan(predict(graph, entry), Prices(), budget, idle, now, tenant=TENANT, entry=entry, trigger=Trigger.INVOCATION)
        held: dict[str, bool] = {}
        for decision in made.decisions:
            number = self._numbers.get(decision.function)
            if number is None or decision.function in held:
                continue
            self._pin(number, now + decision.expires_s)
            held[decision.function] = number in self._tier
            if number not in self._tier:
                self._tier.bring(number)
                missing.append(number)
        self._come(missing, now)
        return {name: (now + self._waits(self._numbers[name], now) + START_S, here) for name, here in held.items()}

    def _stage(self, function: str, called: float, ordered: dict[str, tuple[float, bool]]) -> float:
        """How long the call waits until it runs."""
        if not self._needs_start(function, called):
            return 0.0
        number = self._numbers[function]
        was_here = number in self._tier and self._waits(number, called) == 0.0
        if not self._tier.start(number, called):
            self._come([number], called)
        waits = self._waits(number, called)
        ready = ordered.pop(function, None)
        if ready is None:
            self.planned.unplanned += 1
            self.planned.unplanned_held += was_here
            return waits + START_S
        self.planned.planned += 1
        self.planned.planned_held += was_here
        self.planned.ordered_held += ready[1]
        self.planned.waited_s += waits
        return max(0.0, ready[0] - called)

    def _needs_start(self, function: str, now: float) -> bool:
        return self._until.get(function, -1.0) <= now

    def _waits(self, number: int, now: float) -> float:
        return max(0.0, self._here_at.get(number, 0.0) - now)

    def _come(self, numbers: Sequence[int], now: float) -> None:
        """They come together, after what is on the line already."""
        begins = max(now, self._line_free_at)
        for number, seconds in zip(numbers, self._transport.together([self._sizes[one] for one in numbers]), strict=True):
            self._here_at[number] = begins + seconds
            self._line_free_at = max(self._line_free_at, begins + seconds)

    def _used(self, function: str, ends: float) -> None:
        self._until[function] = max(self._until.get(function, 0.0), ends + self._keep_s)
        self._pin(self._numbers[function], ends + self._keep_s)

    def _pin(self, number: int, until: float) -> None:
        self._tier.pin(number)
        heapq.heappush(self._unpin, (until, number))


def replay(
    node: Node,
    tier: Tier,
    beside: Sequence[Use],
    runs: Iterator[tuple[float, Run]],
    graph: CallGraph,
    ahead: Sequence[int] = (),
    budget: Budget | None = None,
) -> Planned:
    """The workflows' runs and, between them, the instances of other functions on the same node. `ahead`: the workflows'
    functions, the most called first; their code comes in the background after their tenant's first run here, as far as there is
    room."""
    budget = budget or Budget()
    ends: list[tuple[float, int]] = []
    others = iter(beside)
    other = next(others, None)
    for now, run in runs:
        while other is not None and other.begins <= now:
            node.settle(other.begins)
            while ends and ends[0][0] <= other.begins:
                tier.unpin(heapq.heappop(ends)[1])
            tier.pin(other.function)
            heapq.heappush(ends, (other.ends, other.function))
            tier.start(other.function, other.begins)
            other = next(others, None)
        node.settle(now)
        while ends and ends[0][0] <= now:
            tier.unpin(heapq.heappop(ends)[1])
        node.run(run, now, graph, budget)
        if node.planned.runs == 1:
            for number in ahead:
                if number not in tier and not tier.bring_ahead(number):
                    break
    return node.planned
