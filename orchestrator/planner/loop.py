"""From a trigger to orders: predict, plan, send, and revise while the run goes on. Thin: the policies are in `graph`."""

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import msgspec

from graph.callgraph import CallGraph
from graph.ids import FunctionId, TenantId, VersionId, function_id, function_of, tenant_of
from graph.planning import plan, revise
from graph.plans import (
    Budget,
    EdgeSource,
    ExpectedCall,
    Held,
    Level,
    Outcome,
    PrewarmDecision,
    PrewarmPlan,
    Skipped,
    Trigger,
)
from orchestrator.catalog.watch import RouteTable
from orchestrator.planner.accounts import Accounts
from orchestrator.planner.anticipation import Anticipation
from orchestrator.planner.dispatch import Dispatch, Right
from orchestrator.planner.forecasts import Forecasts
from orchestrator.planner.foresight import Foresight
from orchestrator.planner.idle_times import IdleTimes
from orchestrator.planner.keeping import Keeping
from orchestrator.planner.learned import Learned
from orchestrator.planner.leftovers import leftovers
from orchestrator.planner.log import DecisionLog, LogEntry
from orchestrator.planner.means import Means
from orchestrator.planner.peers import Fleet
from orchestrator.planner.promises import LiveRun, Promises
from orchestrator.planner.purses import Purses
from orchestrator.planner.reckoning import Reckoning
from orchestrator.planner.start_times import StartSources
from workers.rpc.connection import RpcError
from workers.rpc.messages import DecisionUpdate, TriggerEvent

USED = (Outcome.HIT, Outcome.LATE)


