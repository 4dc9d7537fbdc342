"""How many instances there are to be, on this platform: demand from gateways and counts from nodes into the scaler, orders and
floors out of it. No policy of its own: these are in orchestrator.scaling, pure.

A tick comes when every gateway has told its last second, at the latest TICK_S + SLACK_S after the one before.
"""

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

import msgspec

from graph.callgraph import CallGraph
from graph.ids import FunctionId, TenantId, VersionId, function_of, tenant_of
from graph.plans import EdgeSource, Evidence, Level, PrewarmDecision, PrewarmPlan, Trigger
from orchestrator.catalog.watch import RouteTable
from orchestrator.planner.dispatch import Dispatch, Right
from orchestrator.planner.floors import Floors
from orchestrator.planner.flows import Flows
from orchestrator.planner.heard import HEARD_S, Heard
from orchestrator.planner.holds import Hold, Holds
from orchestrator.planner.inventory import Inventory
from orchestrator.planner.log import DecisionLog
from orchestrator.planner.peers import Fleet, GatewayPeer, NodePeer
from orchestrator.planner.wanted import WantedBook
from orchestrator.scaling.ordering import Order, order
from orchestrator.scaling.reconciling import Allowance
from orchestrator.scaling.scaler import VERSIONS, Scaler, maker
from orchestrator.scaling.terms import RANK, Bounds, Observed, Source, Term, Wanted
from tracing.records import InvocationRecord
from workers.rpc.messages import Demand, TriggerEvent
from workers.versions import VersionSpec

TICK_S, SLACK_S, SOONEST_S = 1.0, 0.5, 0.5
UNUSED_S, RELEASE_UNUSED_S = 60.0, 600.0
"""How long what was ordered waits for its first use; it stays longer where it is still wanted then."""

AT_ONCE = 500
"""Orders of one tick: what they take is well below a tick, and triggers wait no longer than that."""

PLATFORM_MAXIMUM = 1000

NOT_THERE = Bounds(maximum=0)
BOUNDS = 2 * VERSIONS

GENTLE = 16
"""Releases are in no hurry: of what they miss a node starts one part in so many at a time, one at least. The cores belong to what
serves meanwhile."""

RELEASE_IN_S = 1.0
"""By when what a release asks for is needed: behind what requests wait for."""

OWN = (Source.MINIMUM, Source.PROVISIONED, Source.RELEASE)
"""What is ordered also where a tenant wants nothing started ahead."""


