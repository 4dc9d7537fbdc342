"""From a trigger to orders: predict, plan, send, and revise while the run goes on. Thin: the policies are in `graph`."""

import math
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence

import msgspec
import structlog

from graph.callgraph import CallGraph
from graph.ids import FunctionId, TenantId, VersionId, function_of, tenant_of
from graph.planning import losers, plan
from graph.plans import (
    Budget,
    EdgeSource,
    Evidence,
    ExpectedCall,
    PrewarmDecision,
    PrewarmPlan,
    Prices,
    Skipped,
    Trigger,
)
from graph.prediction import predict
from orchestrator.catalog.watch import RouteTable
from orchestrator.planner.log import DecisionLog, LogEntry
from orchestrator.planner.peers import Fleet, NodePeer
from orchestrator.planner.promises import LiveRun, Promises
from workers.rpc.connection import RpcError
from workers.rpc.messages import DecisionUpdate, PrepareItem, TriggerEvent
from workers.versions import VersionSpec

PREDICTION_KEPT_S = 0.25
LEAD_FLOOR_S = 0.01  # leads are short where starts are not: without it reach would say little
PREDICTIONS = 5_000

log = structlog.get_logger(__name__)


class PlannerLoop:
    """Holds no policy of its own. `policy_of(tenant)` is path or off. `right(tenant)`: the lease and epoch under which orders for
    a tenant go out now, None while another planner decides for it."""

    def __init__(
        self,
        graph: CallGraph,
        table: RouteTable,
        fleet: Fleet,
        decisions: DecisionLog,
        budget: Budget,
        default_policy: str,
        policies: dict[str, str],
        right: Callable[[str], tuple[str, int] | None] = lambda tenant: ("", 0),
    ) -> None:
        self._right = right
        self.policies = policies
        self._graph = graph
        self._table = table
        self._fleet = fleet
        self._log = decisions
        self._budget = budget
        self._default_policy = default_policy
        self._prices = Prices()
        self._promises = Promises()
        self._predictions: OrderedDict[tuple[str, ...], tuple[float, list[ExpectedCall]]] = OrderedDict()
        self._numbers = 0
        self._boot = f"{time.time_ns() // 1_000_000:x}"

    def policy_of(self, tenant: str) -> str:
        return self.policies.get(tenant, self._default_policy)

    def budget_of(self, tenant: str) -> Budget:
        """The platform's, with the tenant's own quota of prewarmed instances where one was set."""
        route = self._table.tenants.get(tenant)
        own = route.quotas.prewarm_instances if route is not None else None
        return self._budget if own is None else msgspec.structs.replace(self._budget, instances=own)

    # -- triggers

    def on_event(self, event: TriggerEvent) -> None:
        """An invocation is about to start, or a run has ended."""
        function = function_of(VersionId(event.version))
        tenant = tenant_of(function)
        if event.ended:
            self._ended(event.trace_id)
        elif not event.parent_id:
            if self.policy_of(tenant) != "off" and self._right(tenant) is not None:
                run = self._promises.begin(event.trace_id, tenant, function, time.monotonic())
                self._plan_run(run)
        else:
            live = self._promises.get(event.trace_id)
            if live is not None:
                self._promises.started(live, function)
                self._revise(live)

    def _plan_run(self, run: LiveRun) -> None:
        expected, skipped = self._expected(run.entry, run.seen)
        if not expected and not skipped:
            return
        self._decide(run.tenant, run.entry, expected, skipped, Trigger.INVOCATION, run)

    def _revise(self, run: LiveRun) -> None:
        """A stage started: what is expected now may differ; losers are cancelled, newcomers prepared."""
        if not run.promised and not run.decisions:
            return
        expected, skipped = self._expected(run.entry, run.seen)
        waiting = [one for one in run.decisions.values() if self._log.unready(one.decision_id)]
        if waiting:
            self._revoke(run.tenant, losers(waiting, expected, self._budget, run.seen))
        self._promises.keep_only(run, {one.function for one in expected})
        self._decide(run.tenant, run.entry, expected, skipped, Trigger.INVOCATION, run)

    def _ended(self, trace_id: str) -> None:
        run = self._promises.end(trace_id)
        if run is None or not run.decisions:
            return
        self._revoke(run.tenant, [(one, "the run ended without it") for one in run.decisions if self._log.unready(one)])

    # -- plans

    def show(self, tenant: TenantId, entry: FunctionId) -> PrewarmPlan:
        """What would be prepared now if `entry` were invoked; orders nothing."""
        expected, skipped = self._expected(entry, ())
        made = self._make(tenant, entry, expected, Trigger.INVOCATION, None)
        return msgspec.structs.replace(made, skipped=(*made.skipped, *skipped))

    def warm(self, tenant: TenantId, entry: FunctionId, count: int) -> PrewarmPlan:
        """Prepares `count` instances of `entry` and its whole path now. Raises RpcError (503) where another planner decides."""
        spec = self._latest(entry)
        if self._right(tenant) is None:
            raise RpcError("another planner decides for this tenant now; try again")
        expected, skipped = self._expected(entry, ())
        own = ExpectedCall(entry, 1.0, (1.0,) * count, (0.0,), 0, 0.0, EdgeSource.REQUESTED, spec.memory_mb if spec else 128, 0.0)
        return self._decide(tenant, entry, [own, *expected], skipped, Trigger.WARM, None)

    def _decide(
        self,
        tenant: TenantId,
        entry: FunctionId,
        expected: list[ExpectedCall],
        skipped: list[Skipped],
        trigger: Trigger,
        run: LiveRun | None,
    ) -> PrewarmPlan:
        made = self._make(tenant, entry, expected, trigger, run)
        right = self._right(tenant)
        if right is None:
            return msgspec.structs.replace(made, decisions=(), skipped=(*made.skipped, *skipped))
        if run is not None:
            for function in made.ready:
                if not run.promised[function]:
                    self._promises.promise(run, function, 1)
        orders: dict[NodePeer, list[PrepareItem]] = {}
        for decision in made.decisions:
            if self._order(made, decision, orders) and run is not None:
                run.decisions[decision.decision_id] = decision
                self._promises.promise(run, decision.function, 1)
        for node, items in orders.items():
            node.prepare(items, *right)
        return msgspec.structs.replace(made, skipped=(*made.skipped, *skipped))

    def _order(self, made: PrewarmPlan, decision: PrewarmDecision, orders: dict[NodePeer, list[PrepareItem]]) -> bool:
        """Finds a node for one decision and notes it. False when there is none."""
        spec = self._latest(decision.function)
        node = self._fleet.choose(spec) if spec is not None else None
        if spec is None or node is None:
            return False
        self._log.add(made, decision, spec.version, node.name)
        node.define(spec)
        orders.setdefault(node, []).append(
            PrepareItem(
                decision.decision_id,
                spec.version,
                "ready",
                decision.start_in_s,
                decision.expires_s,
                needed_in(decision.evidence),
            )
        )
        return True

    def decide_again(self, lost: Iterable[LogEntry], node: str) -> None:
        """What was open or ready on a node that is gone is prepared on another, if there is one."""
        for one in lost:
            right = self._right(one.tenant)
            if right is None:
                continue
            self._numbers += 1
            decision = PrewarmDecision(
                f"p{self._boot}-{self._numbers}-again",
                FunctionId(one.function),
                one.ordinal,
                one.memory_mb,
                0.0,
                self._budget.unused_s,
                f"again, {node} was lost: {one.reason}",
                one.evidence,
            )
            made = PrewarmPlan(
                f"p{self._boot}-{self._numbers}",
                TenantId(one.tenant),
                FunctionId(one.entry),
                Trigger(one.trigger),
                self.policy_of(one.tenant),
                time.time(),
                one.trace_id or None,
            )
            orders: dict[NodePeer, list[PrepareItem]] = {}
            self._order(made, decision, orders)
            run = self._promises.get(one.trace_id)
            if run is not None and orders:
                run.decisions.pop(one.decision_id, None)
                run.decisions[decision.decision_id] = decision  # the run counted on it all along
            for other, items in orders.items():
                other.prepare(items, *right)

    def _make(
        self, tenant: TenantId, entry: FunctionId, expected: list[ExpectedCall], trigger: Trigger, run: LiveRun | None
    ) -> PrewarmPlan:
        self._numbers += 1
        alive = self._log.open_of(tenant)
        whole = self.budget_of(tenant)
        budget = msgspec.structs.replace(
            whole,
            instances=max(0, whole.instances - len(alive)),
            memory_mb=max(0, whole.memory_mb - sum(one.memory_mb for one in alive)),
        )
        held = run.promised if run is not None else Counter[FunctionId]()
        idle = {one.function: self._unpromised(one.function) + held[one.function] for one in expected}
        return plan(
            expected,
            self._prices,
            budget,
            idle,
            time.time(),
            tenant=tenant,
            entry=entry,
            trigger=trigger,
            policy=self.policy_of(tenant) if trigger is not Trigger.WARM else "path",
            trace_id=run.trace_id if run is not None else None,
            plan_id=f"p{self._boot}-{self._numbers}",
            elapsed_s=time.monotonic() - run.began if run is not None else 0.0,
        )

    def _unpromised(self, function: FunctionId) -> int:
        spec = self._latest(function)
        return max(0, self._fleet.idle(spec.version) - self._promises.total(function)) if spec is not None else 0

    def _expected(self, entry: FunctionId, seen: Sequence[FunctionId]) -> tuple[list[ExpectedCall], list[Skipped]]:
        """Predictions for deployed functions, kept for a moment: a burst of the same workflow asks the same question."""
        now = time.monotonic()
        key = (entry, *seen)
        kept = self._predictions.get(key)
        if kept is None or now - kept[0] > PREDICTION_KEPT_S:
            kept = (now, predict(self._graph, entry, seen))
            self._predictions[key] = kept
            self._predictions.move_to_end(key)
            if len(self._predictions) > PREDICTIONS:
                self._predictions.popitem(last=False)
        expected, skipped = [], []
        for one in kept[1]:
            if self._latest(one.function) is None:
                skipped.append(Skipped(one.function, "not deployed", one.reach))
            else:
                expected.append(one)
        return expected, skipped

    def _latest(self, function: FunctionId) -> VersionSpec | None:
        route = self._table.routes.get(function)
        return self._table.version(route, "") if route is not None else None

    # -- outcomes

    def on_outcomes(self, updates: Sequence[DecisionUpdate], node: str = "") -> None:
        """Keeps the log, and learns how long functions take to get ready."""
        for update in updates:
            entry = self._log.update(update, node)
            if entry is not None and update.outcome == "ready" and 0 <= update.start_s < math.inf:
                self._graph.set_start_time(FunctionId(entry.function), update.start_s)

    def _revoke(self, tenant: str, gone: Sequence[tuple[str, str]]) -> None:
        right = self._right(tenant)
        if right is None:
            return
        by_why: dict[str, list[str]] = {}
        for decision_id, why in gone:
            by_why.setdefault(why, []).append(decision_id)
        for why, ids in by_why.items():
            for node in self._fleet.up():
                node.revoke(ids, why, *right)


def needed_in(evidence: Evidence) -> float:
    """Seconds by which nodes order what they prepare: the time until needed, longer for what is unlikely to be needed at all.

    A branch taken in one run of four waits behind a stage of every run that comes a little later.
    """
    return ((evidence.lead_s or 0.0) + LEAD_FLOOR_S) / max(evidence.reach, 0.01)
