"""What the planner has ordered and how it ended: bounds on what is alive, and the purse of idle seconds."""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field

import msgspec

from graph.calls import Trace
from graph.ids import FunctionId
from graph.plans import Budget, Held, PrewarmDecision, Prices
from graph.spending import Spending, earn, pay, reserve, steer
from orchestrator.whatif.instances import Instance, State

_UNENDED = (State.SCHEDULED, State.STARTING, State.IDLE)


@dataclass(slots=True)
class Order:
    decision: PrewarmDecision
    ordered_at: float
    one: Instance

    @property
    def open(self) -> bool:
        return self.one.state in _UNENDED and not self.one.served and self.one.waiter is None

    def held(self) -> Held:
        """As the next revision of its run finds it."""
        one = self.one
        ready_at = one.ready_at if one.state is State.IDLE else None
        return Held(self.decision, self.ordered_at, one.state is not State.SCHEDULED, ready_at)


@dataclass
class Orders:
    """All that have not ended. `purse`: whether idle seconds are bounded by busy ones, as the priced policy's are."""

    budget: Budget
    purse: bool
    _alive: dict[str, Order] = field(default_factory=dict)
    _spending: Spending = field(default_factory=Spending)

    def add(self, order: Order) -> None:
        self._alive[order.decision.decision_id] = order
        if self.purse:
            self._spending = reserve(self._spending, order.decision.evidence.idle_s)

    def earn(self, trace: Trace) -> None:
        """A run is over: what its calls kept busy may be let idle."""
        if self.purse:
            busy_s = trace.duration_s - trace.wait_s + sum(call.duration_s - call.wait_s for call in trace.calls)
            self._spending = earn(self._spending, busy_s, self.budget)

    def means(self, prices: Prices, besides: Collection[str] = ()) -> tuple[Prices, Budget]:
        """Prices and budget for a plan now; `besides` are ids of its own run's, which do not count."""
        self._settle()
        others = [order.decision for decision_id, order in self._alive.items() if decision_id not in besides]
        left = msgspec.structs.replace(
            self.budget,
            instances=max(0, self.budget.instances - len(others)),
            memory_mb=max(0, self.budget.memory_mb - sum(decision.memory_mb for decision in others)),
        )
        return steer(self._spending, prices, left) if self.purse else (prices, left)

    def scheduled(self) -> Counter[FunctionId]:
        """Instances ordered for later: no node counts them yet."""
        return Counter(
            order.one.function
            for order in self._alive.values()
            if order.one.state is State.SCHEDULED and order.one.function is not None
        )

    def _settle(self) -> None:
        for decision_id in [decision_id for decision_id, order in self._alive.items() if not order.open]:
            order = self._alive.pop(decision_id)
            if self.purse:
                self._spending = pay(self._spending, order.decision.evidence.idle_s, order.one.unused_s)
