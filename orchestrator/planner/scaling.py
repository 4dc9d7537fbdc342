"""How many instances there are to be, on this platform: demand from gateways and counts from nodes into the scaler, orders and
floors out of it. No policy of its own: these are in orchestrator.scaling, pure.

A tick comes when every gateway has told its last second, at the latest TICK_S + SLACK_S after the one before.
"""

import time
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec
import structlog

from graph.callgraph import CallGraph
from graph.ids import FunctionId, TenantId, VersionId, function_of, tenant_of
from graph.plans import EdgeSource, Evidence, Level, PrewarmDecision, PrewarmPlan, Trigger
from orchestrator.catalog.watch import RouteTable
from orchestrator.placement_index import PlacementIndex
from orchestrator.planner.dispatch import Dispatch, Right
from orchestrator.planner.log import DecisionLog
from orchestrator.planner.peers import Fleet, GatewayPeer, NodePeer
from orchestrator.scaling.ordering import Order, order
from orchestrator.scaling.reconciling import Allowance
from orchestrator.scaling.scaler import Scaler, maker
from orchestrator.scaling.terms import Bounds, Observed, Source, Term, Wanted
from tracing.records import InvocationRecord
from workers.keeping import TOLD_FOR_S
from workers.networks import Egress
from workers.rpc.messages import Demand
from workers.versions import VersionSpec

TICK_S, SLACK_S, SOONEST_S = 1.0, 0.5, 0.5
HEARD_S = 3.0
"""What a gateway told last counts for so long."""

COOLED_S = 2.5
UNUSED_S = 600.0
AT_ONCE = 500
"""Orders of one tick: what they take is well below a tick, and triggers wait no longer than that."""

HOLDS, HOLD_SMOOTHING = 20_000, 0.1
SHOWN, SHOWN_POINTS = 2_000, 600
CALLS_S = 5.0
PLATFORM_MAXIMUM = 1000

log = structlog.get_logger(__name__)


class Point(msgspec.Struct, array_like=True, frozen=True):
    """What was wanted of a version and what was there, from `at` (Unix time) on, and who decided."""

    at: float
    wanted: int
    ready: int
    busy: int
    by: str
    reason: str
    limit: str


class _Heard:
    """A gateway: what it told since the last tick, and before."""

    __slots__ = ("at", "fresh", "last")

    def __init__(self) -> None:
        self.at = 0.0
        self.fresh: list[Demand] = []
        self.last: Demand | None = None


