"""Records and imported traces into the graph and the run book."""

from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from graph.callgraph import CallGraph
from graph.calls import Trace
from orchestrator.planner.runs import RunBook
from tracing.assembly import records_to_trace
from tracing.records import InvocationRecord

log = structlog.get_logger(__name__)

GRACE_S = 0.2
"""A run is learned this long after its entry's record came: children's records may come through another gateway."""
WAITING = 20_000


@dataclass(slots=True)
class Counters:
    """What was learned and what was not, by reason; shown by `foreglow status`."""

    observed: int = 0
    refused: int = 0  # they contradict themselves
    records: int = 0
    dropped_by_gateways: int = 0
    dropped_waiting: int = 0


class Learner:
    """Calls feed the graph once per run. Takes `now`; the loop calls `settle` a few times a second."""

    def __init__(self, graph: CallGraph, runs: RunBook) -> None:
        self.counters = Counters()
        self._graph = graph
        self._runs = runs
        self._due: dict[str, float] = {}  # trace id -> when to learn it

    def add(self, records: Sequence[InvocationRecord], dropped: int, now: float) -> None:
        self.counters.dropped_by_gateways = dropped
        for record in records:
            self.counters.records += 1
            self._runs.add(record)
            if not record.parent_id:
                if len(self._due) < WAITING:
                    self._due[record.trace_id] = now + GRACE_S
                else:
                    self.counters.dropped_waiting += 1

    def settle(self, now: float) -> None:
        """Learns the runs whose grace is over."""
        for trace_id in [one for one, due in self._due.items() if due <= now]:
            del self._due[trace_id]
            records = self._runs.records(trace_id)
            if not records:  # newer runs made room of it in the book
                self.counters.dropped_waiting += 1
                continue
            try:
                traces = [records_to_trace(records)]
            except ValueError as error:
                self.counters.refused += 1
                log.warning("trace.refused", trace=trace_id, error=str(error))
            else:
                self.observe(traces, now)

    def observe(self, traces: Sequence[Trace], now: float, decay: bool = True) -> int:
        """Returns how many were learned; those that contradict themselves are counted and left out."""
        before = self.counters.observed
        for trace in traces:
            try:
                self._graph.observe(trace, now, decay)
            except ValueError as error:
                self.counters.refused += 1
                log.warning("trace.refused", trace=trace.trace_id, error=str(error))
            else:
                self.counters.observed += 1
        return self.counters.observed - before
