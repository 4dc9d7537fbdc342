"""What the gateway counts of every invocation: plain numbers, added up on the request path and read when somebody asks."""

from collections import Counter

from graph.calls import StartKind
from workers.rpc.messages import InvokeResult
from workers.tallies import Histogram, StartTimes

OTHER = "other"


class Tally:
    """`by_function` holds at most `functions` functions under their own name, the first seen; the rest under `other`."""

    def __init__(self, functions: int = 0) -> None:
        self.results: Counter[str] = Counter()
        self.throttled: Counter[str] = Counter()
        self.refused: Counter[int] = Counter()
        self.seconds = Histogram()
        self.starts = StartTimes()
        self.by_function: Counter[tuple[str, str]] = Counter()
        self.functions = functions
        self._named: set[str] = set()

    def ended(self, version: str, result: InvokeResult, place_ms: float, seconds: float) -> None:
        self.results[result.status] += 1
        self.seconds.add(seconds)
        if result.start is not StartKind.UNKNOWN:
            self.starts.add(result.start, result.timings, place_ms)
        if self.functions:
            self.by_function[self._label(version.rpartition(":")[0]), result.status] += 1

    def _label(self, function: str) -> str:
        if function in self._named:
            return function
        if len(self._named) >= self.functions:
            return OTHER
        self._named.add(function)
        return function
