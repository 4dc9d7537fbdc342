"""The platform's own policies: `path`, and `priced`, made by the code that plans on a platform (graph.planning)."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from graph.calibration import Calibration
from graph.calls import StartKind, Trace
from graph.ids import FunctionId, tenant_of
from graph.planning import plan, revise
from graph.plans import Budget, ExpectedCall, Level, PrewarmPlan, Prices, Standbys, Trigger
from graph.prediction import predict
from graph.starts import STANDBY
from orchestrator.whatif.instances import Instance, State
from orchestrator.whatif.learning import Learning
from orchestrator.whatif.orders import Order, Orders
from orchestrator.whatif.policy import Run, World
from orchestrator.whatif.programs import Program

_MEASURED = 8
_MEASURED_SEED = 7


@dataclass(slots=True)
class _Planned:
    """What a run has ordered, what it counts on (its orders and what was there), and what was said it would reach."""

    promised: Counter[FunctionId] = field(default_factory=Counter)
    orders: dict[str, Order] = field(default_factory=dict)
    foretold: dict[FunctionId, float] = field(default_factory=dict)


class Planned(Learning):
    """`policy`: path or priced; a budget of infinite idle seconds per busy one bounds nothing.

    `foretold`: (run, probability said at its start, whether the function was reached).
    """

    def __init__(self, policy: str, keep_s: float, prices: Prices | None = None, budget: Budget | None = None) -> None:
        super().__init__(keep_s)
        self.name = policy
        self.foretold: list[tuple[int, float, bool]] = []
        self._policy = policy
        self._prices = prices or Prices()
        self._promised: Counter[FunctionId] = Counter()  # of all runs
        self._runs: dict[int, _Planned] = {}
        budget = budget or Budget()
        self._orders = Orders(budget, purse=policy == "priced" and budget.idle_s_per_busy_s < float("inf"))
        self._standbys: Standbys | None = None
        self._tiers: dict[FunctionId, str] = {}

    def attach(self, world: World, arrivals: Sequence[tuple[float, Program]]) -> None:
        """Start times are what a platform has measured before: some of each function, with and without a standby."""
        super().attach(world, arrivals)
        starts = world.starts
        dice = random.Random(_MEASURED_SEED)  # noqa: S311
        functions = sorted({stage.function for _, program in arrivals for stage in program.stages})
        self._tiers = dict.fromkeys(functions, self._tier)
        for function in functions:
            for _ in range(_MEASURED):
                init_s = starts.init_of(function).draw(dice)
                self.graph.set_start_time(function, starts.driver.clone.draw(dice) + init_s, self._tier)
                self.graph.set_start_time(function, starts.driver.standby.draw(dice) + init_s, self._standby_tier)
        if self._policy == "priced":
            self._standbys = Standbys(starts.driver.clone.mean_s, memory_mb=max(1, round(starts.driver.standby_mb)))

    def begins(self, run: Run) -> None:
        held = self._runs[run.number] = _Planned()
        expected = self._expected(run)
        held.foretold = {call.function: call.reach for call in expected}
        # All of it comes later by the entry's own start.
        ahead_s = self.graph.starts(run.entry).expected_s(self._tier) if run.waits else 0.0
        made = self._plan(run.entry, expected, Trigger.INVOCATION, f"{run.number}.0", -ahead_s)
        self._counts_on(made, expected, 0.0)
        self._order(run.number, made, held)

    def called(self, run: Run, function: FunctionId) -> None:
        held = self._runs[run.number]
        self._promise(held, function, -1)
        self._account(held, function)
        if self._policy != "priced" and not +held.promised and not held.orders:
            return  # as the planner does it: what a path plan did not want at the start it does not want later
        expected = self._expected(run)
        for other in held.promised.keys() - {call.function for call in expected}:
            self._promise(held, other, -held.promised[other])
        prices, budget = self._orders.means(self._prices, held.orders)
        revision = revise(
            [order.held() for order in held.orders.values()],
            expected,
            prices,
            budget,
            self._idle_beside(held, expected),
            self.world.now,
            tenant=tenant_of(run.entry),
            entry=run.entry,
            trigger=Trigger.INVOCATION,
            policy=self._policy,
            plan_id=f"{run.number}.{len(run.seen)}",
            elapsed_s=self.world.now - run.began,
            seen=run.seen,
            standbys=self._standbys,
        )
        for decision_id, _ in revision.cancelled:
            order = held.orders.pop(decision_id)
            if order.decision.level is Level.READY:
                self._promise(held, order.decision.function, -1)
            self.world.give_up(order.one)
        self._counts_on(revision.plan, expected, self.world.now - run.began)
        self._order(run.number, revision.plan, held)

    def ready(self, one: Instance, took_s: float) -> None:
        if one.function is not None:
            tier = self._standby_tier if one.made_by is StartKind.STANDBY else self._tier
            self.graph.set_start_time(one.function, took_s, tier)

    def ended(self, run: Run, trace: Trace) -> None:
        """What it did not need is given up: what is not ready, and, where a price is on idling, what is."""
        held = self._runs.pop(run.number)
        self._promised.subtract(held.promised)
        for order in held.orders.values():
            if order.open and (self._policy == "priced" or order.one.state is not State.IDLE):
                self.world.give_up(order.one)
        reached = {call.callee for call in trace.calls} - {run.entry}
        for function in sorted(reached | held.foretold.keys()):
            self.foretold.append((run.number, held.foretold.get(function, 0.0), function in reached))
        self._orders.earn(trace)
        super().ended(run, trace)

    def calibration(self, skip: int = 0) -> Calibration:
        """Of what it said, over all runs but the first `skip`."""
        said = Calibration()
        for run, share, reached in self.foretold:
            if run >= skip:
                said.add(min(1.0, share), reached)
        return said

    # -- plans

    @property
    def _tier(self) -> str:
        return f"{self.world.starts.driver.name}/tier1"

    @property
    def _standby_tier(self) -> str:
        return f"{self.world.starts.driver.name}/{STANDBY}"

    def _expected(self, run: Run) -> list[ExpectedCall]:
        return predict(self.graph, run.entry, run.seen, seen_at_s=run.seen_at_s, tiers=self._tiers)

    def _plan(
        self, entry: FunctionId, expected: Sequence[ExpectedCall], trigger: Trigger, plan_id: str, elapsed_s: float = 0.0
    ) -> PrewarmPlan:
        """For a run that has nothing yet."""
        prices, budget = self._orders.means(self._prices)
        return plan(
            expected,
            prices,
            budget,
            self._unpromised(expected),
            self.world.now,
            tenant=tenant_of(entry),
            entry=entry,
            trigger=trigger,
            policy=self._policy,
            plan_id=plan_id,
            elapsed_s=elapsed_s,
            standbys=self._standbys,
        )

    def _counts_on(self, made: PrewarmPlan, expected: Sequence[ExpectedCall], elapsed_s: float) -> None:
        """A run has found what `made` names as ready."""

    def _order(self, run: int, made: PrewarmPlan, held: _Planned | None) -> list[Order]:
        ordered = []
        if held is not None:
            for function in made.ready:
                if not held.promised[function]:
                    self._promise(held, function, 1)
        for decision in made.decisions:
            if decision.level is Level.STANDBY:
                one = self.world.hold(run, decision.covers, decision.start_in_s, decision.expires_s, decision.decision_id)
            else:
                one = self.world.prepare(run, decision.function, decision.start_in_s, decision.expires_s, decision.decision_id)
                if held is not None:
                    self._promise(held, decision.function, 1)
            order = Order(decision, self.world.now, one)
            self._orders.add(order)
            ordered.append(order)
            if held is not None:
                held.orders[decision.decision_id] = order
        return ordered

    def _account(self, held: _Planned, function: FunctionId) -> None:
        """A stage has, or waits for, its instance: orders that came to an end so are over, else one of its function is."""
        ended = [decision_id for decision_id, order in held.orders.items() if not order.open]
        served = any(held.orders[decision_id].one.function == function for decision_id in ended)
        for decision_id in ended:
            del held.orders[decision_id]
        if not served:
            other = next((key for key, order in held.orders.items() if order.one.function == function), None)
            if other is not None:
                del held.orders[other]

    # -- what is there

    def _promise(self, held: _Planned, function: FunctionId, count: int) -> None:
        """So many more, or less, of it are spoken for by this run; never less than none."""
        count = max(count, -held.promised[function])
        held.promised[function] += count
        self._promised[function] += count

    def _unpromised(self, expected: Sequence[ExpectedCall]) -> dict[FunctionId, int]:
        coming = self._orders.scheduled()
        return {
            call.function: max(0, self.world.free(call.function) + coming[call.function] - self._promised[call.function])
            for call in expected
        }

    def _idle_beside(self, held: _Planned, expected: Sequence[ExpectedCall]) -> dict[FunctionId, int]:
        """Without what the run has ordered itself."""
        own = Counter(order.one.function for order in held.orders.values())
        promised = held.promised
        return {
            function: free + max(0, promised[function] - own[function]) for function, free in self._unpromised(expected).items()
        }
