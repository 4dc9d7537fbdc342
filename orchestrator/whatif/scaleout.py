"""Very many nodes that start to scale at the same moment, under a virtual clock: the scaler, the reconciler and the placement
that run on a platform, and what is around them in numbers (`Costs`): nodes that clone, caches that give code, a planner that
reads.

Messages take a planner's time one after the other, decisions what they really took on this machine (or what `Costs` says), so
that what gives way first shows. Deterministic but for that.
"""

import heapq
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from graph.callgraph import CallGraph
from graph.calls import Call, Trace
from graph.ids import FunctionId, TenantId, function_id
from orchestrator.placement_index import NEAR, PlacementIndex, Spot
from orchestrator.scaling.ordering import AT_ONCE, order
from orchestrator.scaling.scaler import Scaler, maker
from orchestrator.scaling.terms import Bounds, Observed, Wanted

TENANT = TenantId("fleet")


class Costs(msgspec.Struct, frozen=True):
    """Seconds, MB and bytes. `clone_s`: of a core, per instance; `init_s`: the function's own, of none. `read_s`: a planner's CPU
    for one message of a node, `beat_s` for a heartbeat, `send_s` for one it sends. `decide_s`: per tick, None: what it took here.
    `cache_bytes_s`: what all caches of a zone give together."""

    cores: int = 8
    clone_s: float = 0.0062
    init_s: float = 0.15
    network_s: float = 0.0005
    read_s: float = 40e-6
    beat_s: float = 60e-6
    send_s: float = 40e-6
    beat_every_s: float = 1.0
    package_bytes: int = 1_000_000
    cache_bytes_s: float = 2.5e9
    node_bytes_s: float = 1.25e9
    decide_s: float | None = None


DEFAULT = Costs()


class Fleet(msgspec.Struct, frozen=True):
    """`entries`: workflows that begin at once, of `stages` functions each behind the entry, called one after the other.
    `per_node`: instances that all of them need, by node. `refused`: share of orders a node refuses, its view being stale."""

    nodes: int = 10_000
    node_mb: int = 65_536
    zones: int = 3
    entries: int = 1_000
    stages: int = 2
    per_node: float = 20.0
    memory_mb: int = 256
    hold_s: float = 0.5
    refused: float = 0.0
    tick_s: float = 1.0
    policy: str = "headroom"
    at_once: int = AT_ONCE


@dataclass(slots=True)
class Outcome:
    """`at_s`: share of the needed capacity -> seconds from the step. `ticks`: real CPU seconds of each tick. `lag_ticks`: from
    the tick that wanted an entry's instances to the one that wanted those of its last stage. `waits`: the longest that each made
    somebody wait, in seconds: what gives way first is the longest."""

    needed: int = 0
    at_s: dict[float, float] = field(default_factory=dict)
    messages: Counter[str] = field(default_factory=Counter)
    orders: int = 0
    refusals: int = 0
    short: int = 0
    ticks: list[float] = field(default_factory=list)
    lag_ticks: int = -1
    waits: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    planner_busy_s: float = 0.0
    ended_s: float = 0.0

    @property
    def gives_way(self) -> str:
        return max(self.waits, key=lambda name: self.waits[name]) if self.waits else "nothing"


class _Shapes:
    def __init__(self, memory_mb: int) -> None:
        self._memory_mb = memory_mb

    def bounds(self, version: str) -> Bounds:
        return Bounds(maximum=1_000_000)

    def memory_mb(self, version: str) -> int:
        return self._memory_mb

    def version_of(self, function: FunctionId) -> str | None:
        return f"{function}:1"


