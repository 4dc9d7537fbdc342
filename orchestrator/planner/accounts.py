"""What outcomes and records teach beside the call graph: how long starts take, what fails, what was spent, what came true."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from graph.calls import StartKind
from graph.plans import Budget, Outcome, Prices
from orchestrator.planner.log import LogEntry
from orchestrator.planner.purses import Purses
from orchestrator.planner.reckoning import Reckoning
from orchestrator.planner.setbacks import INIT_FAILED, Setbacks
from orchestrator.planner.start_times import StartSources
from tracing.records import InvocationRecord
from workers.rpc.messages import DecisionUpdate

STARTED = (StartKind.COLD, StartKind.STANDBY, StartKind.ALMOST_WARM)


class Accounts:
    """`whole(tenant)`: its budget."""

    def __init__(
        self,
        sources: StartSources,
        purses: Purses,
        reckoning: Reckoning,
        whole: Callable[[str], Budget] = lambda tenant: Budget(),
    ) -> None:
        self.sources = sources
        self.purses = purses
        self.reckoning = reckoning
        self.setbacks = Setbacks()
        self.whole = whole

    def tried(self, version: str) -> None:
        """An instance of it was ordered."""
        self.setbacks.tried(version, time.monotonic())

    def outcome(self, entry: LogEntry, update: DecisionUpdate) -> None:
        """What a node said of a decision, which is in the log already."""
        if entry.outcome is Outcome.READY:
            self.sources.ready(entry, update)
            self.setbacks.worked(entry.version)
        elif entry.outcome is Outcome.CANCELLED and entry.detail.startswith(INIT_FAILED):
            reason = entry.detail.removeprefix(INIT_FAILED).strip()[:200]
            self.setbacks.failed(entry.version, reason, time.monotonic())
        if entry.outcome.final:
            self.ended(entry)

    def ended(self, entry: LogEntry) -> None:
        """A decision, however it did."""
        self.reckoning.ended(entry, self.sources.held_mb(entry))
        if entry.policy == "priced":
            self.purses.pay(entry)

    def records(self, records: Sequence[InvocationRecord]) -> None:
        """Invocations that have ended: starts they waited for, and how long they kept instances busy."""
        self.sources.observed(records)
        self.reckoning.invoked(records)
        for tenant in {one.tenant for one in records}:
            self.purses.earn((one for one in records if one.tenant == tenant), self.whole(tenant))
        for record in records:
            if record.status == "ok" and record.start in STARTED:
                self.setbacks.worked(f"{record.function}:{record.version}")

    def told(self, tenant: str, prices: Prices, version_of: Callable[[str], str]) -> dict[str, Any]:
        """How predictions held and what waiting and idling cost, with what rests now. `version_of(name)`: what would be prepared,
        empty when it is not deployed."""
        told = self.reckoning.of(tenant, prices)
        for one in told["functions"]:
            one["resting"] = self.setbacks.resting(version_of(one["function"]), time.monotonic())
        return told

    def forget_tenant(self, tenant: str) -> None:
        for each in (self.sources, self.purses, self.reckoning, self.setbacks):
            each.forget_tenant(tenant)
