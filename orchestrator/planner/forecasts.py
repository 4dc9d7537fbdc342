"""What runs are still going to call, for functions that can be prepared. Kept for a moment: a burst of the same workflow asks the
same question."""

import time
from collections import OrderedDict
from collections.abc import Sequence

import msgspec

from graph.callgraph import CallGraph
from graph.ids import FunctionId
from graph.plans import ExpectedCall, Skipped
from graph.prediction import predict
from orchestrator.catalog.watch import RouteTable
from orchestrator.planner.setbacks import Setbacks
from orchestrator.planner.start_times import StartSources
from workers.versions import VersionSpec

KEPT_S = 0.25
KEPT = 5_000


class Forecasts:
    """Predictions about deployed functions, and which version of each would be prepared. `sources`: from where starts come."""

    def __init__(self, graph: CallGraph, table: RouteTable, sources: StartSources, setbacks: Setbacks) -> None:
        self._graph = graph
        self._table = table
        self._sources = sources
        self._setbacks = setbacks
        self._kept: OrderedDict[tuple[str, ...], tuple[float, list[ExpectedCall]]] = OrderedDict()

    def latest(self, function: FunctionId, trace_id: str = "") -> VersionSpec | None:
        """The version that serves, where there are two the one that this run gets; None: not deployed. By what an alias is sticky
        only the gateway knows: there it is the one that was there before."""
        route = self._table.routes.get(function)
        if route is None:
            return None
        alias = self._table.alias(route, "")
        return self._table.version(route, "", trace_id if alias is not None and not alias.sticky else "")

    def start_s(self, function: FunctionId) -> float:
        """Expected seconds to ready, from where its starts come now."""
        return self._graph.starts(function).expected_s(self._sources.tiers.get(function, ""))

    def expected(
        self, entry: FunctionId, seen: Sequence[FunctionId] = (), seen_at_s: Sequence[float] = ()
    ) -> tuple[list[ExpectedCall], list[Skipped]]:
        """After the stages in `seen`, those that can be prepared, and those that cannot with the reason.

        With `seen_at_s`, when these stages started in seconds from the run's start, the times are this run's own; no other asks
        the same.
        """
        if seen_at_s:
            foreseen = predict(self._graph, entry, seen, seen_at_s=seen_at_s, tiers=self._sources.tiers)
        else:
            foreseen = self._alike(entry, seen)
        expected, skipped = [], []
        for one in foreseen:
            spec = self.latest(one.function)
            why = "not deployed" if spec is None else self._setbacks.resting(spec.version, time.monotonic())
            if why:
                skipped.append(Skipped(one.function, why, one.reach))
            elif one.standby_s is not None and self._sources.tiers.get(one.function, "").endswith("/template"):
                expected.append(msgspec.structs.replace(one, standby_s=None))  # nodes prefer its function template
            else:
                expected.append(one)
        return expected, skipped

    def _alike(self, entry: FunctionId, seen: Sequence[FunctionId]) -> list[ExpectedCall]:
        now = time.monotonic()
        key = (entry, *seen)
        kept = self._kept.get(key)
        if kept is None or now - kept[0] > KEPT_S:
            kept = (now, predict(self._graph, entry, seen, tiers=self._sources.tiers))
            self._kept[key] = kept
            self._kept.move_to_end(key)
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return kept[1]

    def forget(self) -> None:
        """Asks the graph again, whatever was asked a moment ago."""
        self._kept.clear()