class Scaling:
    """`prewarms(tenant)`: whether its downstream functions may be prepared at all. `allowance(tenant)`: its budget."""

    def __init__(
        self,
        policy: str,
        graph: CallGraph,
        table: RouteTable,
        fleet: Fleet,
        decisions: DecisionLog,
        dispatch: Dispatch,
        right: Right,
        prewarms: Callable[[str], bool],
        allowance: Callable[[str], Allowance],
    ) -> None:
        self.policy = policy
        self.index = PlacementIndex()
        self.ticks = 0
        self.seconds = 0.0  # CPU of all ticks
        self.short: Counter[str] = Counter()  # instances no node had room for, of the last tick
        self._graph = graph
        self._table = table
        self._fleet = fleet
        self._decisions = decisions
        self._dispatch = dispatch
        self._right = right
        self._prewarms = prewarms
        self._allowance = allowance
        make = maker(policy)
        self._releases = make().releases if make is not None else False
        self._scaler = Scaler(self, make, self._calls_of, self._hold_of, always=lambda: list(self._kept))
        self._heard: dict[GatewayPeer, _Heard] = {}
        self._at = 0.0
        self._holds: OrderedDict[FunctionId, float] = OrderedDict()
        self._calls: dict[FunctionId, tuple[float, list[tuple[FunctionId, float]]]] = {}
        self._cooled: dict[str, float] = {}
        self._kept: dict[str, FunctionId] = {}  # versions that want instances without traffic
        self._extra: dict[str, tuple[Term, float]] = {}
        self._wanted: dict[str, Wanted] = {}
        self._shown: OrderedDict[str, deque[Point]] = OrderedDict()
        self._told: dict[NodePeer, dict[str, tuple[float, dict[str, int]]]] = {}
        self._numbers = 0
        self._boot = f"{time.time_ns() // 1_000_000:x}"

    # -- what is heard

    def demand(self, gateway: GatewayPeer, message: Demand) -> None:
        heard = self._heard.setdefault(gateway, _Heard())
        heard.at = time.monotonic()
        heard.fresh.append(message)
        del heard.fresh[:-3]

    def records(self, records: Iterable[InvocationRecord]) -> None:
        """How long an invocation holds its instance."""
        for record in records:
            if record.status != "ok" or record.timings.run <= 0.0:
                continue
            function, held_s = FunctionId(record.function), record.timings.run / 1000
            before = self._holds.get(function)
            self._holds[function] = held_s if before is None else before + HOLD_SMOOTHING * (held_s - before)
            self._holds.move_to_end(function)
            if len(self._holds) > HOLDS:
                self._holds.popitem(last=False)

    def route_changed(self, function: FunctionId, spec: VersionSpec | None) -> None:
        """`spec`: the version that serves; None: none does."""
        for version in [one for one, owner in self._kept.items() if owner == function]:
            del self._kept[version]
        if spec is not None and (spec.scaling.minimum or spec.scaling.provisioned):
            self._kept[spec.version] = function

    def hold(self, version: str, count: int, for_s: float, reason: str, source: Source = Source.RELEASE) -> None:
        """A term of somebody else's, until it is said anew or `for_s` has passed; a count of 0 takes it back."""
        self._extra.pop(version, None)
        if count > 0:
            self._extra[version] = (Term(source, count, reason), time.monotonic() + for_s)

    def node_came(self, node: NodePeer) -> None:
        """It knows nothing of what was told before."""
        self._told.pop(node, None)

    def took_over(self) -> None:
        self._told.clear()

    def cooled(self, functions: Iterable[str]) -> None:
        """Their idle instances were given up because somebody said so: what was wanted before is forgotten, and what gateways
        tell of it in the next moment is of the time before."""
        until = time.monotonic() + COOLED_S
        for function in functions:
            self._cooled[function] = until
        self._scaler.forget_functions(set(self._cooled))

    def forget_tenant(self, tenant: str) -> None:
        self._scaler.forget_tenant(tenant)
        of_tenant: tuple[dict[Any, Any], ...] = (self._holds, self._calls, self._kept, self._extra, self._wanted, self._shown)
        for held in of_tenant:
            for name in [one for one in held if one.startswith(f"{tenant}/")]:
                del held[name]

    # -- what the scaler asks

    def bounds(self, version: str) -> Bounds:
        spec = self._spec(version)
        if spec is None:
            return Bounds(maximum=0)
        told = spec.scaling
        maximum = told.maximum or PLATFORM_MAXIMUM
        return Bounds(told.minimum, maximum, told.provisioned, told.reserved, told.target, spec.concurrency)

    def memory_mb(self, version: str) -> int:
        spec = self._spec(version)
        return spec.memory_mb if spec is not None else 128

    def version_of(self, function: FunctionId) -> str | None:
        route = self._table.routes.get(function)
        spec = self._table.version(route, "") if route is not None else None
        return spec.version if spec is not None and self._prewarms(tenant_of(function)) else None

    def _calls_of(self, function: FunctionId) -> Sequence[tuple[FunctionId, float]]:
        now = time.monotonic()
        kept = self._calls.get(function)
        if kept is None or now - kept[0] > CALLS_S:
            if len(self._calls) >= HOLDS:
                self._calls.clear()
            kept = self._calls[function] = (now, self._graph.calls_of(function))
        return kept[1]

    def _hold_of(self, function: FunctionId) -> float | None:
        return self._holds.get(function)

    def _spec(self, version: str) -> VersionSpec | None:
        return self._table.versions.get(VersionId(version))

    # -- ticks

    def tick(self, now: float) -> None:
        """`now`: monotonic. Does nothing before it is time."""
        since = now - self._at
        for gateway in [one for one in self._heard if one.connection is None]:
            del self._heard[gateway]
        all_told = bool(self._heard) and all(one.fresh for one in self._heard.values())
        if since < SOONEST_S or (since < TICK_S + SLACK_S and not all_told):
            return
        began = time.thread_time()
        self._at = now
        self._decide(now)
        self.ticks += 1
        self.seconds += time.thread_time() - began

    def _decide(self, now: float) -> None:
        ready, have = self._counts()
        observed = self._observed(now, ready)
        for version in [one for one, (_, until) in self._extra.items() if until < now]:
            del self._extra[version]
        extra: dict[str, list[Term]] = {version: [term] for version, (term, _) in self._extra.items()}
        tenants = {tenant_of(VersionId(one)) for one in (*observed, *extra, *self._kept, *self._wanted)}
        allowances: dict[str, Allowance] = {tenant: self._allowance(tenant) for tenant in tenants}
        for tenant in tenants:
            self._planned(tenant, extra)
        found = self._scaler.tick(now, observed, extra, allowances)
        wanted = [one for one in found if self._right(tenant_of(VersionId(one.version))) is not None]
        self._look_at_nodes({one.version for one in wanted})
        asked = [one for one in wanted if self._orders(one)]
        made = order(asked, have, self.index, self.memory_mb, self._code_of, self._reached, AT_ONCE)
        self.short = Counter(made.short)
        self._send(made.orders)
        self._wanted = {one.version: one for one in wanted}
        self._tell_floors(wanted, now)
        self._show(wanted, ready)

    def _orders(self, one: Wanted) -> bool:
        """Plans order their own. Where a tenant wants nothing started ahead, only what its owner set and releases are; and the
        one instance that traffic needs is started by the request that needs it."""
        if one.by is Source.PLANS or self._spec(one.version) is None:
            return False
        if one.by in (Source.MINIMUM, Source.PROVISIONED, Source.RELEASE):
            return True
        return self._prewarms(tenant_of(VersionId(one.version))) and (one.count > 1 or one.by is not Source.REACTIVE)

    def _observed(self, now: float, ready: Mapping[str, int]) -> dict[str, Observed]:
        sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0, 0, 0])
        for heard in self._heard.values():
            if now - heard.at > HEARD_S:
                continue
            fresh, heard.fresh = heard.fresh, []
            told = fresh or ([heard.last] if heard.last is not None else [])
            length = sum(one.tick_s for one in told)
            for message in told:
                for one in message.versions:
                    into = sums[one.version]
                    into[0] += one.concurrency * message.tick_s / length
                    into[1] += one.peak / len(told) if not fresh else one.peak
                    into[2] += one.arrivals if fresh else 0
                    into[3] += one.roots if fresh else 0
            heard.last = told[-1] if told else None
        self._cooled = {function: until for function, until in self._cooled.items() if until > now}
        return {
            version: Observed(area, round(peak), int(arrivals), int(roots), ready.get(version, 0), TICK_S)
            for version, (area, peak, arrivals, roots) in sums.items()
            if function_of(VersionId(version)) not in self._cooled
        }

    def _counts(self) -> tuple[Counter[str], Counter[str]]:
        """By version: what is ready, and with what is on its way."""
        ready, have = Counter[str](), Counter[str]()
        for node in self._fleet.up():
            for count in node.counts.values():
                ready[count.version] += count.idle + count.busy
                have[count.version] += count.idle + count.busy + count.preparing
        return ready, have

    def _planned(self, tenant: str, extra: dict[str, list[Term]]) -> None:
        """What plans hold now: they order it themselves, at its time."""
        held: Counter[str] = Counter(one.version for one in self._decisions.open_of(tenant) if one.level == Level.READY)
        for version, count in held.items():
            extra.setdefault(version, []).append(Term(Source.PLANS, count, f"{count} of live plans"))

    def _look_at_nodes(self, versions: set[str]) -> None:
        """What nodes said of themselves since: it takes the place of what was placed there."""
        up = self._fleet.up()
        names = {node.name for node in up}
        for gone in [spot.name for spot in self.index if spot.name not in names]:
            self.index.remove(gone)
        for node in up:
            spot = self.index.spot(node.name)
            if spot is None or spot.tenants != node.tenants:
                spot = self.index.add(node.name, node.zone, node.free_mb, node.tenants)
            self.index.settled(spot, node.free_mb)
            for version in {*versions, *spot.held}:
                count = node.counts.get(version)
                self.index.counted(spot, version, count.idle + count.busy + count.preparing if count is not None else 0)

    def _code_of(self, version: str) -> list[str]:
        """Where instances of it are, there its code is."""
        return [node.name for node in self._fleet.up() if version in node.counts]

    def _reached(self, version: str) -> frozenset[str]:
        """Nodes with a tunnel to its network; empty: none has, or it needs none."""
        spec = self._spec(version)
        if spec is None or (not spec.vpc and spec.egress == Egress.NONE):
            return frozenset()
        return frozenset(node.name for node in self._fleet.up() if spec.vpc in node.tunnels)

    # -- orders

    def _send(self, orders: Sequence[Order]) -> None:
        nodes = {node.name: node for node in self._fleet.up()}
        by_version: dict[str, list[Order]] = {}
        for one in orders:
            by_version.setdefault(one.wanted.version, []).append(one)
        for version, ones in by_version.items():
            spec, wanted = self._spec(version), ones[0].wanted
            if spec is None:
                continue
            self._numbers += 1
            function = function_of(VersionId(version))
            plan_id = f"w{self._boot}-{self._numbers}"
            reason = f"{wanted.by}: {wanted.reason}; {wanted.count} are wanted"
            evidence = Evidence(EdgeSource.REQUESTED, 1.0, 1.0, 0)
            made = [
                PrewarmDecision(
                    f"{plan_id}-{number}", function, number, spec.memory_mb, 0.0, UNUSED_S, reason, evidence, Level.READY
                )
                for number in range(1, len(ones) + 1)
            ]
            trigger = Trigger.RELEASE if wanted.by is Source.RELEASE else Trigger.WANTED
            plan = PrewarmPlan(plan_id, tenant_of(function), function, trigger, self.policy, time.time(), None, tuple(made))
            placed = [
                (decision, nodes[one.spot.name]) for decision, one in zip(made, ones, strict=True) if one.spot.name in nodes
            ]
            self._dispatch.place(plan, spec, placed)

    def _tell_floors(self, wanted: Sequence[Wanted], now: float) -> None:
        """Each node hears how many of them stay there: what is wanted goes for no idle time."""
        up = self._fleet.up()
        floors: dict[NodePeer, dict[str, dict[str, int]]] = {node: {} for node in up}
        for one in wanted:
            left = _held(one)
            if not left and not self._releases:
                continue
            owner = tenant_of(VersionId(one.version))
            for node in up:
                count = node.counts.get(one.version)
                here = min(left, count.idle + count.busy + count.preparing) if count is not None else 0
                if here or (self._releases and count is not None):
                    floors[node].setdefault(owner, {})[one.version] = here
                left -= here
        for node in [one for one in self._told if one not in floors]:
            del self._told[node]
        for node, tables in floors.items():
            told = self._told.setdefault(node, {})
            for tenant in {*tables, *told}:
                table = tables.get(tenant, {})
                at, before = told.get(tenant, (0.0, {}))
                right = self._right(tenant)
                if right is None:
                    told.pop(tenant, None)
                elif table != before or (table and now - at > TOLD_FOR_S / 3):
                    node.hold(tenant, table, self._releases, *right)
                    if table:
                        told[tenant] = (now, table)
                    else:
                        told.pop(tenant, None)

    # -- what people see

    def _show(self, wanted: Sequence[Wanted], ready: Mapping[str, int]) -> None:
        at = time.time()
        busy: Counter[str] = Counter()
        for node in self._fleet.up():
            for count in node.counts.values():
                busy[count.version] += count.busy
        current = {one.version for one in wanted}
        gone = [version for version, points in self._shown.items() if version not in current and points[-1].wanted]
        for one in (*wanted, *(Wanted(version, 0, Source.REACTIVE, "no demand any more") for version in gone)):
            points = self._shown.get(one.version)
            if points is None:
                points = self._shown[one.version] = deque(maxlen=SHOWN_POINTS)
                if len(self._shown) > SHOWN:
                    self._shown.popitem(last=False)
            self._shown.move_to_end(one.version)
            point = Point(at, one.count, ready.get(one.version, 0), busy[one.version], one.by, one.reason, one.limit)
            if not points or (point.wanted, point.ready, point.busy, point.by, point.limit) != (
                points[-1].wanted,
                points[-1].ready,
                points[-1].busy,
                points[-1].by,
                points[-1].limit,
            ):
                points.append(point)

    def told(self, tenant: TenantId, function: FunctionId | None = None) -> dict[str, Any]:
        """What is wanted now of each version, by whom, and what each policy asked for; of one function with its history."""
        prefix = f"{tenant}/" if function is None else f"{function}:"
        ready, have = self._counts()
        versions = []
        for version in sorted({*self._wanted, *self._shown}):
            if not version.startswith(prefix):
                continue
            one = self._wanted.get(version)
            points = self._shown.get(version, ())
            entry: dict[str, Any] = {
                "version": version.partition("/")[2],
                "wanted": one.count if one is not None else 0,
                "ready": ready[version],
                "busy": sum(count.busy for node in self._fleet.up() if (count := node.counts.get(version)) is not None),
                "coming": have[version] - ready[version],
                "short": self.short[version],
                "by": one.by if one is not None else "",
                "reason": one.reason if one is not None else "",
                "limit": one.limit if one is not None else "",
                "terms": [msgspec.to_builtins(term) for term in one.terms] if one is not None else [],
            }
            if function is not None:
                entry["history"] = [msgspec.structs.asdict(point) for point in points]
            versions.append(entry)
        return {"policy": self.policy, "tick_s": TICK_S, "ticks": self.ticks, "versions": versions}


def _held(one: Wanted) -> int:
    """How many of them no idle time takes. The last one of a function is for keep-alive, unless it is there for a reason of its
    own; what plans made has a lifetime of its own."""
    terms = [term.count for term in one.terms if term.source in (Source.RELEASE, Source.MINIMUM, Source.PROVISIONED)]
    if one.by in (Source.RELEASE, Source.MINIMUM, Source.PROVISIONED):
        terms.append(one.count)
    traffic = max((term.count for term in one.terms if term.source in (Source.REACTIVE, Source.FEED_FORWARD)), default=0)
    return min(one.count, max([*terms, traffic if traffic > 1 else 0]))