class PlannerLoop:
    """Holds no policy of its own. `policy_of(tenant)` is path, priced or off. `right(tenant)`: the lease and epoch under which
    orders for a tenant go out now, None while another planner decides for it. `keep_price`: of a GB kept idle
    for a second after its use, in the unit of graph.plans.Prices."""

    def __init__(
        self,
        graph: CallGraph,
        table: RouteTable,
        fleet: Fleet,
        decisions: DecisionLog,
        budget: Budget,
        default_policy: str,
        policies: dict[str, str],
        right: Right = lambda tenant: ("", 0),
        kept: Learned | None = None,
        keep_price: float = 1.0,
    ) -> None:
        self._right = right
        self.policies = policies
        self._log = decisions
        self._budget = budget
        self._default_policy = default_policy
        kept = kept or Learned()
        self.promises = Promises(self._over)
        sources, purses = StartSources(graph, fleet.driver_of), Purses(kept.spending)
        self.accounts = Accounts(sources, purses, Reckoning(kept.books))
        self.forecasts = Forecasts(graph, table, sources, self.accounts.setbacks)
        self.means = Means(table, fleet, decisions, self.promises, self.forecasts, budget, sources, purses)
        self.accounts.whole = self.means.whole
        self.dispatch = self._dispatch = Dispatch(fleet, decisions, self.forecasts.latest, right, self.accounts.tried)
        self.keeping = Keeping(
            graph,
            fleet,
            self.forecasts,
            msgspec.structs.replace(self.means.prices, idle_gb_s=keep_price),
            lambda tenant: self.policy_of(tenant) == "priced",
            right,
            IdleTimes(self._per, kept.idle_times, kept.further_idle_times),
            lambda: leftovers(table, fleet, self.released()),
        )
        self.ahead = Anticipation(
            graph,
            Foresight(kept.arrivals),
            self.forecasts,
            sources,
            lambda tenant: self.policy_of(tenant) == "priced" and right(tenant) is not None,
            self._foreseen,
            self._dispatch.send,
            self._dispatch.revoke,
            self.keeping.of,
        )
        self.released: Callable[[], Collection[str]] = tuple  # versions of releases on their way
        self._numbers = 0
        self._boot = f"{time.time_ns() // 1_000_000:x}"

    def _per(self, function: FunctionId) -> int:
        spec = self.forecasts.latest(function)
        return spec.concurrency if spec is not None else 1

    def policy_of(self, tenant: str) -> str:
        return self.policies.get(tenant, self._default_policy)

    # -- triggers

    def on_event(self, event: TriggerEvent) -> None:
        """An invocation is about to start, or a run has ended."""
        function = function_of(VersionId(event.version))
        tenant = tenant_of(function)
        if not event.ended:
            self.keeping.started(event)
        if event.ended:
            self._ended(event.trace_id)
        elif not event.parent_id:
            if self.policy_of(tenant) != "off" and self._right(tenant) is not None:
                self.ahead.started(function)
                run = self.promises.begin(event.trace_id, tenant, function, time.monotonic())
                self._plan_run(run)
        else:
            live = self.promises.get(event.trace_id)
            if live is not None:
                self.promises.started(live, function, time.monotonic())
                self._revise(live)

    def _plan_run(self, run: LiveRun) -> None:
        expected, skipped = self.forecasts.expected(run.entry)
        run.foreseen = {one.function: one.reach for one in expected} | {one.function: one.reach for one in skipped}
        if expected or skipped:
            self._decide(run.tenant, run.entry, expected, skipped, Trigger.INVOCATION, run)

    def _revise(self, run: LiveRun) -> None:
        """A stage started: what is expected now may differ; losers are given up, newcomers prepared."""
        priced = self.policy_of(run.tenant) == "priced"
        if not priced and not run.promised and not run.decisions:
            return
        if self._right(run.tenant) is None:
            return
        expected, _ = self.forecasts.expected(run.entry, run.seen, run.seen_at_s if priced else ())
        held = self._held(run)
        prices, budget = self.means.left(run.tenant, {one.decision.decision_id for one in held})
        own = Counter(one.decision.function for one in held if one.decision.level is Level.READY)
        revision = revise(
            held,
            expected,
            prices,
            budget,
            self.means.idle(run.tenant, expected, run, own),
            time.time(),
            tenant=run.tenant,
            entry=run.entry,
            trigger=Trigger.INVOCATION,
            policy=self.policy_of(run.tenant),
            trace_id=run.trace_id,
            plan_id=self._next_id(),
            elapsed_s=time.monotonic() - run.began,
            standbys=self.means.standbys(run.tenant) if priced else None,
            seen=run.seen,
        )
        self._give_up(run, revision.cancelled, release=priced)
        self.promises.keep_only(run, {one.function for one in expected})
        self._send(revision.plan, run, expected)

    def _held(self, run: LiveRun) -> list[Held]:
        """The run's open decisions, but for those that stages which have just started are about to take."""
        found: list[Held] = []
        taken = Counter(run.seen) - run.used
        entries = [entry for one in run.decisions if (entry := self._log.open_one(one)) is not None]
        for entry in sorted(entries, key=lambda one: (one.level, one.outcome is not Outcome.READY, one.ordinal)):
            decision = run.decisions[entry.decision_id]
            by = next((one for one in (decision.function, *decision.covers) if taken[one] > 0), None)
            if by is not None:
                taken[by] -= 1
                continue
            ready_at = entry.ready_at if entry.outcome is Outcome.READY else None
            found.append(Held(decision, entry.created_at, ready_at is not None, ready_at))
        return found

    def _ended(self, trace_id: str) -> None:
        run = self.promises.end(trace_id)
        if run is None:
            return
        self.accounts.reckoning.run(run.foreseen, set(run.seen))
        self._over(run)

    def _over(self, run: LiveRun) -> None:
        """Nothing of it is needed any more."""
        self.ahead.ended(run.entry)
        if not run.decisions:
            return
        priced = self.policy_of(run.tenant) == "priced"
        left = [one for one in run.decisions if self._log.unready(one) or (priced and self._log.open_one(one) is not None)]
        self._dispatch.revoke(run.tenant, [(one, "the run ended without it") for one in left], priced)

    def _give_up(self, run: LiveRun, gone: Sequence[tuple[str, str]], release: bool) -> None:
        for decision_id, _ in gone:
            decision = run.decisions.pop(decision_id)
            if decision.level is Level.READY:
                self.promises.release(run, decision.function)
        self._dispatch.revoke(run.tenant, gone, release)

    # -- plans

    def show(self, tenant: TenantId, entry: FunctionId) -> PrewarmPlan:
        """What would be prepared now if `entry` were invoked; orders nothing."""
        expected, skipped = self.forecasts.expected(entry)
        made = self._make(tenant, entry, expected, Trigger.INVOCATION, None)
        return msgspec.structs.replace(made, skipped=(*made.skipped, *skipped))

    def warm(self, tenant: TenantId, entry: FunctionId, count: int) -> PrewarmPlan:
        """Prepares `count` instances of `entry` and its whole path now. Raises RpcError (503) where another planner decides."""
        spec = self.forecasts.latest(entry)
        if self._right(tenant) is None:
            raise RpcError("another planner decides for this tenant now; try again")
        expected, skipped = self.forecasts.expected(entry)
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
        # a path's times run from when the entry works: by its own start later than now when it finds no instance
        ahead_s = self.means.start_s(entry) if trigger is Trigger.INVOCATION and not self.means.there(entry) else 0.0
        made = self._make(tenant, entry, expected, trigger, run, -ahead_s)
        if self._right(tenant) is None:
            return msgspec.structs.replace(made, decisions=(), skipped=(*made.skipped, *skipped))
        self._send(made, run, expected)
        return msgspec.structs.replace(made, skipped=(*made.skipped, *skipped))

    def _make(
        self,
        tenant: TenantId,
        entry: FunctionId,
        expected: list[ExpectedCall],
        trigger: Trigger,
        run: LiveRun | None,
        elapsed_s: float = 0.0,
    ) -> PrewarmPlan:
        policy = self.policy_of(tenant) if trigger is not Trigger.WARM else "path"
        prices, budget = self.means.left(tenant)
        return plan(
            expected,
            prices,
            budget,
            self.means.idle(tenant, expected, run),
            time.time(),
            tenant=tenant,
            entry=entry,
            trigger=trigger,
            policy=policy,
            trace_id=run.trace_id if run is not None else None,
            plan_id=self._next_id(),
            elapsed_s=elapsed_s,
            standbys=self.means.standbys(tenant) if policy == "priced" else None,
        )

    def _foreseen(
        self,
        tenant: TenantId,
        entry: FunctionId,
        calls: list[ExpectedCall],
        skipped: list[Skipped],
        trigger: Trigger,
        elapsed_s: float,
    ) -> PrewarmPlan:
        made = self._make(tenant, entry, calls, trigger, None, elapsed_s)
        return msgspec.structs.replace(made, skipped=(*made.skipped, *skipped))

    def _send(self, made: PrewarmPlan, run: LiveRun | None, expected: Sequence[ExpectedCall]) -> None:
        """Orders it, and notes what the run counts on from now on."""
        if run is not None:
            self.keeping.needed(made.tenant, made.ready, expected, time.monotonic() - run.began, time.time())
            for function in made.ready:
                if not run.promised[function]:
                    self.promises.promise(run, function, 1)
                    run.warm[function] += 1
        for decision in self._dispatch.send(made):
            if run is not None:
                run.decisions[decision.decision_id] = decision
                if decision.level is Level.READY:
                    self.promises.promise(run, decision.function, 1)

    def decide_again(self, lost: Iterable[LogEntry], node: str) -> None:
        """What was open or ready on a node that is gone is prepared on another, if there is one."""
        for one in lost:
            self.accounts.ended(one)
            if one.trigger in (Trigger.WANTED, Trigger.RELEASE):
                continue  # who ordered it counts what is there, and orders what is missing
            plan_id = self._next_id()
            decision = PrewarmDecision(
                f"{plan_id}-again",
                FunctionId(one.function),
                one.ordinal,
                one.memory_mb,
                min(one.start_in_s, max(0.0, one.created_at + one.start_in_s - time.time())),  # the clock may have been set back
                one.expires_s or self._budget.unused_s,
                f"again, {node} was lost: {one.reason}",
                one.evidence,
                Level(one.level),
                tuple(FunctionId(each) for each in one.covers),
            )
            made = PrewarmPlan(
                plan_id,
                TenantId(one.tenant),
                FunctionId(one.entry),
                Trigger(one.trigger),
                self.policy_of(one.tenant),
                time.time(),
                one.trace_id or None,
                (decision,),
            )
            run = self.promises.get(one.trace_id)
            sent = self._dispatch.send(made)
            if run is not None and run.decisions.pop(one.decision_id, None) is not None:
                if sent:
                    run.decisions[decision.decision_id] = decision  # the run counted on it all along
                elif decision.level is Level.READY:
                    self.promises.release(run, decision.function)

    def _next_id(self) -> str:
        self._numbers += 1
        return f"p{self._boot}-{self._numbers}"

    # -- outcomes

    def on_outcomes(self, updates: Sequence[DecisionUpdate], node: str = "") -> None:
        """Keeps the log, what is learned from it, and what live runs count on."""
        for update in updates:
            entry = self._log.update(update, node)
            if entry is not None:
                self.accounts.outcome(entry, update)
                if entry.outcome.final:
                    self._settle(entry)

    def _settle(self, entry: LogEntry) -> None:
        """A decision has ended; its run may live on."""
        if entry.outcome is Outcome.WASTED and entry.trigger in (Trigger.PREDICTED, Trigger.TIMER):
            self.ahead.wasted(FunctionId(entry.entry))
        run = self.promises.get(entry.trace_id)
        decision = run.decisions.pop(entry.decision_id, None) if run is not None else None
        if run is None or decision is None:
            return
        if entry.outcome in USED:
            run.used[function_of(VersionId(entry.became)) if entry.became else decision.function] += 1
        elif decision.level is Level.READY:
            self.promises.release(run, decision.function)

    def told(self, tenant: str) -> dict[str, Any]:
        """The tenant's policy, what it may spend, how predictions held and what waiting and idling cost."""

        def version_of(name: str) -> str:
            spec = self.forecasts.latest(function_id(tenant, name))
            return spec.version if spec is not None else ""

        accounts = self.accounts.told(tenant, self.means.prices, version_of)
        for one in accounts["functions"]:
            function = function_id(tenant, one["function"])
            one["keep_s"], one["keep_why"] = self.keeping.of(function), self.keeping.why(function)
        return {"policy": self.policy_of(tenant), **self.means.told(tenant), **accounts}

    def learned(self) -> Learned:
        """What is written down beside the graph and the log."""
        accounts, idle = self.accounts, self.keeping.idle_times
        return Learned(
            accounts.reckoning.books(), accounts.purses.all(), self.ahead.foresight.all(), idle.first(), idle.further()
        )

    def forget_tenant(self, tenant: str) -> None:
        self.policies.pop(tenant, None)
        self.promises.forget_tenant(tenant)
        self.forecasts.forget()
        self.accounts.forget_tenant(tenant)
        self.ahead.forget_tenant(tenant)
        self.keeping.forget_tenant(tenant)
