"""The platform's priced policy as a whole: each run's path, and before it the entry, where its calls can be foreseen."""

from collections import defaultdict
from collections.abc import Callable, Sequence

import msgspec

from graph.arrivals import Arrivals, expected, path_after, predicted
from graph.calls import Trace
from graph.ids import FunctionId
from graph.keeping import worth_keeping_s
from graph.plans import Budget, ExpectedCall, PrewarmPlan, Prices, Trigger
from graph.prediction import predict
from orchestrator.whatif.instances import Instance, State
from orchestrator.whatif.orders import Order
from orchestrator.whatif.planned import Planned
from orchestrator.whatif.policy import Run

HORIZON_S = 5.0
"""What is to begin sooner is ordered now; for the rest there is time to look again. As the planner does it."""

EARLY_S = 0.5
PAUSE_S = 1.0
NEEDED_SLACK_S = 1.0
"""So much longer than its call is expected is kept what a run counts on."""

NO_RUN = -1


class Anticipating(Planned):
    """`weighed`: an instance is kept after a use as long as that is worth it, or a run counts on it, `keep_s` at most
    (graph.keeping), as the planner tells nodes. Else it is `keep_s` for all. `keeping`: the prices that goes by; None: `prices`.
    """

    def __init__(
        self,
        keep_s: float,
        prices: Prices | None = None,
        budget: Budget | None = None,
        weighed: bool = True,
        keeping: Prices | None = None,
    ) -> None:
        super().__init__("priced", keep_s, prices, budget)
        self._keeping = keeping or self._prices
        self._weighed = weighed
        self._idle_times: dict[FunctionId, Arrivals] = defaultdict(Arrivals)
        self._arrivals: dict[FunctionId, Arrivals] = defaultdict(Arrivals)
        self._waiting: dict[FunctionId, list[Order]] = {}
        self._looks: dict[FunctionId, int] = defaultdict(int)
        self._entry_of: dict[str, FunctionId] = {}

    def begins(self, run: Run) -> None:
        self._arrivals[run.entry].started(self.world.now)
        for order in self._waiting.pop(run.entry, []):
            self._entry_of.pop(order.decision.decision_id, None)
            if order.one.state is State.SCHEDULED:
                self.world.give_up(order.one)  # the run's own plan knows better
        super().begins(run)

    def wanted(self, function: FunctionId) -> None:
        if self._weighed:
            self._idle_times[function].started(self.world.now)

    def keep_s(self, one: Instance) -> float:
        longest_s = super().keep_s(one)
        if not self._weighed or one.function is None:
            return longest_s
        known = self._idle_times[one.function]
        known.ended(self.world.now)
        start_s = self.graph.starts(one.function).expected_s(self._tier)
        worth_s = worth_keeping_s(known, self._keeping, self.world.memory_mb(one.function), start_s, longest_s)
        return longest_s if worth_s is None else worth_s

    def ended(self, run: Run, trace: Trace) -> None:
        super().ended(run, trace)
        self._arrivals[run.entry].ended(self.world.now)
        self._look(run.entry)

    def expired(self, one: Instance) -> None:
        entry = self._entry_of.pop(one.decision_id, None) if one.decision_id else None
        if entry is not None:
            self._look_in(entry, PAUSE_S)  # it may come yet
        elif self._weighed and one.served and one.function in self._arrivals:
            self._look_in(one.function, PAUSE_S)  # the look at the end of its run found it idle

    def _counts_on(self, made: PrewarmPlan, expected: Sequence[ExpectedCall], elapsed_s: float) -> None:
        if not self._weighed:
            return
        latest = {call.function: call.offsets_s[-1] for call in expected if call.offsets_s}
        now = self.world.now
        for function in made.ready:
            until = now + max(0.0, latest.get(function, 0.0) - elapsed_s) + NEEDED_SLACK_S
            for one in self.world.idle(function):
                goes_at = min(until, one.idle_since + super().keep_s(one))
                if one.served and one.goes_at < goes_at:
                    self.world.expire(one, goes_at - now)

    def _look_in(self, entry: FunctionId, in_s: float) -> None:
        self._looks[entry] += 1
        self.world.later(in_s, self._looking(entry, self._looks[entry]))

    def _looking(self, entry: FunctionId, number: int) -> Callable[[], None]:
        def look() -> None:
            if self._looks[entry] == number:
                self._look(entry)

        return look

    def _look(self, entry: FunctionId) -> None:
        now = self.world.now
        forecast = predicted(self._arrivals[entry], now)
        if forecast is None:
            return
        tier = self._tiers.get(entry, "")
        own = expected(forecast, entry, self.graph.memory_mb(entry), self.graph.starts(entry), tier)
        calls = predict(self.graph, entry, tiers=self._tiers)
        self._looks[entry] += 1
        plan_id = f"{entry}.{self._looks[entry]}"
        made = self._plan(entry, [own, *path_after(own, calls)], Trigger.PREDICTED, plan_id, now - forecast.since)
        later = [decision.start_in_s for decision in made.decisions if decision.start_in_s > HORIZON_S]
        soon = tuple(decision for decision in made.decisions if decision.start_in_s <= HORIZON_S)
        if later:
            self._look_in(entry, min(later) - EARLY_S)
        for order in self._order(NO_RUN, msgspec.structs.replace(made, decisions=soon), None):
            self._entry_of[order.decision.decision_id] = entry
            self._waiting.setdefault(entry, []).append(order)
