"""CallGraph: all that is known of who calls whom, per tenant. The only module that imports networkx.

networkx holds the functions and edges; the statistics at them (graph.statistics) are read against the clock of the caller:
every call is a run of its callee, so each function is an entry of its own.
"""

from collections.abc import Callable, Iterable, Mapping, Set

import msgspec
import networkx as nx

from graph.calls import CallEdge, Trace
from graph.ids import FunctionId, TenantId, tenant_of
from graph.reach import EntryReach
from graph.runs import Run, check, runs_of
from graph.starts import StartTimes
from graph.statistics import DEFAULT_MEMORY_MB, EdgeStatistics, FunctionStatistics


class Bounds(msgspec.Struct, frozen=True):
    """What a tenant may hold, and all of them together. What was not seen for longest makes room; declared functions and calls
    stay. Over all tenants, who has most gives first, down to the next largest.

    `records`: edges plus (entry, function) pairs, each about 0.7 kB.
    """

    functions: int = 150_000
    functions_per_entry: int = 512
    records: int = 600_000
    calls_per_trace: int = 5_000
    all_functions: int = 400_000
    all_records: int = 1_500_000


class TenantGraph:
    """One tenant's functions, in the order in which they were last seen, and their edges."""

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self.functions: dict[FunctionId, FunctionStatistics] = {}
        self.network: nx.DiGraph[FunctionId] = nx.DiGraph()
        self.records = 0  # edges and (entry, function) pairs
        self.dropped_runs = 0

    # -- structure

    def function(self, function: FunctionId) -> FunctionStatistics:
        """The function's statistics, now the most recently seen."""
        statistics = self.functions.pop(function, None)
        if statistics is None:
            statistics = FunctionStatistics()
            self.network.add_node(function)
        self.functions[function] = statistics
        return statistics

    def edge(self, caller: FunctionId, callee: FunctionId) -> EdgeStatistics | None:
        found = self.network.get_edge_data(caller, callee)
        return found["of"] if found else None

    def out(self, caller: FunctionId) -> list[tuple[FunctionId, EdgeStatistics]]:
        return [(callee, held["of"]) for callee, held in self.network.adj[caller].items()]

    def connect(self, caller: FunctionId, callee: FunctionId, statistics: EdgeStatistics) -> EdgeStatistics:
        """A new edge; functions it does not know yet are added."""
        if callee not in self.functions:
            self.function(callee)
        self.network.add_edge(caller, callee, of=statistics)
        self.records += 1
        return statistics

    def disconnect(self, caller: FunctionId, callee: FunctionId) -> None:
        self.network.remove_edge(caller, callee)
        self.records -= 1

    def undeclare(self, caller: FunctionId, callee: FunctionId) -> None:
        """The caller does not declare this call any more. What traces taught of it stays."""
        edge = self.edge(caller, callee)
        if edge is None:
            return
        edge.declared_at = None
        if not edge.traces:
            self.disconnect(caller, callee)
            held = self.functions[callee]
            if not held.deployed and not held.reach.clock.runs and not self.network.degree(callee):
                self.remove({callee})

    # -- forgetting

    def unlearn(self, function: FunctionId) -> None:
        """Forgets what its runs taught. Declared calls are again as they were before the first."""
        statistics = self.functions[function]
        self.records -= len(statistics.reach.reached)
        statistics.reach = EntryReach()
        for callee, edge in self.out(function):
            self.disconnect(function, callee)
            if edge.declared_at is not None:
                self.connect(function, callee, EdgeStatistics(declared_at=0))

    def remove(self, functions: Set[FunctionId]) -> None:
        """Takes them out, but for the place that the declarations of others keep for them."""
        for function in functions:
            self.unlearn(function)
            for callee, _ in self.out(function):
                if callee in functions:
                    self.disconnect(function, callee)
                else:
                    self.undeclare(function, callee)
        for statistics in self.functions.values():
            for function in functions & statistics.reach.reached.keys():
                self.records -= statistics.reach.forget(function)
        for function in functions:
            for caller, held in list(self.network.pred[function].items()):
                self.disconnect(caller, function)
                if held["of"].declared_at is not None:
                    self.connect(caller, function, EdgeStatistics(declared_at=held["of"].declared_at))
            if self.network.in_degree(function):
                self.functions[function] = FunctionStatistics()
            else:
                del self.functions[function]
                self.network.remove_node(function)

    def make_room(self) -> bool:
        """Gives up what was seen least recently, a little more than must be. False when the tenant has too much that stays."""
        if len(self.functions) >= self.bounds.functions:
            self.shrink_functions(self.bounds.functions - 1 - self.bounds.functions // 64)
        if self.records > self.bounds.records:
            self.shrink_records(self.bounds.records - self.bounds.records // 64)
        return len(self.functions) < self.bounds.functions

    def shrink_functions(self, most: int) -> None:
        """To `most` functions, those seen least recently first; what is deployed or declared stays."""
        victims: set[FunctionId] = set()
        for oldest in list(self.functions):
            if len(self.functions) - len(victims) <= most:
                break
            if self.functions[oldest].deployed or self._declared(oldest):
                self.function(oldest)  # stays: to the end of the queue
            else:
                victims.add(oldest)
        self.remove(victims)

    def shrink_records(self, most: int) -> None:
        """To `most` records, those of functions seen least recently first; declared calls stay."""
        for oldest in list(self.functions):
            if self.records <= most:
                break
            self.unlearn(oldest)

    def _declared(self, function: FunctionId) -> bool:
        return any(held["of"].declared_at is not None for held in self.network.pred[function].values())

    # -- learning

    def observe_run(self, run: Run, trace_id: str, now: float, decay: bool) -> None:
        if run.function not in self.functions and len(self.functions) >= self.bounds.functions and not self.make_room():
            self.dropped_runs += 1
            return
        reach = self.function(run.function).reach
        self.records += reach.observe(run, trace_id, now, decay, self.bounds.functions_per_entry)
        for callee, (calls, first_s) in run.direct.items():
            edge = self.edge(run.function, callee)
            if edge is None:
                self._spare_edge(run.function, reach)
                edge = self.connect(run.function, callee, EdgeStatistics())
            edge.observe(reach.clock, decay, calls, first_s, trace_id)

    def _spare_edge(self, caller: FunctionId, reach: EntryReach) -> None:
        out = self.out(caller)
        learned = [(edge.value(reach.clock), callee) for callee, edge in out if edge.declared_at is None]
        if len(out) >= self.bounds.functions_per_entry and learned:
            self.disconnect(caller, min(learned)[1])


class _Share:
    """A bound over all tenants on what `size` counts; `shrink` takes a tenant's down to a number, as far as it can."""

    def __init__(self, most: int, size: Callable[[TenantGraph], int], shrink: Callable[[TenantGraph, int], None]) -> None:
        self.size = size
        self._most, self._shrink = most, shrink
        self._total = 0  # or more: what goes is found out when it seems to be too much

    def grew(self, more: int, graphs: Iterable[TenantGraph]) -> None:
        """One has so many more. Where that is too much the largest gives, never to less than the next has; one that has nothing
        left to give is passed by."""
        self._total += more
        if self._total <= self._most:
            return
        giving = list(graphs)
        total, goal = sum(map(self.size, giving)), self._most - self._most // 64
        if total <= self._most:
            self._total = total
            return
        while total > goal and giving:
            giving.sort(key=self.size)
            largest, before = giving[-1], self.size(giving[-1])
            floor = self.size(giving[-2]) - 1 if len(giving) > 1 else 0  # one less: of two as large, each gives in turn
            self._shrink(largest, max(floor, before - (total - goal), 0))
            gave = before - self.size(largest)
            total -= gave
            if gave <= 0:
                giving.pop()
        self._total = min(total, goal)  # where all that is left stays, it is not tried again for every trace


class CallGraph:
    """Learned and declared calls of every tenant. Not thread-safe; times are seconds of any one epoch."""

    def __init__(self, bounds: Bounds | None = None) -> None:
        self.bounds = bounds or Bounds()
        self.tenants: dict[TenantId, TenantGraph] = {}
        self._shared = (
            _Share(self.bounds.all_functions, lambda graph: len(graph.functions), TenantGraph.shrink_functions),
            _Share(self.bounds.all_records, lambda graph: graph.records, TenantGraph.shrink_records),
        )

    def _grew(self, graph: TenantGraph, before: tuple[int, ...]) -> None:
        """Holds the bounds over all tenants. `before`: the sizes of `graph` when it was last asked."""
        for one, size in zip(self._shared, before, strict=True):
            one.grew(one.size(graph) - size, self.tenants.values())

    def _sizes(self, graph: TenantGraph) -> tuple[int, ...]:
        return tuple(one.size(graph) for one in self._shared)

    def _tenant(self, tenant: TenantId) -> TenantGraph:
        found = self.tenants.get(tenant)
        if found is None:
            found = self.tenants[tenant] = TenantGraph(self.bounds)
        return found

    # -- what is told

    def declare(self, function: FunctionId, calls: Iterable[FunctionId], memory_mb: int, now: float) -> None:
        """`function` is deployed and says it calls `calls`, its only declaration from now on. Cycles are legal.

        A call counts as certain with the weight of 20 runs, halved every 50 runs of the caller. Declaring it again does not
        renew that. A callee that was never declared itself is "declared, not deployed". Raises ValueError for a callee
        of another tenant.
        """
        tenant = tenant_of(function)
        callees = dict.fromkeys(calls)
        for callee in callees:
            if tenant_of(callee) != tenant:
                raise ValueError(f"calls: {callee!r} is not a function of tenant {tenant!r}")
        graph = self._tenant(tenant)
        before = self._sizes(graph)
        statistics = graph.function(function)
        statistics.deployed = True
        statistics.memory_mb = memory_mb
        statistics.reach.last_seen = max(statistics.reach.last_seen, now)
        for callee in callees:
            edge = graph.edge(function, callee)
            if edge is None:
                edge = graph.connect(function, callee, EdgeStatistics())
            if edge.declared_at is None:
                edge.declared_at = statistics.reach.clock.runs
        for callee, edge in graph.out(function):
            if edge.declared_at is not None and callee not in callees:
                graph.undeclare(function, callee)
        graph.make_room()
        self._grew(graph, before)

    def forget(self, function: FunctionId) -> None:
        """Removes the function and all that was learned of it. Where others declare it, it is "declared, not deployed"."""
        graph = self.tenants.get(tenant_of(function))
        if graph and function in graph.functions:
            graph.remove({function})

    def forget_tenant(self, tenant: TenantId) -> None:
        """All of it."""
        self.tenants.pop(tenant, None)

    def set_start_time(self, function: FunctionId, start_s: float, tier: str = "") -> None:
        """One more measured time from the order to prepare an instance until it was ready, seconds. `tier`: see StartTimes."""
        held = self._held(function)
        if held is not None:
            held.starts = held.start_times()
            held.starts.add(max(0.0, start_s), tier)

    def observe(self, trace: Trace, now: float, decay: bool = True) -> None:
        """Learns one trace: as a run of its entry, and of every function below it.

        `decay=False` weighs it like all others, for imports of history. Of a longer trace the first 5,000 calls are
        used. Raises ValueError naming the field when the trace contradicts itself.
        """
        if not trace.ran:
            return
        if len(trace.calls) > self.bounds.calls_per_trace:
            trace = msgspec.structs.replace(trace, calls=trace.calls[: self.bounds.calls_per_trace])
        check(trace)
        graph = self._tenant(trace.tenant)
        before = self._sizes(graph)
        for run in runs_of(trace):
            graph.observe_run(run, trace.trace_id, now, decay)
        if graph.records > self.bounds.records or len(graph.functions) > self.bounds.functions:
            graph.make_room()
        self._grew(graph, before)

    def restore(
        self,
        tenant: TenantId,
        functions: Mapping[FunctionId, FunctionStatistics],
        edges: Iterable[tuple[FunctionId, FunctionId, EdgeStatistics]],
        dropped_runs: int = 0,
    ) -> None:
        """Sets a tenant to a state held elsewhere (graph.snapshot). Takes the statistics over, does not copy them."""
        graph = self.tenants[tenant] = TenantGraph(self.bounds)
        graph.dropped_runs = dropped_runs
        for function, statistics in functions.items():
            graph.function(function)
            graph.functions[function] = statistics
            graph.records += len(statistics.reach.reached)
        for caller, callee, edge in edges:
            if caller in graph.functions:
                graph.connect(caller, callee, edge)
        self._grew(graph, (0, 0))

    # -- what is known

    def size(self) -> tuple[int, int]:
        """Functions, and records (edges and pairs of entry and function), of all tenants."""
        tenants = self.tenants.values()
        return sum(len(one.functions) for one in tenants), sum(one.records for one in tenants)

    def edges(self, tenant: TenantId) -> list[CallEdge]:
        """Every edge, sorted by caller and callee."""
        graph = self.tenants.get(tenant)
        if graph is None:
            return []
        return [
            edge.edge(caller, callee, graph.functions[caller].reach.clock)
            for caller in sorted(graph.functions)
            for callee, edge in sorted(graph.out(caller), key=lambda out: out[0])
        ]

    def functions(self, tenant: TenantId) -> list[FunctionId]:
        """Every function deployed, declared or observed, sorted."""
        graph = self.tenants.get(tenant)
        return sorted(graph.functions) if graph else []

    def entries(self, tenant: TenantId) -> list[FunctionId]:
        """The functions that were the root of a trace, sorted."""
        graph = self.tenants.get(tenant)
        return sorted(function for function, held in graph.functions.items() if held.reach.roots) if graph else []

    def deployed(self, function: FunctionId) -> bool:
        """True when it was declared itself, not only by its callers or by traces."""
        held = self._held(function)
        return held is not None and held.deployed

    def reachable(self, function: FunctionId) -> set[FunctionId]:
        """Every function there is a way to, over edges of any kind and strength, without the function itself."""
        graph = self.tenants.get(tenant_of(function))
        return set(nx.descendants(graph.network, function)) if graph and function in graph.functions else set()

    def reach(self, function: FunctionId) -> EntryReach | None:
        """What runs of the function reach; None for a function nobody knows."""
        held = self._held(function)
        return held.reach if held else None

    def declared_calls(self, function: FunctionId) -> list[tuple[FunctionId, float]]:
        """The callees it declares, each with the weight the declaration still has, in runs."""
        graph = self.tenants.get(tenant_of(function))
        if graph is None or function not in graph.functions:
            return []
        clock = graph.functions[function].reach.clock
        return [(callee, edge.prior(clock)) for callee, edge in graph.out(function) if edge.declared_at is not None]

    def calls_of(self, function: FunctionId) -> list[tuple[FunctionId, float]]:
        """Whom it calls, and how often on average in one of its runs."""
        graph = self.tenants.get(tenant_of(function))
        if graph is None or function not in graph.functions:
            return []
        clock = graph.functions[function].reach.clock
        edges = [edge.edge(function, callee, clock) for callee, edge in graph.out(function)]
        return [(edge.callee, edge.probability * edge.fan_out) for edge in edges]

    def memory_mb(self, function: FunctionId) -> int:
        held = self._held(function)
        return held.memory_mb if held else DEFAULT_MEMORY_MB

    def start_s(self, function: FunctionId) -> float:
        """Expected seconds to ready; 0.1 until one was measured."""
        return self.starts(function).expected_s()

    def starts(self, function: FunctionId) -> StartTimes:
        """Its measured start times, to be read only."""
        held = self._held(function)
        return held.start_times() if held else StartTimes()

    def _held(self, function: FunctionId) -> FunctionStatistics | None:
        graph = self.tenants.get(tenant_of(function))
        return graph.functions.get(function) if graph else None
