"""What runs are still going to call, for functions that can be prepared. Kept for a moment: a burst of the same workflow asks the
same question."""

import time
from collections import OrderedDict
from collections.abc import Sequence

from graph.callgraph import CallGraph
from graph.ids import FunctionId
from graph.plans import ExpectedCall, Skipped
from graph.prediction import predict
from orchestrator.catalog.watch import RouteTable
from workers.versions import VersionSpec

KEPT_S = 0.25
KEPT = 5_000


class Forecasts:
    """Predictions about deployed functions, and which version of each would be prepared."""

    def __init__(self, graph: CallGraph, table: RouteTable) -> None:
        self._graph = graph
        self._table = table
        self._kept: OrderedDict[tuple[str, ...], tuple[float, list[ExpectedCall]]] = OrderedDict()

    def latest(self, function: FunctionId) -> VersionSpec | None:
        """The version that serves; None: not deployed."""
        route = self._table.routes.get(function)
        return self._table.version(route, "") if route is not None else None

    def expected(self, entry: FunctionId, seen: Sequence[FunctionId]) -> tuple[list[ExpectedCall], list[Skipped]]:
        """After the stages in `seen`, those that are deployed and those that are not."""
        now = time.monotonic()
        key = (entry, *seen)
        kept = self._kept.get(key)
        if kept is None or now - kept[0] > KEPT_S:
            kept = (now, predict(self._graph, entry, seen))
            self._kept[key] = kept
            self._kept.move_to_end(key)
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        expected, skipped = [], []
        for one in kept[1]:
            if self.latest(one.function) is None:
                skipped.append(Skipped(one.function, "not deployed", one.reach))
            else:
                expected.append(one)
        return expected, skipped

    def forget(self) -> None:
        """Asks the graph again, whatever was asked a moment ago."""
        self._kept.clear()
