"""What tier 1 counts: who asked, where it came from and how long that took. Plain numbers, read when somebody asks."""

from collections import Counter, OrderedDict

from workers.tallies import Histogram

FUNCTIONS = 10_000
"""Functions that are counted by name; the one that asked least lately is forgotten."""

TIER1, FAILED, OTHER = "tier1", "failed", "other"


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
        self._functions: OrderedDict[str, Counter[str]] = OrderedDict()

    def asked(self, version: str, tier: str, seconds: float) -> None:
        self.requests[tier] += 1
        found = self.seconds.get(tier)
        if found is None:
            found = self.seconds[tier] = Histogram()
        found.add(seconds)
        function = version.rpartition(":")[0]
        if self.labels:
            self.by_function[self._label(function), tier] += 1
        counts = self._functions.setdefault(function, Counter())
        counts[tier] += 1
        self._functions.move_to_end(function)
        if len(self._functions) > FUNCTIONS:
            self._functions.popitem(last=False)

    def _label(self, function: str) -> str:
        if function not in self._named:
            if len(self._named) >= self.labels:
                return OTHER
            self._named.add(function)
        return function

    def evicted(self, why: str, size: int) -> None:
        self.evictions[why] += 1
        self.evicted_bytes += size

    def functions(self, tenant: str = "") -> dict[str, Counter[str]]:
        """Requests by tier of each function, those of one tenant or all."""
        return {name: counts for name, counts in self._functions.items() if not tenant or name.startswith(f"{tenant}/")}

    def forget(self, tenant: str) -> None:
        for name in self.functions(tenant):
            del self._functions[name]
