"""How long starts take, by where they come from: what nodes and gateways tell, into the graph. No I/O.

A tier is `<driver>/<source>`, as graph.starts has it: `process/template` (a function template), `process/clone/tier1` (the
tenant's template, with the code from there), `process/standby` (specialising one, whatever the code's way).
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping

from graph.callgraph import CallGraph
from graph.calls import StartKind
from graph.ids import FunctionId
from graph.timing import smoothed_start
from orchestrator.planner.log import LogEntry
from tracing.records import InvocationRecord, Timings
from workers.rpc.messages import DecisionUpdate

KNOWN = 20_000
STANDBY_MB = {"process": 4, "microvm": 40}
"""What a standby takes of a node's memory, where that is far below its shape."""

ON_DEMAND = {StartKind.COLD: "clone", StartKind.STANDBY: "standby"}


class StartSources:
    """`driver_of(node)`: empty while nothing is known of it."""

    def __init__(self, graph: CallGraph, driver_of: Callable[[str], str]) -> None:
        self._graph = graph
        self._driver_of = driver_of
        self._last: OrderedDict[FunctionId, str] = OrderedDict()
        self._clone_s: dict[str, float] = {}  # by driver

    @property
    def tiers(self) -> Mapping[FunctionId, str]:
        """From where the last start of each function came, and so most likely the next will."""
        return self._last

    def held_mb(self, entry: LogEntry) -> int:
        """What it holds of its node's memory while it is ready and unused."""
        return standby_mb(self._driver_of(entry.node), entry.memory_mb) if entry.level == "standby" else entry.memory_mb

    def clone_s(self, driver: str) -> float | None:
        """Expected seconds to make a standby; None before the first clone."""
        return self._clone_s.get(driver)

    def ready(self, entry: LogEntry, update: DecisionUpdate) -> None:
        """What a decision ordered is ready."""
        if not 0.0 <= update.start_s < math.inf:
            return
        driver = self._driver_of(entry.node)
        if entry.level == "ready":
            self._add(FunctionId(entry.function), _tier(driver, update.source, update.timings), update.start_s)
        if update.source == "clone" or entry.level == "standby":
            self._cloned(driver, update.timings)

    def observed(self, records: Iterable[InvocationRecord]) -> None:
        """Starts that requests waited for. Which of them were clones of a function template is not told: code that was fetched
        says it was none."""
        for record in records:
            source = ON_DEMAND.get(record.start)
            timings = record.timings
            if source is None or record.status != "ok" or record.decision_id:
                continue
            if record.start is StartKind.COLD and not timings.code_from:
                source = "template"
            driver = self._driver_of(record.node)
            seconds = (timings.clone + timings.code + timings.net + timings.init) / 1000
            self._add(FunctionId(record.function), _tier(driver, source, timings), seconds)
            if source == "clone":
                self._cloned(driver, timings)

    def forget_tenant(self, tenant: str) -> None:
        for function in [one for one in self._last if one.startswith(f"{tenant}/")]:
            del self._last[function]

    def _add(self, function: FunctionId, tier: str, seconds: float) -> None:
        self._graph.set_start_time(function, seconds, tier)
        self._last[function] = tier
        self._last.move_to_end(function)
        if len(self._last) > KNOWN:
            self._last.popitem(last=False)

    def _cloned(self, driver: str, timings: Timings) -> None:
        if timings.clone > 0:
            self._clone_s[driver] = smoothed_start(self._clone_s.get(driver), timings.clone / 1000)


def standby_mb(driver: str, shape_mb: int) -> int:
    """What a standby of this shape holds."""
    return min(shape_mb, STANDBY_MB.get(driver, shape_mb))


def _tier(driver: str, source: str, timings: Timings) -> str:
    if not source:
        return ""
    told = f"{driver or 'unknown'}/{source}"
    return f"{told}/{timings.code_from}" if source == "clone" and timings.code_from else told
