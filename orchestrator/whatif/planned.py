"""The platform's own policies: `path`, and `priced`, made by the code that plans on a platform (graph.planning)."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from graph.calls import StartKind, Trace
from graph.ids import FunctionId, tenant_of
from graph.planning import plan, revise
from graph.plans import Budget, ExpectedCall, Held, Level, PrewarmDecision, PrewarmPlan, Prices, Standbys, Trigger
from graph.prediction import predict
from graph.starts import STANDBY
from orchestrator.planner.promises import LiveRun, Promises
from orchestrator.whatif.instances import Instance, State
from orchestrator.whatif.learning import Learning
from orchestrator.whatif.measures import calibration_error
from orchestrator.whatif.policy import Run, World
from orchestrator.whatif.programs import Program

_MEASURED = 8
_MEASURED_SEED = 7
_UNENDED = (State.SCHEDULED, State.STARTING, State.IDLE)


@dataclass(slots=True)
class _Order:
    decision: PrewarmDecision
    ordered_at: float
    one: Instance

    @property
    def open(self) -> bool:
        return self.one.state in _UNENDED and not self.one.served and self.one.waiter is None


@dataclass(slots=True)
class _Planned:
    """A run's orders, and what was said it would reach."""

    live: LiveRun
    orders: dict[str, _Order] = field(default_factory=dict)
    foretold: dict[FunctionId, float] = field(default_factory=dict)


