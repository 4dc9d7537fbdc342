"""From a trigger to orders: predict, plan, send, and revise while the run goes on. Thin: the policies are in `graph`."""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import msgspec

from graph.callgraph import CallGraph
from graph.ids import FunctionId, TenantId, VersionId, function_of, tenant_of
from graph.planning import losers, plan
from graph.plans import Budget, EdgeSource, ExpectedCall, PrewarmDecision, PrewarmPlan, Prices, Skipped, Trigger
from orchestrator.catalog.watch import RouteTable
from orchestrator.planner.dispatch import Dispatch
from orchestrator.planner.forecasts import Forecasts
from orchestrator.planner.log import DecisionLog, LogEntry
from orchestrator.planner.peers import Fleet
from orchestrator.planner.promises import LiveRun, Promises
from workers.rpc.connection import RpcError
from workers.rpc.messages import DecisionUpdate, TriggerEvent


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
        self.promises = Promises()
        self.forecasts = Forecasts(graph, table)
        self._dispatch = Dispatch(fleet, decisions, self.forecasts.latest, right)
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
                run = self.promises.begin(event.trace_id, tenant, function, time.monotonic())
                self._plan_run(run)
        else:
            live = self.promises.get(event.trace_id)
            if live is not None:
                self.promises.started(live, function)
                self._revise(live)

    def _plan_run(self, run: LiveRun) -> None:
        expected, skipped = self.forecasts.expected(run.entry, run.seen)
        if not expected and not skipped:
            return
        self._decide(run.tenant, run.entry, expected, skipped, Trigger.INVOCATION, run)

    def _revise(self, run: LiveRun) -> None:
        """A stage started: what is expected now may differ; losers are cancelled, newcomers prepared."""
        if not run.promised and not run.decisions:
            return
        expected, skipped = self.forecasts.expected(run.entry, run.seen)
        waiting = [one for one in run.decisions.values() if self._log.unready(one.decision_id)]
        if waiting:
            self._dispatch.revoke(run.tenant, losers(waiting, expected, self._budget, run.seen))
        self.promises.keep_only(run, {one.function for one in expected})
        self._decide(run.tenant, run.entry, expected, skipped, Trigger.INVOCATION, run)

    def _ended(self, trace_id: str) -> None:
        run = self.promises.end(trace_id)
        if run is None or not run.decisions:
            return
        self._dispatch.revoke(run.tenant, [(one, "the run ended without it") for one in run.decisions if self._log.unready(one)])

    # -- plans

    def show(self, tenant: TenantId, entry: FunctionId) -> PrewarmPlan:
        """What would be prepared now if `entry` were invoked; orders nothing."""
        expected, skipped = self.forecasts.expected(entry, ())
        made = self._make(tenant, entry, expected, Trigger.INVOCATION, None)
        return msgspec.structs.replace(made, skipped=(*made.skipped, *skipped))

    def warm(self, tenant: TenantId, entry: FunctionId, count: int) -> PrewarmPlan:
        """Prepares `count` instances of `entry` and its whole path now. Raises RpcError (503) where another planner decides."""
        spec = self.forecasts.latest(entry)
        if self._right(tenant) is None:
            raise RpcError("another planner decides for this tenant now; try again")
        expected, skipped = self.forecasts.expected(entry, ())
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
        if self._right(tenant) is None:
            return msgspec.structs.replace(made, decisions=(), skipped=(*made.skipped, *skipped))
        if run is not None:
            for function in made.ready:
                if not run.promised[function]:
                    self.promises.promise(run, function, 1)
        for decision in self._dispatch.send(made):
            if run is not None:
                run.decisions[decision.decision_id] = decision
                self.promises.promise(run, decision.function, 1)
        return msgspec.structs.replace(made, skipped=(*made.skipped, *skipped))

    def decide_again(self, lost: Iterable[LogEntry], node: str) -> None:
        """What was open or ready on a node that is gone is prepared on another, if there is one."""
        for one in lost:
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
                (decision,),
            )
            run = self.promises.get(one.trace_id)
            if self._dispatch.send(made) and run is not None:
                run.decisions.pop(one.decision_id, None)
                run.decisions[decision.decision_id] = decision  # the run counted on it all along

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
        spec = self.forecasts.latest(function)
        return max(0, self._fleet.idle(spec.version) - self.promises.total(function)) if spec is not None else 0

    # -- outcomes

    def on_outcomes(self, updates: Sequence[DecisionUpdate], node: str = "") -> None:
        """Keeps the log, and learns how long functions take to get ready."""
        for update in updates:
            entry = self._log.update(update, node)
            if entry is not None and update.outcome == "ready" and 0 <= update.start_s < math.inf:
                self._graph.set_start_time(FunctionId(entry.function), update.start_s)
