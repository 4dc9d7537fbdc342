"""What each tenant's plans may still let idle (graph.spending), counted from what really was busy and idle. No I/O."""

from collections.abc import Iterable
from typing import Any

from graph.plans import Budget, Prices
from graph.spending import Spending, earn, free_s, pay, pressure, reserve, steer
from orchestrator.planner.log import LogEntry
from tracing.records import InvocationRecord


class Purses:
    """By tenant; one for each that exists."""

    def __init__(self, purses: dict[str, Spending] | None = None) -> None:
        self._of = dict(purses or {})

    def all(self) -> dict[str, Spending]:
        return dict(self._of)

    def earn(self, records: Iterable[InvocationRecord], budget: Budget) -> None:
        """Invocations kept instances busy."""
        for record in records:
            self._of[record.tenant] = earn(self._of.get(record.tenant, Spending()), record.timings.run / 1000, budget)

    def pay(self, entry: LogEntry) -> None:
        """A decision of the priced policy has ended."""
        self._of[entry.tenant] = pay(self._of.get(entry.tenant, Spending()), 0.0, entry.idle_s)

    def steer(self, tenant: str, prices: Prices, budget: Budget, still_open: Iterable[LogEntry]) -> tuple[Prices, Budget]:
        """The prices and the budget to plan with. `still_open`: decisions whose idling is expected and not paid yet."""
        return steer(self._with(tenant, still_open), prices, budget)

    def told(self, tenant: str, budget: Budget, still_open: Iterable[LogEntry]) -> dict[str, Any]:
        state = self._with(tenant, still_open)
        return {
            "idle_s_per_busy_s": budget.idle_s_per_busy_s,
            "left_s": free_s(state) if budget.idle_s_per_busy_s > 0 else 0.0,
            "spent_s": state.idle_s,
            "busy_s": state.busy_s,
            "dearer": pressure(state),
        }

    def forget_tenant(self, tenant: str) -> None:
        self._of.pop(tenant, None)

    def _with(self, tenant: str, still_open: Iterable[LogEntry]) -> Spending:
        """What is reserved is added up from what is open, so that nothing stays reserved that is not."""
        return reserve(self._of.get(tenant, Spending()), sum(one.evidence.idle_s for one in still_open))
