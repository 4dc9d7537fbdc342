"""What a plan may count on and spend: idle instances nobody spoke for, and what the tenant's budget leaves. No policy, no I/O."""

import time
from collections import Counter
from collections.abc import Collection, Iterable
from typing import Any

import msgspec

from graph.ids import FunctionId
from graph.plans import Budget, ExpectedCall, Prices, Standbys
from orchestrator.catalog.watch import RouteTable
from orchestrator.planner.forecasts import Forecasts
from orchestrator.planner.log import DecisionLog
from orchestrator.planner.peers import Fleet
from orchestrator.planner.promises import LiveRun, Promises
from orchestrator.planner.purses import Purses
from orchestrator.planner.start_times import STANDBY_MB, StartSources


class Means:
    def __init__(
        self,
        table: RouteTable,
        fleet: Fleet,
        decisions: DecisionLog,
        promises: Promises,
        forecasts: Forecasts,
        budget: Budget,
        sources: StartSources,
        purses: Purses,
    ) -> None:
        self._table = table
        self._fleet = fleet
        self._log = decisions
        self._promises = promises
        self._forecasts = forecasts
        self._budget = budget
        self._sources = sources
        self.purses = purses
        self.prices = Prices()

    def whole(self, tenant: str) -> Budget:
        """The platform's, with the tenant's own quotas where some were set."""
        route = self._table.tenants.get(tenant)
        if route is None:
            return self._budget
        own = {"instances": route.quotas.prewarm_instances, "idle_s_per_busy_s": route.quotas.prewarm_idle_s_per_busy_s}
        return msgspec.structs.replace(self._budget, **{name: value for name, value in own.items() if value is not None})

    def left(self, tenant: str, besides: Collection[str] = ()) -> tuple[Prices, Budget]:
        """The prices of now, and what other decisions that have not ended leave of the budget; `besides` are ids of those that do
        not count."""
        alive = [one for one in self._log.open_of(tenant) if one.decision_id not in besides]
        whole = self.whole(tenant)
        left = msgspec.structs.replace(
            whole,
            instances=max(0, whole.instances - len(alive)),
            memory_mb=max(0, whole.memory_mb - sum(one.memory_mb for one in alive)),
        )
        return self.purses.steer(tenant, self.prices, left, self._log.open_of(tenant))

    def idle(
        self, tenant: str, expected: Iterable[ExpectedCall], run: LiveRun | None, own: Counter[FunctionId] | None = None
    ) -> dict[FunctionId, int]:
        """Instances per function that are idle or on their way, for nobody else. `own`: how many of what the run was promised are
        decisions that the caller counts itself."""
        coming = self._coming(tenant)
        found: dict[FunctionId, int] = {}
        for call in expected:
            spec = self._forecasts.latest(call.function, run.trace_id if run is not None else "")
            there = self._fleet.idle(spec.version) + coming[call.function] if spec is not None else 0
            free = max(0, there - self._promises.total(call.function))
            held = run.promised[call.function] if run is not None else 0
            found[call.function] = free + max(0, held - (own[call.function] if own is not None else 0))
        return found

    def there(self, function: FunctionId) -> bool:
        """Whether a call of it would find an instance that nobody else counts on."""
        spec = self._forecasts.latest(function)
        return spec is not None and self._fleet.idle(spec.version) > self._promises.total(function)

    def start_s(self, function: FunctionId) -> float:
        """Expected seconds until an instance that is begun now is ready."""
        return self._forecasts.start_s(function)

    def standbys(self, tenant: str) -> Standbys | None:
        """None where no standby was made yet: what one costs is not known."""
        driver = next((node.driver for node in self._fleet.up() if node.driver), "")
        clone_s = self._sources.clone_s(driver)
        if clone_s is None:
            return None
        return Standbys(clone_s, dict(self._fleet.free_standbys(tenant)), STANDBY_MB.get(driver))

    def told(self, tenant: str) -> dict[str, Any]:
        """Prices, and what may be spent."""
        spending = self.purses.told(tenant, self.whole(tenant), self._log.open_of(tenant))
        return {"prices": msgspec.to_builtins(self.prices), "spending": spending}

    def _coming(self, tenant: str) -> Counter[FunctionId]:
        """Ordered for later: no node counts them yet, and somebody is promised each."""
        now = time.time()
        return Counter(
            FunctionId(one.function)
            for one in self._log.coming_of(tenant)
            if one.start_in_s > 0 and one.level == "ready" and one.created_at + one.start_in_s > now
        )
