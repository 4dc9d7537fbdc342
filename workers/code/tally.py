"""What tier 1 counts: who asked, where it came from and how long that took. Plain numbers, read when somebody asks."""

from collections import Counter, OrderedDict
from dataclasses import dataclass, field

from workers.tallies import Histogram

FUNCTIONS = 10_000
"""Functions that are counted by name; the one that asked least lately is forgotten."""

TIER1, FAILED, OTHER = "tier1", "failed", "other"


@dataclass(slots=True)
class FunctionCode:
    """One function's. `requests` and `seconds` by tier, `brought` in bytes on the disk, `evictions` of its layers."""

    requests: Counter[str] = field(default_factory=Counter)
    seconds: Counter[str] = field(default_factory=Counter)
    brought: int = 0
    evictions: int = 0


class CodeTally:
    """Since the process started. A tier is `tier1` (was here), `tier2` or `origin` (the farthest that something came from), or
    `failed`. One request is a version asked for by a start."""

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()
        self.seconds: dict[str, Histogram] = {}
        self.evictions: Counter[str] = Counter()
        self.evicted_bytes = 0
        self.ahead = 0  # layers that came before anybody asked
        self.labels = 0  # so many functions, the first seen, have their own name in `by_function`; the rest is OTHER
        self.by_function: Counter[tuple[str, str]] = Counter()
        self._named: set[str] = set()
        self._functions: OrderedDict[str, FunctionCode] = OrderedDict()

    def asked(self, function: str, tier: str, seconds: float) -> None:
        self.requests[tier] += 1
        found = self.seconds.get(tier)
        if found is None:
            found = self.seconds[tier] = Histogram()
        found.add(seconds)
        if self.labels:
            self.by_function[self._label(function), tier] += 1
        own = self._of(function)
        own.requests[tier] += 1
        own.seconds[tier] += seconds  # type: ignore[assignment]  # a Counter of floats

    def came(self, function: str, size: int) -> None:
        """A layer of the function is here now."""
        self._of(function).brought += size

    def evicted(self, function: str, why: str, size: int) -> None:
        self.evictions[why] += 1
        self.evicted_bytes += size
        if function in self._functions:
            self._functions[function].evictions += 1

    def functions(self, tenant: str) -> dict[str, FunctionCode]:
        """By FunctionId."""
        return {name: one for name, one in self._functions.items() if name.startswith(f"{tenant}/")}

    def forget(self, tenant: str) -> None:
        for name in self.functions(tenant):
            del self._functions[name]

    def _of(self, function: str) -> FunctionCode:
        found = self._functions.setdefault(function, FunctionCode())
        self._functions.move_to_end(function)
        if len(self._functions) > FUNCTIONS:
            self._functions.popitem(last=False)
        return found

    def _label(self, function: str) -> str:
        if function not in self._named:
            if len(self._named) >= self.labels:
                return OTHER
            self._named.add(function)
        return function
