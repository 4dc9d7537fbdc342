"""Plans before the request: for entries whose next call can be told from those before. Only of the policy `priced`."""

import time
from collections.abc import Callable
from typing import Protocol

import msgspec

from graph.arrivals import Kind, expected, path_after
from graph.callgraph import CallGraph
from graph.ids import FunctionId, TenantId, tenant_of
from graph.plans import ExpectedCall, PrewarmDecision, PrewarmPlan, Skipped, Trigger
from graph.timing import quantile
from orchestrator.planner.forecasts import Forecasts
from orchestrator.planner.foresight import Foresight
from orchestrator.planner.start_times import StartSources

HORIZON_S = 5.0
"""What is to begin sooner is ordered now, with its delay; for the rest there is time to look again."""

EARLY_S = 0.5
PAUSE_S = 1.0
GOES_S = 2.0
"""Nodes look once a second at what is idle, and tell so."""


class Make(Protocol):
    def __call__(
        self,
        tenant: TenantId,
        entry: FunctionId,
        calls: list[ExpectedCall],
        skipped: list[Skipped],
        trigger: Trigger,
        elapsed_s: float,
    ) -> PrewarmPlan:
        """A plan that is not sent."""


class Anticipation:
    """`priced(tenant)`: whether it plans so, and this planner decides for it. `send` orders, and returns what a node was found
    for. `revoke(tenant, [(id, why)])` gives up what has not begun. `kept_s(function)`: how long its idle instances are kept by
    price; None: they are not."""

    def __init__(
        self,
        graph: CallGraph,
        foresight: Foresight,
        forecasts: Forecasts,
        sources: StartSources,
        priced: Callable[[str], bool],
        make: Make,
        send: Callable[[PrewarmPlan], list[PrewarmDecision]],
        revoke: Callable[[str, list[tuple[str, str]]], None],
        kept_s: Callable[[FunctionId], float | None] = lambda function: None,
    ) -> None:
        self.foresight = foresight
        self._graph = graph
        self._forecasts = forecasts
        self._sources = sources
        self._priced = priced
        self._make = make
        self._send = send
        self._revoke = revoke
        self._kept_s = kept_s
        self._waiting: dict[FunctionId, list[tuple[str, float]]] = {}  # by entry: decisions, and when they begin

    def started(self, entry: FunctionId) -> None:
        """The run's own plan knows better from here on: what was to begin later for its coming does not."""
        now = time.time()
        self.foresight.started(entry, now)
        later = [(one, "its entry was called earlier") for one, begins in self._waiting.pop(entry, []) if begins > now]
        if later:
            self._revoke(tenant_of(entry), later)

    def ended(self, entry: FunctionId) -> None:
        now = time.time()
        self.foresight.ended(entry, now)
        self._look(entry, now)

    def wasted(self, entry: FunctionId) -> None:
        """What was prepared for its coming was given up: it may come yet."""
        self.foresight.wake(entry, time.time() + PAUSE_S)

    def tick(self, now: float) -> None:
        """Looks at those whose moment has come."""
        for entry in self.foresight.due(now):
            self._look(entry, now)

    def forget_tenant(self, tenant: str) -> None:
        self.foresight.forget_tenant(tenant)
        for entry in [one for one in self._waiting if one.startswith(f"{tenant}/")]:
            del self._waiting[entry]

    def _look(self, entry: FunctionId, now: float) -> None:
        tenant = tenant_of(entry)
        if not self._priced(tenant) or self._forecasts.latest(entry) is None:
            return
        forecast = self.foresight.forecast(entry, now)
        if forecast is None:
            return
        own = expected(
            forecast, entry, self._graph.memory_mb(entry), self._graph.starts(entry), self._sources.tiers.get(entry, "")
        )
        calls, skipped = self._forecasts.expected(entry)
        trigger = Trigger.TIMER if forecast.kind is Kind.TIMER else Trigger.PREDICTED
        made = self._make(tenant, entry, [own, *path_after(own, calls)], skipped, trigger, now - forecast.since)
        comes_in_s = quantile(own.offsets_s, 0.5) - (now - forecast.since)
        # what may begin when it has come is for the run's own plan, which knows when that was
        ahead = [one for one in made.decisions if one.function == entry or one.start_in_s < comes_in_s]
        soon = [one for one in ahead if one.start_in_s <= HORIZON_S]
        later = [one.start_in_s for one in ahead if one.start_in_s > HORIZON_S]
        wakes = [min(later) - EARLY_S] if later else []
        if entry in made.ready and (kept_s := self._kept_s(entry)) is not None:
            wakes.append(kept_s + GOES_S)  # what it finds idle may be gone before the call comes
        if wakes:
            self.foresight.wake(entry, now + min(wakes))
        if soon:
            sent = self._send(msgspec.structs.replace(made, decisions=tuple(soon)))
            begin = [(one.decision_id, now + one.start_in_s) for one in sent]
            self._waiting[entry] = [one for one in self._waiting.get(entry, []) if one[1] > now] + begin