class Planned(Learning):
    """`policy`: path or priced. `foretold`: (run, probability said at its start, whether the function was reached)."""

    def __init__(
        self, policy: str, keep_s: float, prices: Prices | None = None, budget: Budget | None = None, name: str = ""
    ) -> None:
        super().__init__(keep_s)
        self.name = name or policy
        self.foretold: list[tuple[int, float, bool]] = []
        self._policy = policy
        self._prices = prices or Prices()
        self._budget = budget or Budget()
        self._promises = Promises()
        self._runs: dict[int, _Planned] = {}
        self._alive: dict[str, _Order] = {}
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

    @property
    def _tier(self) -> str:
        return f"{self.world.starts.driver.name}/tier1"

    @property
    def _standby_tier(self) -> str:
        return f"{self.world.starts.driver.name}/{STANDBY}"

    def _expected(self, run: Run) -> list[ExpectedCall]:
        return predict(self.graph, run.entry, run.seen, seen_at_s=run.seen_at_s, tiers=self._tiers)

    def begins(self, run: Run) -> None:
        live = self._promises.begin(str(run.number), tenant_of(run.entry), run.entry, self.world.now)
        held = self._runs[run.number] = _Planned(live)
        expected = self._expected(run)
        held.foretold = {call.function: call.reach for call in expected}
        made = plan(
            expected,
            self._prices,
            self._left(),
            {call.function: self._unpromised(call.function) for call in expected},
            self.world.now,
            tenant=live.tenant,
            entry=run.entry,
            trigger=Trigger.INVOCATION,
            policy=self._policy,
            trace_id=live.trace_id,
            plan_id=f"{run.number}.0",
            standbys=self._standbys,
        )
        self._order(run, held, made)

    def called(self, run: Run, function: FunctionId) -> None:
        held = self._runs.get(run.number)
        if held is None:
            return
        self._promises.started(held.live, function)
        self._account(held, function)
        if not held.live.promised and not held.orders:
            return
        expected = self._expected(run)
        self._promises.keep_only(held.live, {call.function for call in expected})
        open_orders = [
            Held(
                order.decision,
                order.ordered_at,
                order.one.state is not State.SCHEDULED,
                order.one.ready_at if order.one.state is State.IDLE else None,
            )
            for order in held.orders.values()
        ]
        revision = revise(
            open_orders,
            expected,
            self._prices,
            self._left(held),
            self._idle_beside(held, expected),
            self.world.now,
            tenant=held.live.tenant,
            entry=run.entry,
            trigger=Trigger.INVOCATION,
            policy=self._policy,
            trace_id=held.live.trace_id,
            plan_id=f"{run.number}.{len(run.seen)}",
            elapsed_s=self.world.now - run.began,
            seen=run.seen,
            standbys=self._standbys,
        )
        for decision_id, _ in revision.cancelled:
            order = held.orders.pop(decision_id)
            self._alive.pop(decision_id, None)
            self.world.give_up(order.one)
        self._order(run, held, revision.plan)

    def ready(self, one: Instance, took_s: float) -> None:
        if one.function is not None:
            tier = self._standby_tier if one.made_by is StartKind.STANDBY else self._tier
            self.graph.set_start_time(one.function, took_s, tier)

    def ended(self, run: Run, trace: Trace) -> None:
        held = self._runs.pop(run.number)
        self._promises.end(held.live.trace_id)
        for decision_id, order in held.orders.items():
            if order.open and order.one.state is not State.IDLE:
                self.world.give_up(order.one)
            if not order.open:
                self._alive.pop(decision_id, None)
        reached = {call.callee for call in trace.calls} - {run.entry}
        for function in reached | held.foretold.keys():
            self.foretold.append((run.number, held.foretold.get(function, 0.0), function in reached))
        super().ended(run, trace)

    def calibration(self, skip: int = 0) -> float:
        """Its calibration error (measures.calibration_error) over all runs but the first `skip`; 0 when nothing was foretold."""
        said = [(share, reached) for run, share, reached in self.foretold if run >= skip]
        return calibration_error(said) if said else 0.0

    # -- orders

    def _order(self, run: Run, held: _Planned, made: PrewarmPlan) -> None:
        for function in made.ready:
            if not held.live.promised[function]:
                self._promises.promise(held.live, function, 1)
        for decision in made.decisions:
            if decision.level is Level.STANDBY:
                one = self.world.hold(run.number, decision.covers, decision.start_in_s, decision.expires_s, decision.decision_id)
            else:
                one = self.world.prepare(
                    run.number, decision.function, decision.start_in_s, decision.expires_s, decision.decision_id
                )
                self._promises.promise(held.live, decision.function, 1)
            order = held.orders[decision.decision_id] = _Order(decision, self.world.now, one)
            self._alive[decision.decision_id] = order

    def _account(self, held: _Planned, function: FunctionId) -> None:
        """A stage has, or waits for, its instance: orders that came to an end so are over, else one of its function is."""
        ended = [decision_id for decision_id, order in held.orders.items() if not order.open]
        served = any(held.orders[decision_id].one.function == function for decision_id in ended)
        for decision_id in ended:
            del held.orders[decision_id]
            self._alive.pop(decision_id, None)
        if not served:
            other = next(
                (key for key, order in held.orders.items() if order.decision.function == function and order.one.function), None
            )
            if other is not None:
                del held.orders[other]

    # -- what is there

    def _left(self, held: _Planned | None = None) -> Budget:
        """What other runs leave of the bounds."""
        gone = [decision_id for decision_id, order in self._alive.items() if not order.open]
        for decision_id in gone:
            del self._alive[decision_id]
        own = held.orders.keys() if held else ()
        others = [order.decision for decision_id, order in self._alive.items() if decision_id not in own]
        return msgspec.structs.replace(
            self._budget,
            instances=max(0, self._budget.instances - len(others)),
            memory_mb=max(0, self._budget.memory_mb - sum(decision.memory_mb for decision in others)),
        )

    def _unpromised(self, function: FunctionId) -> int:
        return max(0, self.world.free(function) + self._scheduled(function) - self._promises.total(function))

    def _scheduled(self, function: FunctionId) -> int:
        return sum(order.decision.function == function and order.one.state is State.SCHEDULED for order in self._alive.values())

    def _idle_beside(self, held: _Planned, expected: Sequence[ExpectedCall]) -> dict[FunctionId, int]:
        own: dict[FunctionId, int] = {}
        for order in held.orders.values():
            if order.one.function is not None:
                own[order.decision.function] = own.get(order.decision.function, 0) + 1
        return {
            call.function: max(0, self._unpromised(call.function) + held.live.promised[call.function] - own.get(call.function, 0))
            for call in expected
        }
