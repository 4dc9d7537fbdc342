"""Keep-alive by price: tells nodes how long an idle instance of each function is worth keeping (graph.keeping). Only of the
policy `priced`; a node without word keeps for its own keep-alive, and none is ever kept longer. Of any policy: what no alias
means any more drains, one instance after the other as each has been idle for DRAIN_S.

When functions stand idle is learned from the records of their invocations. Tables are made anew every LOOK_S, sent where they
changed, and repeated before nodes forget them.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence

from graph.arrivals import Arrivals, samples_of
from graph.callgraph import CallGraph
from graph.ids import FunctionId, TenantId, VersionId, tenant_of
from graph.keeping import worth_keeping_s
from graph.plans import ExpectedCall, Prices
from orchestrator.planner.dispatch import Right
from orchestrator.planner.forecasts import Forecasts
from orchestrator.planner.peers import Fleet, NodePeer
from tracing.records import InvocationRecord
from workers.keeping import TOLD_FOR_S

FUNCTIONS = 10_000
LOOK_S = 5.0
AT_ONCE = 500
"""So many functions are weighed at a look; the others have their turn at the next."""

REPEAT_S = TOLD_FOR_S / 3
MOVED = 0.1
"""What moves by less than this part of itself is not told again."""

LONGEST_S = 600.0
DRAIN_S = 30.0
NEEDED_SLACK_S = 1.0


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
        known: Mapping[FunctionId, Arrivals] | None = None,
        left: Callable[[], Iterable[str]] = lambda: (),
    ) -> None:
        self._left = left
        self._graph = graph
        self._fleet = fleet
        self._forecasts = forecasts
        self._prices = prices
        self._priced = priced
        self._right = right
        self._idle_times: OrderedDict[FunctionId, Arrivals] = OrderedDict(known or {})
        self._fresh: dict[FunctionId, None] = dict.fromkeys(self._idle_times)  # to be weighed, in this order
        self._worth: dict[TenantId, dict[FunctionId, float]] = {}
        self._told: dict[NodePeer, dict[TenantId, tuple[float, dict[str, float]]]] = {}
        self._needed: OrderedDict[FunctionId, float] = OrderedDict()  # until when nodes were told that a plan counts on it
        self._looked = 0.0

    def all(self) -> dict[FunctionId, Arrivals]:
        """What was learned, to be written down."""
        return dict(self._idle_times)

    def of(self, function: FunctionId) -> float | None:
        """Seconds that its idle instances are worth keeping, as nodes are told; None: as long as the node keeps any."""
        tenant = tenant_of(function)
        return self._worth.get(tenant, {}).get(function) if self._priced(tenant) else None

    def why(self, function: FunctionId) -> str:
        """What `of` stands on, as a sentence."""
        if not self._priced(tenant_of(function)):
            return ""
        known = samples_of(self._idle_times.get(function, Arrivals()))
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

    def observe(self, records: Iterable[InvocationRecord]) -> None:
        """Invocations that have ended. One that began while another ran has found no idle time."""
        for record in records:
            if record.status == "refused":
                continue
            function = FunctionId(record.function)
            known = self._idle_times.get(function)
            if known is None:
                known = self._idle_times[function] = Arrivals()
                if len(self._idle_times) > FUNCTIONS:
                    gone, _ = self._idle_times.popitem(last=False)
                    self._forget(gone)
            self._idle_times.move_to_end(function)
            since = known.idle_since
            if since is None or record.sent_at >= since:
                known.started(record.sent_at)
            known.ended(max(record.ended_at, since or 0.0))
            self._fresh[function] = None

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
        while len(self._needed) > FUNCTIONS:
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
        for tenant in {**self._worth, **draining, **dict.fromkeys(told)}:
            self._tell(tenant, nodes, draining.get(tenant, {}), now)

    def _weigh(self, function: FunctionId) -> None:
        table = self._worth.setdefault(tenant_of(function), {})
        memory_mb, start_s = self._graph.memory_mb(function), self._forecasts.start_s(function)
        worth_s = worth_keeping_s(self._idle_times[function], self._prices, memory_mb, start_s, LONGEST_S)
        before = table.get(function)
        if worth_s is None:
            table.pop(function, None)
        elif before is None or abs(worth_s - before) > MOVED * before:
            table[function] = worth_s

    def _tell(self, tenant: TenantId, nodes: Sequence[NodePeer], draining: Mapping[str, float], now: float) -> None:
        right = self._right(tenant)
        if right is None:  # whoever decides for it says what holds
            for told in self._told.values():
                told.pop(tenant, None)
            return
        worth = self._worth.get(tenant, {}) if self._priced(tenant) else {}
        table = {spec.version: worth_s for one, worth_s in worth.items() if (spec := self._forecasts.latest(one)) is not None}
        table |= draining
        for node in nodes:
            if not node.hosts(tenant):
                continue
            at, before = self._told.get(node, {}).get(tenant, (0.0, {}))
            if table != before or (table and not 0.0 <= now - at < REPEAT_S):
                self._told.setdefault(node, {})[tenant] = (now, table)
                node.keep(tenant, table, {}, *right)

    # -- what is gone

    def forget_tenant(self, tenant: str) -> None:
        for function in [one for one in self._idle_times if tenant_of(one) == tenant]:
            del self._idle_times[function]
            self._forget(function)
        self._worth.pop(TenantId(tenant), None)
        for told in self._told.values():
            told.pop(TenantId(tenant), None)

    def _forget(self, function: FunctionId) -> None:
        self._fresh.pop(function, None)
        self._needed.pop(function, None)
        self._worth.get(tenant_of(function), {}).pop(function, None)
