"""Keep-alive by price: tells nodes how long an idle instance of each function, and its n-th one, is worth keeping (graph.keeping,
graph.levels). Only of the policy `priced`; a node without word keeps for its own keep-alive, and none is ever kept longer. Of any
policy: what no alias means any more drains, one instance after the other as each has been idle for DRAIN_S.

When instances stand idle is learned in orchestrator.planner.idle_times. Tables are made anew every LOOK_S, sent where they
changed, and repeated before nodes forget them.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence

from graph.arrivals import Arrivals, samples_of
from graph.callgraph import CallGraph
from graph.ids import FunctionId, TenantId, VersionId, tenant_of
from graph.levels import worths_keeping_s
from graph.plans import ExpectedCall, Prices
from orchestrator.planner.dispatch import Right
from orchestrator.planner.forecasts import Forecasts
from orchestrator.planner.idle_times import IdleTimes
from orchestrator.planner.peers import Fleet, NodePeer
from orchestrator.planner.places import total
from tracing.records import InvocationRecord
from workers.keeping import TOLD_FOR_S
from workers.rpc.messages import TriggerEvent

NEEDED = 10_000
LOOK_S = 5.0
AT_ONCE = 500
"""So many functions are weighed at a look; the others have their turn at the next."""

REPEAT_S = TOLD_FOR_S / 3
MOVED = 0.1
"""What moves by less than this part of itself is not told again."""

LONGEST_S = 600.0
DRAIN_S = 30.0
NEEDED_SLACK_S = 1.0

Table = tuple[dict[str, float], dict[str, list[float]]]
"""By version: what the first instance of a node is worth, and what its further ones are."""

NOTHING: Table = ({}, {})


class Keeping:
    """`priced(tenant)`: whether it is planned so, by whoever plans. `right(tenant)`: by what lease and epoch orders for it go
    out, None while another planner decides for it. `left()`: versions with instances that no alias means any more. `now` is the
    wall clock, as in records."""

    def __init__(
        self,
        graph: CallGraph,
        fleet: Fleet,
        forecasts: Forecasts,
        prices: Prices,
        priced: Callable[[str], bool],
        right: Right,
        idle_times: IdleTimes | None = None,
        left: Callable[[], Iterable[str]] = lambda: (),
    ) -> None:
        self._left = left
        self._graph = graph
        self._fleet = fleet
        self._forecasts = forecasts
        self._prices = prices
        self._priced = priced
        self._right = right
        self.idle_times = idle_times or IdleTimes(lambda function: 1)
        self._fresh: dict[FunctionId, None] = dict.fromkeys(self.idle_times.first())  # to be weighed, in this order
        self._worth: dict[TenantId, dict[FunctionId, list[float]]] = {}  # of the first instance, of the second, ...
        self._told: dict[NodePeer, dict[TenantId, tuple[float, Table]]] = {}
        self._needed: OrderedDict[FunctionId, float] = OrderedDict()  # until when nodes were told that a plan counts on it
        self._looked = 0.0

    def of(self, function: FunctionId) -> float | None:
        """Seconds that its last idle instance is worth keeping, as nodes are told; None: as long as the node keeps any."""
        return next(iter(self.levels_of(function)), None)

    def levels_of(self, function: FunctionId) -> Sequence[float]:
        """And the second, the third, ...; those above the last as the last."""
        tenant = tenant_of(function)
        return self._worth.get(tenant, {}).get(function, ()) if self._priced(tenant) else ()

    def why(self, function: FunctionId) -> str:
        """What `of` stands on, as a sentence."""
        if not self._priced(tenant_of(function)):
            return ""
        known = samples_of(next(iter(self.idle_times.of(function).of), Arrivals()))
        if known is None:
            return "too few calls to tell when the next one comes"
        start_ms, memory_mb = self._forecasts.start_s(function) * 1000, self._graph.memory_mb(function)
        soon = [one for one in known.after_s if one <= LONGEST_S]
        share = known.probability * len(soon) / len(known.after_s) if known.after_s else 0.0
        half = f", half of them within {soon[(len(soon) - 1) // 2]:.3g} s" if soon else ""
        comes = f"{share:.0%} of next calls ({known.gaps} seen) come within {LONGEST_S / 60:.0f} minutes{half}"
        return f"{comes}; a start takes {start_ms:.0f} ms, {memory_mb} MB idle meanwhile"

    @property
    def count(self) -> int:
        """Functions that nodes are told of."""
        return sum(len(table) for tenant, table in self._worth.items() if self._priced(tenant))

    # -- what is learned

    def started(self, event: TriggerEvent) -> None:
        """An invocation is about to start."""
        for gone in self.idle_times.started(event):
            self._forget(gone)

    def observe(self, records: Iterable[InvocationRecord], dropped: int = 0) -> None:
        """Invocations that have ended. `dropped`: so many more have, which nobody knows."""
        if dropped:
            self.idle_times.dropped()
        for record in records:
            for gone in self.idle_times.ended(record):
                self._forget(gone)
            if record.status != "refused":
                self._fresh[FunctionId(record.function)] = None

    # -- what is told

    def needed(
        self, tenant: TenantId, functions: Iterable[FunctionId], calls: Sequence[ExpectedCall], elapsed_s: float, now: float
    ) -> None:
        """A live plan counts on idle instances of these, which `calls` expects: none goes by price before the call may come."""
        right = self._right(tenant)
        if right is None or not self._worth.get(tenant):
            return
        latest = {call.function: call.offsets_s[-1] for call in calls if call.offsets_s}
        needed_s: dict[str, float] = {}
        for function in functions:
            spec = self._forecasts.latest(function) if self.of(function) is not None else None
            seconds = min(LONGEST_S, max(0.0, latest.get(function, 0.0) - elapsed_s) + NEEDED_SLACK_S)
            if spec is not None and now + seconds > self._needed.get(function, 0.0):
                seconds += NEEDED_SLACK_S  # so that the next runs need not say the same again
                self._needed[function] = now + seconds
                self._needed.move_to_end(function)
                needed_s[spec.version] = seconds
        while len(self._needed) > NEEDED:
            self._needed.popitem(last=False)
        if needed_s:
            for node in self._fleet.up():
                if node.hosts(tenant):
                    node.keep(tenant, None, needed_s, *right)

    def node_came(self, node: NodePeer) -> None:
        """It knows nothing of what was told before."""
        self._told.pop(node, None)
        self._needed.clear()
        self._looked = 0.0

    def took_over(self) -> None:
        """Orders may go out for more tenants than before."""
        self._told.clear()
        self._needed.clear()
        self._looked = 0.0

    def tick(self, now: float) -> None:
        """Weighs and tells, every LOOK_S."""
        if 0.0 <= now - self._looked < LOOK_S:
            return
        self._looked = now
        self.idle_times.tick(now)
        fresh = [one for one in self._fresh if self._priced(tenant_of(one))]
        for function in fresh[:AT_ONCE]:
            del self._fresh[function]
            self._weigh(function)
        nodes = self._fleet.up()
        for node in [one for one in self._told if one not in nodes]:
            del self._told[node]
        draining: dict[TenantId, dict[str, float]] = {}
        for version in self._left():
            draining.setdefault(tenant_of(VersionId(version)), {})[version] = DRAIN_S
        told = {tenant for each in self._told.values() for tenant in each}
        holders = Counter(version for node in nodes for version, count in node.counts.items() if total(count))
        for tenant in {**self._worth, **draining, **dict.fromkeys(told)}:
            self._tell(tenant, nodes, draining.get(tenant, {}), holders, now)

    def _weigh(self, function: FunctionId) -> None:
        table = self._worth.setdefault(tenant_of(function), {})
        memory_mb, start_s = self._graph.memory_mb(function), self._forecasts.start_s(function)
        found = worths_keeping_s(self.idle_times.of(function), self._prices, memory_mb, start_s, LONGEST_S)
        worths = [one for one in found if one is not None]  # what the first is not known of, none is
        before = table.get(function)
        if not worths:
            table.pop(function, None)
        elif before is None or _moved(before, worths):
            table[function] = worths

    def _tell(
        self, tenant: TenantId, nodes: Sequence[NodePeer], draining: Mapping[str, float], holders: Mapping[str, int], now: float
    ) -> None:
        right = self._right(tenant)
        if right is None:  # whoever decides for it says what holds
            for told in self._told.values():
                told.pop(tenant, None)
            return
        worth = self._worth.get(tenant, {}) if self._priced(tenant) else {}
        keep_s: dict[str, float] = {}
        more_s: dict[str, list[float]] = {}
        for function, worths in worth.items():
            spec = self._forecasts.latest(function)
            if spec is not None:
                keep_s[spec.version] = worths[0]
                # of a node's own instances the second is the one that is called when one more than there are nodes is needed
                each = max(1, holders.get(spec.version, 1))
                if further := worths[each::each]:
                    more_s[spec.version] = further
        keep_s |= draining
        table: Table = (keep_s, {version: further for version, further in more_s.items() if version not in draining})
        for node in nodes:
            if not node.hosts(tenant):
                continue
            at, before = self._told.get(node, {}).get(tenant, (0.0, NOTHING))
            if table != before or (table != NOTHING and not 0.0 <= now - at < REPEAT_S):
                self._told.setdefault(node, {})[tenant] = (now, table)
                node.keep(tenant, table[0], {}, *right, more_s=table[1])

    # -- what is gone

    def forget_tenant(self, tenant: str) -> None:
        for function in self.idle_times.forget_tenant(tenant):
            self._forget(function)
        self._worth.pop(TenantId(tenant), None)
        for told in self._told.values():
            told.pop(TenantId(tenant), None)

    def _forget(self, function: FunctionId) -> None:
        self._fresh.pop(function, None)
        self._needed.pop(function, None)
        self._worth.get(tenant_of(function), {}).pop(function, None)


def _moved(before: Sequence[float], now: Sequence[float]) -> bool:
    return len(before) != len(now) or any(abs(one - was) > MOVED * was for was, one in zip(before, now, strict=True))
