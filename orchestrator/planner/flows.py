"""What feed-forward stands on: whom a run of a function calls, and how long one invocation holds its instance. Bounded."""

import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence

from graph.callgraph import CallGraph
from graph.ids import FunctionId, tenant_of
from tracing.records import InvocationRecord

FUNCTIONS, SMOOTHING = 20_000, 0.1
CALLS_S = 5.0
"""What the graph said holds for so long."""


class Flows:
    def __init__(self, graph: CallGraph) -> None:
        self._graph = graph
        self._holds: OrderedDict[FunctionId, float] = OrderedDict()
        self._calls: OrderedDict[FunctionId, tuple[float, Sequence[tuple[FunctionId, float]]]] = OrderedDict()

    def observe(self, records: Iterable[InvocationRecord]) -> None:
        """How long an invocation held its instance, smoothed exponentially."""
        for record in records:
            if record.status != "ok" or record.timings.run <= 0.0:
                continue
            function, held_s = FunctionId(record.function), record.timings.run / 1000
            before = self._holds.get(function)
            self._holds[function] = held_s if before is None else before + SMOOTHING * (held_s - before)
            self._holds.move_to_end(function)
            if len(self._holds) > FUNCTIONS:
                self._holds.popitem(last=False)

    def hold_s(self, function: FunctionId) -> float | None:
        """Seconds; None: never seen."""
        return self._holds.get(function)

    def calls_of(self, function: FunctionId) -> Sequence[tuple[FunctionId, float]]:
        """Whom a run of it calls, and how often on average."""
        now = time.monotonic()
        kept = self._calls.get(function)
        if kept is None or now - kept[0] > CALLS_S:
            kept = self._calls[function] = (now, tuple(self._graph.calls_of(function)))
            self._calls.move_to_end(function)
            if len(self._calls) > FUNCTIONS:
                self._calls.popitem(last=False)
        return kept[1]

    def forget(self, function: FunctionId) -> None:
        """It is not there any more."""
        self._holds.pop(function, None)
        self._calls.pop(function, None)

    def forget_tenant(self, tenant: str) -> None:
        for held in (self._holds, self._calls):
            for function in [one for one in held if tenant_of(one) == tenant]:
                del held[function]
