"""When entries are called next (graph.arrivals), and when to look at that again: a heap of moments. Bounded; no I/O.

`now` is the wall clock, so that what was learned can be written down and found again.
"""

import heapq
from collections import OrderedDict
from collections.abc import Mapping

from graph.arrivals import Arrivals, Forecast, predicted
from graph.ids import FunctionId

ENTRIES = 10_000


class Foresight:
    """Of the ENTRIES that were called last."""

    def __init__(self, known: Mapping[FunctionId, Arrivals] | None = None) -> None:
        self._arrivals: OrderedDict[FunctionId, Arrivals] = OrderedDict(known or {})
        for one in self._arrivals.values():
            one.running, one.idle_since = 0, None  # how its last runs ended was not seen
        self._due: dict[FunctionId, float] = {}
        self._heap: list[tuple[float, FunctionId]] = []  # some are not due any more, or at another time

    def __len__(self) -> int:
        return len(self._arrivals)

    def all(self) -> dict[FunctionId, Arrivals]:
        return dict(self._arrivals)

    def started(self, entry: FunctionId, now: float) -> None:
        """Its next call is here: nothing is due any more."""
        self._of(entry).started(now)
        self._due.pop(entry, None)

    def ended(self, entry: FunctionId, now: float) -> None:
        self._of(entry).ended(now)

    def forecast(self, entry: FunctionId, now: float) -> Forecast | None:
        held = self._arrivals.get(entry)
        return predicted(held, now) if held is not None else None

    def wake(self, entry: FunctionId, at: float) -> None:
        """It is to be looked at then, and not before, unless it is called first."""
        if entry in self._arrivals:
            self._due[entry] = at
            heapq.heappush(self._heap, (at, entry))
            if len(self._heap) > 2 * len(self._due) + 64:
                self._heap = [(at, one) for one, at in self._due.items()]
                heapq.heapify(self._heap)

    def due(self, now: float) -> list[FunctionId]:
        """Those whose moment has come, each once."""
        found = []
        while self._heap and self._heap[0][0] <= now:
            at, entry = heapq.heappop(self._heap)
            if self._due.get(entry) == at:
                del self._due[entry]
                found.append(entry)
        return found

    def forget_tenant(self, tenant: str) -> None:
        for entry in [one for one in self._arrivals if one.startswith(f"{tenant}/")]:
            del self._arrivals[entry]
            self._due.pop(entry, None)

    def _of(self, entry: FunctionId) -> Arrivals:
        held = self._arrivals.get(entry)
        if held is None:
            held = self._arrivals[entry] = Arrivals()
            if len(self._arrivals) > ENTRIES:
                gone, _ = self._arrivals.popitem(last=False)
                self._due.pop(gone, None)
        self._arrivals.move_to_end(entry)
        return held
