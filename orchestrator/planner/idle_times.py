"""How long instances stand idle, learned from what gateways tell: of each function and of its n-th instance (graph.levels).
Starts are heard as they happen, ends when their records come. Bounded; no I/O."""

from collections import OrderedDict
from collections.abc import Callable, Mapping

from graph.arrivals import Arrivals
from graph.ids import FunctionId, VersionId, function_of, tenant_of
from graph.levels import Levels
from tracing.records import InvocationRecord
from workers.rpc.messages import TriggerEvent

FUNCTIONS, FURTHER = 10_000, 20_000
"""Functions known, and levels above the first of all together: what was called longest ago is forgotten first."""

RUNNING = 50_000
LOST_S = 3600.0
"""What has not ended by then never will: its record was lost."""


class IdleTimes:
    """`per(function)`: invocations in one instance at once. Times are of the wall clock, as in records."""

    def __init__(
        self,
        per: Callable[[FunctionId], int],
        known: Mapping[FunctionId, Arrivals] | None = None,
        further: Mapping[FunctionId, list[Arrivals]] | None = None,
    ) -> None:
        self._per = per
        self._of: OrderedDict[FunctionId, Levels] = OrderedDict()
        self._running: OrderedDict[str, tuple[FunctionId, float]] = OrderedDict()  # by invocation: since when
        self._further = 0
        for function, first in (known or {}).items():
            self._of[function] = Levels([first, *(further or {}).get(function, ())])
            self._of[function].lost_count()
            self._further += len(self._of[function].of) - 1

    def __contains__(self, function: object) -> bool:
        return function in self._of

    def of(self, function: FunctionId) -> Levels:
        return self._of.get(function) or Levels()

    def first(self) -> dict[FunctionId, Arrivals]:
        """Of each function's first instance: the function's own."""
        return {function: levels.of[0] for function, levels in self._of.items() if levels.of}

    def further(self) -> dict[FunctionId, list[Arrivals]]:
        return {function: levels.of[1:] for function, levels in self._of.items() if len(levels.of) > 1}

    def started(self, event: TriggerEvent) -> list[FunctionId]:
        """Returns the functions that are forgotten for it."""
        function = function_of(VersionId(event.version))
        if event.invocation_id in self._running:
            return []
        if len(self._running) >= RUNNING:
            self.dropped()
        self._running[event.invocation_id] = (function, event.at)
        levels, gone = self._known(function)
        before = len(levels.of)
        levels.started(event.at, max(1, self._per(function)))
        self._further += len(levels.of) - max(1, before)
        while self._further > FURTHER:
            self._further -= self._trim()
        return gone

    def ended(self, record: InvocationRecord) -> list[FunctionId]:
        """Returns the functions that are forgotten for it."""
        function = FunctionId(record.function)
        if self._running.pop(record.invocation_id, None) is not None:
            if function in self._of:
                self._of[function].ended(record.ended_at, max(1, self._per(function)))
            return []
        if record.status == "refused":
            return []
        levels, gone = self._known(function)
        before = len(levels.of)
        levels.ran(record.sent_at, record.ended_at)
        self._further += max(1, len(levels.of)) - max(1, before)
        return gone

    def dropped(self) -> None:
        """Records were lost on their way: which invocations have ended is not known any more."""
        for function in {function for function, _ in self._running.values()}:
            self._lost(function)
        self._running.clear()

    def tick(self, now: float) -> None:
        while self._running:
            function, since = next(iter(self._running.values()))
            if now - since < LOST_S:
                return
            self._lost(function)
            for one in [one for one, (other, _) in self._running.items() if other == function]:
                del self._running[one]

    def forget_tenant(self, tenant: str) -> list[FunctionId]:
        """Returns its functions."""
        gone = [one for one in self._of if tenant_of(one) == tenant]
        for function in gone:
            self._drop(function)
        for one in [one for one, (function, _) in self._running.items() if tenant_of(function) == tenant]:
            del self._running[one]
        return gone

    def _known(self, function: FunctionId) -> tuple[Levels, list[FunctionId]]:
        gone: list[FunctionId] = []
        levels = self._of.get(function)
        if levels is None:
            levels = self._of[function] = Levels()
            if len(self._of) > FUNCTIONS:
                gone = [next(iter(self._of))]
                self._drop(gone[0])
        self._of.move_to_end(function)
        return levels, gone

    def _trim(self) -> int:
        """Forgets the further levels of the function that was called longest ago, and has any."""
        for levels in self._of.values():
            if len(levels.of) > 1:
                count = len(levels.of) - 1
                del levels.of[1:]
                return count
        return self._further

    def _lost(self, function: FunctionId) -> None:
        if function in self._of:
            self._of[function].lost_count()

    def _drop(self, function: FunctionId) -> None:
        self._further -= max(0, len(self._of.pop(function).of) - 1)