class ScaleOut:
    """One step of load: nothing, then `entries` workflows with enough concurrent runs each to need `per_node` instances on every
    node."""

    def __init__(self, fleet: Fleet, costs: Costs = DEFAULT, limit_s: float = 120.0) -> None:
        self._fleet = fleet
        self._costs = costs
        self._limit_s = limit_s
        self._graph = _taught(fleet)
        self._callees: dict[FunctionId, list[tuple[FunctionId, float]]] = {}
        self.index = PlacementIndex()
        for number in range(fleet.nodes):
            self.index.add(f"n{number}", f"z{number % fleet.zones}", fleet.node_mb)
        self._scaler = Scaler(_Shapes(fleet.memory_mb), maker(fleet.policy), self._calls_of, lambda function: fleet.hold_s)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._pushed = 0
        self.now = 0.0
        self._planner_free = 0.0
        self._cores: dict[str, list[float]] = {}
        self._zone_free: dict[str, float] = defaultdict(float)
        self._fetched: dict[tuple[str, str], float] = {}
        self._have: Counter[str] = Counter()
        self._ready: Counter[str] = Counter()
        self._code: dict[str, list[str]] = defaultdict(list)
        self._demand: dict[str, int] = {}
        self._entry_at = self._last_at = -1
        self._refused = 0.0
        self._tick = 0
        self._reached = 0
        self.outcome = Outcome()

    def run(self) -> Outcome:
        """Until all that is needed is ready, or `limit_s`."""
        fleet = self._fleet
        each = max(1, round(fleet.nodes * fleet.per_node / (fleet.entries * (fleet.stages + 1))))
        for entry in range(fleet.entries):
            for stage in range(-1, fleet.stages):
                self._demand[_version(entry, stage)] = each
        self.outcome.needed = each * len(self._demand)
        self._later(0.0, self._beats)
        self._later(fleet.tick_s / 2, self._tick_due)  # the step comes half a tick before the planner looks
        while self._events and self.now < self._limit_s and 1.0 not in self.outcome.at_s:
            self.now, _, what = heapq.heappop(self._events)
            what()
        self.outcome.ended_s = self.now
        return self.outcome

    # -- the planner

    def _tick_due(self) -> None:
        """Gateways have told their demand; whatever is to be read before is read before."""
        self._waited("the planner", self._planner_free - self.now)
        start = max(self.now, self._planner_free)
        self._later(start - self.now, self._decide)

    def _decide(self) -> None:
        fleet, costs = self._fleet, self._costs
        began = time.process_time()
        observed = self._observed()
        wanted = self._scaler.tick(self.now, observed)
        made = order(
            wanted,
            self._have,
            self.index,
            lambda version: fleet.memory_mb,
            lambda version: self._code[version][-NEAR:],
            at_once=fleet.at_once,
        )
        took = time.process_time() - began
        self.outcome.ticks.append(took)
        self._lag(wanted)
        batches: dict[Spot, list[str]] = defaultdict(list)
        for one in made.orders:
            version = one.wanted.version
            self._have[version] += 1
            batches[one.spot].append(version)
        self.outcome.orders += len(made.orders)
        self.outcome.short += sum(made.short.values())
        self._waited("orders of one tick", made.later / fleet.at_once * fleet.tick_s)
        busy = took if costs.decide_s is None else costs.decide_s
        at = self.now + busy
        for spot, versions in batches.items():
            at += costs.send_s
            self.outcome.messages["prepare"] += 1
            self._later(at - self.now + costs.network_s, lambda spot=spot, versions=versions: self._node(spot, versions))  # type: ignore[misc]
        self._spend(at - self.now)
        self._tick += 1
        self._later(max(fleet.tick_s, self._planner_free - self.now), self._tick_due)

    def _observed(self) -> Mapping[str, Observed]:
        """Requests wait and run as they come: a stage is called only as often as those before it have instances."""
        found = {}
        for entry in range(self._fleet.entries):
            passing = self._demand[_version(entry, -1)]
            for stage in range(-1, self._fleet.stages):
                version = _version(entry, stage)
                if not passing:
                    break
                found[version] = Observed(
                    float(passing), passing, passing, passing if stage < 0 else 0, self._ready[version], self._fleet.tick_s
                )
                passing = min(passing, self._ready[version])
        return found

    def _lag(self, wanted: Sequence[Wanted]) -> None:
        counts = {one.version: one.count for one in wanted}
        for version, is_last in ((_version(0, -1), False), (_version(0, self._fleet.stages - 1), True)):
            if counts.get(version, 0) >= 0.95 * self._demand[version]:
                if is_last and self._last_at < 0:
                    self._last_at = self._tick
                elif not is_last and self._entry_at < 0:
                    self._entry_at = self._tick
        if self.outcome.lag_ticks < 0 <= min(self._entry_at, self._last_at):
            self.outcome.lag_ticks = self._last_at - self._entry_at

    def _waited(self, what: str, seconds: float) -> None:
        self.outcome.waits[what] = max(self.outcome.waits[what], seconds)

    def _spend(self, seconds: float) -> None:
        self._planner_free = max(self.now, self._planner_free) + seconds
        self.outcome.planner_busy_s += seconds

    def _beats(self) -> None:
        """Every node says once a second what it has."""
        part = self._costs.beat_every_s / 100
        nodes = self._fleet.nodes / 100
        self._spend(nodes * self._costs.beat_s)
        self.outcome.messages["heartbeat"] += round(nodes)
        self._later(part, self._beats)

    # -- nodes

    def _node(self, spot: Spot, versions: list[str]) -> None:
        """Orders come: code, a clone, then the function's own init."""
        fleet, costs, name = self._fleet, self._costs, spot.name
        cores = self._cores.setdefault(name, [0.0] * costs.cores)
        told: set[float] = set()
        for version in versions:
            self._refused += fleet.refused
            if self._refused >= 1.0:
                self._refused -= 1.0
                self.outcome.refusals += 1
                self._later(costs.network_s, lambda version=version: self._refuse(spot, version))  # type: ignore[misc]
                continue
            self.index.accepted(spot, fleet.memory_mb)
            coded = self._fetch(spot, version)
            begins = max(self.now, heapq.heappop(cores))
            heapq.heappush(cores, begins + costs.clone_s)
            self._waited("cores of nodes", begins - self.now)
            ready = max(coded, begins + costs.clone_s) + costs.init_s
            told.add(round(ready, 2))  # what becomes ready together is told together
            self._later(ready - self.now, lambda version=version: self._is_ready(version))  # type: ignore[misc]
        for ready in told:
            self._later(ready - self.now + costs.network_s, self._read)

    def _fetch(self, spot: Spot, version: str) -> float:
        """When its code is there: from the zone's caches, one node of a version after the other."""
        key = (spot.name, version)
        known = self._fetched.get(key)
        if known is not None:
            return known
        size = self._costs.package_bytes
        begins = max(self.now, self._zone_free[spot.zone])
        self._zone_free[spot.zone] = begins + size / self._costs.cache_bytes_s
        self._waited("caches of zones", begins - self.now)
        self.outcome.messages["code"] += 1
        there = self._fetched[key] = begins + size / self._costs.node_bytes_s
        self._code[version].append(spot.name)
        return there

    def _read(self) -> None:
        """Outcomes and counts of a node: two messages, read one after the other."""
        self.outcome.messages["outcomes and counts"] += 2
        self._spend(2 * self._costs.read_s)

    def _refuse(self, spot: Spot, version: str) -> None:
        self._read()
        self._have[version] -= 1
        self.index.refused(spot, version, self._fleet.memory_mb, max(0, spot.free_mb - self._fleet.memory_mb))

    def _is_ready(self, version: str) -> None:
        self._ready[version] += 1
        outcome = self.outcome
        if self._ready[version] <= self._demand[version]:
            self._reached += 1
        for share in (0.5, 0.95, 1.0):
            if share not in outcome.at_s and self._reached >= share * outcome.needed:
                outcome.at_s[share] = self.now

    def _calls_of(self, function: FunctionId) -> Sequence[tuple[FunctionId, float]]:
        found = self._callees.get(function)
        if found is None:
            found = self._callees[function] = self._graph.calls_of(function)
        return found

    def _later(self, in_s: float, what: Callable[[], None]) -> None:
        self._pushed += 1
        heapq.heappush(self._events, (self.now + max(0.0, in_s), self._pushed, what))


def _version(entry: int, stage: int) -> str:
    return f"{_function(entry, stage)}:1"


def _function(entry: int, stage: int) -> FunctionId:
    return function_id(TENANT, f"w{entry}" if stage < 0 else f"w{entry}-{stage}")


def _taught(fleet: Fleet) -> CallGraph:
    """What a planner has learned of these workflows before."""
    graph = CallGraph()
    for entry in range(fleet.entries):
        for number in range(4):
            calls = [
                Call(_function(entry, stage - 1), _function(entry, stage), stage - 1, 0.01 * (stage + 1), fleet.hold_s)
                for stage in range(fleet.stages)
            ]
            trace = Trace(TENANT, f"{entry:08x}{number:024x}", _function(entry, -1), fleet.hold_s, tuple(calls))
            graph.observe(trace, float(number))
    return graph