class Scaling:
    """`prewarms(tenant)`: whether its downstream functions may be prepared at all. `allowance(tenant)`: its budget.
    `resting(version)`: why no instance of it is started now, empty when they are."""

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
        resting: Callable[[str], str] = lambda version: "",
    ) -> None:
        self.policy = policy
        self.ticks = 0
        self.seconds = self.longest = 0.0  # CPU of all ticks, and of the longest part of one
        self.short: Counter[str] = Counter()  # instances no node had room for, of the last tick
        self._table = table
        self._fleet = fleet
        self._decisions = decisions
        self._dispatch = dispatch
        self._right = right
        self._prewarms = prewarms
        self._allowance = allowance
        self._resting = resting
        make = maker(policy)
        self.heard, self._flows, self._places, self._book = Heard(), Flows(graph), dispatch.places, WantedBook()
        self._floors = Floors(right, make().releases if make is not None else False)
        self._scaler = Scaler(self, make, self._flows.calls_of, self._flows.hold_s, always=lambda: list(self._kept.values()))
        self._at = 0.0
        self._took_over = 0.0
        self._kept: dict[FunctionId, str] = {}  # versions that want instances without traffic
        self._gone: set[FunctionId] = set()
        self._holds = Holds()
        self._limits: dict[str, str] = {}  # of what is held: why it is less than was asked for
        self._bounds: dict[str, tuple[VersionSpec, Bounds]] = {}
        self._numbers = self._first = 0
        self._boot = f"{time.time_ns() // 1_000_000:x}"

    # -- what is heard

    def demand(self, gateway: GatewayPeer, message: Demand) -> None:
        self.heard.told(gateway, message, time.monotonic())

    def called(self, event: TriggerEvent) -> None:
        if not event.ended:
            self.heard.called(event.version, time.monotonic())

    def records(self, records: Iterable[InvocationRecord]) -> None:
        self._flows.observe(records)

    def route_changed(self, function: FunctionId, spec: VersionSpec | None) -> None:
        """`spec`: the version that serves; None: none does."""
        self._kept.pop(function, None)
        if function not in self._table.routes:
            self._gone.add(function)  # for good; many may go at once, and are forgotten together
        if spec is not None and (spec.scaling.minimum or spec.scaling.provisioned):
            self._kept[function] = spec.version

    # -- what releases ask for

    def hold(self, release: int, spec: VersionSpec, count: int, reason: str, for_s: float, ordered: list[str]) -> None:
        """So many instances are wanted for a release, until it says otherwise or `for_s` has passed. Ids of decisions made for it
        are added to `ordered`."""
        self._holds.put(release, Hold(spec, count, reason, time.monotonic() + for_s, ordered))

    def let_go(self, release: int) -> None:
        """It asks for nothing any more."""
        self._holds.drop(release)

    def again(self) -> None:
        """What releases ask for is reconciled with what traffic wanted in the last tick, and what is missing ordered: a gate is
        looked at more often than traffic is."""
        self._holds.lapse(time.monotonic())
        held = set(self._holds.versions)
        if not held:
            return
        there, wanted = self._places.look(), list[Wanted]()
        for tenant in {tenant_of(VersionId(one)) for one in held}:
            if self._right(tenant) is not None:
                extra = self._holds.terms(tenant)
                self._planned(tenant, extra)
                wanted += self._scaler.again(tenant, extra, self._allowance(tenant))
        self._limits = {one.version: one.limit for one in wanted if one.version in held and one.limit}
        short = self._order([one for one in wanted if one.version in held], there)
        for version in held:
            self.short[version] = short.get(version, 0)

    def lack(self, version: str) -> str:
        """Why not as many of it are made ready as a release asks for; empty when nothing is known to keep them."""
        if self._limits.get(version):
            return self._limits[version]
        short = self.short[version]
        return f"no node has memory for {short} more of {self.memory_mb(version)} MB" if short else ""

    def node_came(self, node: NodePeer) -> None:
        self._floors.node_came(node)

    def took_over(self) -> None:
        """Orders may go out for more tenants than before."""
        self._floors.took_over(self._fleet.up())
        self._took_over = time.monotonic()

    def cooled(self, functions: Iterable[str]) -> None:
        """Their idle instances were given up because somebody said so: what was wanted before is forgotten."""
        cooled = set(functions)
        self.heard.cool(cooled, time.monotonic())
        self._scaler.forget_functions(cooled)

    def forget_tenant(self, tenant: str) -> None:
        self._scaler.forget_tenant(tenant)
        self._flows.forget_tenant(tenant)
        self._book.forget_tenant(tenant)
        self._holds.forget_tenant(tenant)
        for function in [one for one in self._kept if tenant_of(one) == tenant]:
            del self._kept[function]

    # -- what the scaler asks

    def bounds(self, version: str) -> Bounds:
        spec = self._spec(version)
        if spec is None:
            return NOT_THERE
        kept = self._bounds.get(version)
        if kept is None or kept[0] is not spec:  # a setting changes with its spec
            if len(self._bounds) >= BOUNDS:
                self._bounds.clear()
            told = spec.scaling
            maximum = told.maximum or PLATFORM_MAXIMUM
            bounds = Bounds(told.minimum, maximum, told.provisioned, told.reserved, told.target, spec.concurrency)
            kept = self._bounds[version] = spec, bounds
        return kept[1]

    def memory_mb(self, version: str) -> int:
        spec = self._spec(version)
        return spec.memory_mb if spec is not None else 128

    def version_of(self, function: FunctionId) -> str | None:
        route = self._table.routes.get(function)
        spec = self._table.version(route, "") if route is not None else None
        return spec.version if spec is not None and self._prewarms(tenant_of(function)) else None

    def _spec(self, version: str) -> VersionSpec | None:
        spec = self._table.versions.get(version)
        return spec if spec is not None else self._holds.spec(version)

    # -- ticks

    def tick(self, now: float) -> None:
        """`now`: monotonic. Does nothing before it is time."""
        for _ in self.steps(now):
            pass

    def steps(self, now: float) -> Iterator[None]:
        """A tick in parts, so that whatever else there is has its turn between them."""
        since, whole = now - self._at, self.heard.whole()
        if since < SOONEST_S or (since < TICK_S + SLACK_S and not whole):
            return
        self._at = now
        parts, more = self._decide(now), True
        while more:
            began = time.thread_time()
            more = next(parts, False)
            took = time.thread_time() - began
            self.seconds += took
            self.longest = max(self.longest, took)
            if more:
                yield
        self.ticks += 1

    def _decide(self, now: float) -> Iterator[bool]:
        there = self._places.look()
        self._forget_gone()
        yield True
        heard = self.heard.take(now, there.ready, TICK_S, self._scaler.remembered)
        # what still runs of a version that is not invocable any more, or of a tenant that was removed, asks for nothing
        observed: dict[str, Observed] = {}
        for version, one in heard.items():
            spec = self._spec(version)
            if spec is not None:
                observed[spec.version] = one  # always the same object: its hash is known, and no lookup compares letters
        self._holds.lapse(now)
        extra = self._holds.terms()
        tenants = {one.partition("/")[0] for one in chain(observed, extra, self._kept.values(), self._book.now)}
        tenants.update(tenant for tenant in there.tenants if self._plans(tenant))
        for tenant in tenants:
            self._planned(tenant, extra)
        yield True
        found = self._scaler.tick(now, observed, extra, {tenant: self._allowance(tenant) for tenant in tenants})
        yield True
        mine = {tenant for tenant in tenants if self._right(tenant) is not None}
        wanted = [self._limited(one) for one in found if one.version.partition("/")[0] in mine]
        self.short = Counter(self._order(wanted, there))
        yield True
        self._floors.tell(wanted, there, now, self.heard.anything or now - self._took_over > HEARD_S)
        yield True
        self._book.put(wanted, there, time.time())

    def _forget_gone(self) -> None:
        gone = {one for one in self._gone if one not in self._table.routes}
        self._gone.clear()
        if gone:
            self._scaler.forget_functions(gone)
            self._book.forget_functions(gone)
            for function in gone:
                self._flows.forget(function)

    def _limited(self, one: Wanted) -> Wanted:
        """With why none of it is started now, where none is."""
        resting = self._resting(one.version)
        return msgspec.structs.replace(one, limit=resting) if resting else one

    def _plans(self, tenant: str) -> bool:
        """Whether a plan holds anything of it that is invocable."""
        return any(one.level == Level.READY and self._spec(one.version) is not None for one in self._decisions.open_of(tenant))

    def _planned(self, tenant: str, extra: dict[str, list[Term]]) -> None:
        """What plans hold now: they order it themselves, at its time."""
        held: Counter[str] = Counter(one.version for one in self._decisions.open_of(tenant) if one.level == Level.READY)
        for version, count in held.items():
            extra.setdefault(version, []).append(Term(Source.PLANS, count, f"{count} of live plans"))

    # -- orders

    def _asks(self, one: Wanted, there: Inventory) -> Wanted | None:
        """What of it is ordered here: plans order their own. Where a tenant wants nothing started ahead, only what its owner set
        and releases are; and the one instance that traffic needs is started by the request that needs it."""
        prewarms = self._prewarms(tenant_of(VersionId(one.version)))
        ours = [
            term
            for term in one.terms
            if term.source in OWN
            or (prewarms and (term.source is Source.FEED_FORWARD or (term.source is Source.REACTIVE and term.count > 1)))
        ]
        if self._resting(one.version):  # a release finds out by itself, and says so
            ours = [term for term in ours if term.source is Source.RELEASE]
        if not ours or self._spec(one.version) is None:
            return None
        most = max(ours, key=lambda term: (term.count, -RANK[term.source]))
        count = min(one.count, most.count)
        if most.source is Source.RELEASE:
            ready = there.ready.get(one.version, 0)
            count = min(count, ready + len(there.up) * max(1, (count - ready) // GENTLE))
        return Wanted(one.version, count, most.source, most.reason)

    def _order(self, wanted: Sequence[Wanted], there: Inventory) -> dict[str, int]:
        """What is missing of it. Returns how many found no place, by version."""

        def code(version: str) -> list[str]:
            """Where instances of it are, there its code is."""
            return [node.name for node, _ in there.holders.get(version, ())]

        def reached(version: str) -> frozenset[str]:
            return self._places.reached(self._spec(version))

        have = there.have  # what is there already is not asked for, whoever asks
        lacking = [one for one in wanted if one.count > have.get(one.version, 0)]
        asked = [ours for one in lacking if (ours := self._asks(one, there)) is not None]
        self._first = (self._first + AT_ONCE) % max(1, len(asked))
        asked = asked[self._first :] + asked[: self._first]  # where a tick's orders are too few, nobody is last each time
        made = order(asked, have, self._places.index, self.memory_mb, code, reached, AT_ONCE)
        nodes = self._places.current()
        by_version: dict[str, list[Order]] = {}
        for one in made.orders:
            by_version.setdefault(one.wanted.version, []).append(one)
        for version, ones in by_version.items():
            self._send(version, ones[0].wanted, [nodes[one.spot.name] for one in ones])
        return made.short

    def _send(self, version: str, wanted: Wanted, nodes: Sequence[NodePeer]) -> None:
        """An instance on each of these."""
        spec = self._spec(version)
        if spec is None:
            return
        self._numbers += 1
        function = function_of(VersionId(version))
        plan_id = f"w{self._boot}-{self._numbers}"
        reason = f"{wanted.by}: {wanted.reason}; {wanted.count} are wanted"
        trigger, held = Trigger.RELEASE if wanted.by is Source.RELEASE else Trigger.WANTED, version in self._holds
        evidence = Evidence(EdgeSource.REQUESTED, 1.0, 1.0, 0, RELEASE_IN_S if trigger is Trigger.RELEASE else None)
        unused_s = RELEASE_UNUSED_S if trigger is Trigger.RELEASE else UNUSED_S
        made = [
            PrewarmDecision(f"{plan_id}-{number}", function, number, spec.memory_mb, 0.0, unused_s, reason, evidence, Level.READY)
            for number in range(1, len(nodes) + 1)
        ]
        plan = PrewarmPlan(plan_id, tenant_of(function), function, trigger, self.policy, time.time(), None, tuple(made))
        self._holds.ordered(version, [one.decision_id for one in made])
        self._dispatch.place(plan, spec, list(zip(made, nodes, strict=True)), probe=held)

    # -- what people see

    @property
    def wanted(self) -> int:
        """At the last tick, of all versions together."""
        return sum(one.count for one in self._book.now.values())

    def told(
        self, tenant: TenantId, functions: Collection[FunctionId] | None = None, after: float | None = None
    ) -> dict[str, Any]:
        """What is wanted now of each version, by whom, and what each policy asked for. `functions`: of these alone. `after` (Unix
        time): with what held then, and each change since."""
        versions = self._book.told(f"{tenant}/", functions, self._places.look(), self.short, after)
        return {"policy": self.policy, "tick_s": TICK_S, "ticks": self.ticks, "at": time.time(), "versions": versions}
