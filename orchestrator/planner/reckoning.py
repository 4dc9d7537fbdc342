"""How predictions held and what prewarming and waiting cost, per function, as it goes. Bounded; no I/O.

Calibration is prequential: what was predicted when a run began, against what the run then did; older runs count less. Costs are
those of the priced policy, in the unit of `Prices`, whichever policy was in force: so that policies can be compared.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Set
from typing import Any

import msgspec

from graph.decay import SLOW
from graph.ids import FunctionId
from graph.plans import Prices
from orchestrator.planner.log import LogEntry
from tracing.records import InvocationRecord

FUNCTIONS = 20_000
BINS = 10
COLD_S = 0.001
"""An invocation that waited longer for its instance started cold."""


class Account(msgspec.Struct):
    """One function's. `weight`, `predicted`, `observed`, `squared`: decayed runs, and over them the sums of the probability, of
    whether it was called, and of the squared difference. The rest is since the account was opened."""

    runs: int = 0
    weight: float = 0.0
    predicted: float = 0.0
    observed: float = 0.0
    squared: float = 0.0
    invocations: int = 0
    cold: int = 0
    waited_s: float = 0.0
    decisions: int = 0
    idle_s: float = 0.0
    idle_gb_s: float = 0.0
    wasted_s: float = 0.0
    saved_s: float = 0.0

    def compare(self, predicted: float, called: bool) -> None:
        self.runs += 1
        self.weight = self.weight * SLOW + 1.0
        self.predicted = self.predicted * SLOW + predicted
        self.observed = self.observed * SLOW + called
        self.squared = self.squared * SLOW + (predicted - called) ** 2


class Bin(msgspec.Struct):
    """Of all predictions of a tenant in one tenth of the probabilities; decayed by each that falls into it."""

    weight: float = 0.0
    predicted: float = 0.0
    observed: float = 0.0


class Books(msgspec.Struct):
    """What is written down with the planner's state."""

    accounts: dict[str, Account] = {}
    bins: dict[str, list[Bin]] = {}


class Reckoning:
    def __init__(self, books: Books | None = None) -> None:
        kept = books or Books()
        self._accounts = OrderedDict(kept.accounts)
        self._bins = kept.bins

    def books(self) -> Books:
        return Books(dict(self._accounts), self._bins)

    def run(self, tenant: str, predicted: Mapping[FunctionId, float], called: Set[FunctionId]) -> None:
        """A run has ended. What it called and nobody expected counts as predicted with 0."""
        bins = self._bins.setdefault(tenant, [Bin() for _ in range(BINS)])
        for function in predicted.keys() | called:
            probability, was = predicted.get(function, 0.0), function in called
            self._account(function).compare(probability, was)
            into = bins[min(BINS - 1, int(probability * BINS))]
            into.weight = into.weight * SLOW + 1.0
            into.predicted = into.predicted * SLOW + probability
            into.observed = into.observed * SLOW + was

    def invoked(self, records: Iterable[InvocationRecord]) -> None:
        for record in records:
            account = self._account(record.function)
            waited_s = record.timings.start_ms / 1000
            account.invocations += 1
            account.waited_s += waited_s
            account.cold += waited_s > COLD_S

    def ended(self, entry: LogEntry, memory_mb: int) -> None:
        """A decision. `memory_mb`: what it held while it was ready."""
        account = self._account(entry.function)
        account.decisions += 1
        account.idle_s += entry.idle_s
        account.idle_gb_s += entry.idle_s * memory_mb / 1024
        account.wasted_s += entry.idle_s if entry.outcome == "wasted" else 0.0
        account.saved_s += entry.saved_s

    def forget_tenant(self, tenant: str) -> None:
        self._bins.pop(tenant, None)
        for function in [one for one in self._accounts if one.startswith(f"{tenant}/")]:
            del self._accounts[function]

    def of(self, tenant: str, prices: Prices) -> dict[str, Any]:
        """{error, bins, functions}. `error`: the mean distance of what was predicted and what was observed, over the bins."""
        bins = [one for one in self._bins.get(tenant, ()) if one.weight > 0]
        weight = sum(one.weight for one in bins)
        prefix = f"{tenant}/"
        return {
            "error": sum(abs(one.predicted - one.observed) for one in bins) / weight if weight else None,
            "bins": [
                {"predicted": one.predicted / one.weight, "observed": one.observed / one.weight, "weight": one.weight}
                for one in bins
            ],
            "functions": [
                _told(name.removeprefix(prefix), account, prices)
                for name, account in sorted(self._accounts.items())
                if name.startswith(prefix)
            ],
        }

    def _account(self, function: str) -> Account:
        account = self._accounts.get(function)
        if account is None:
            account = self._accounts[function] = Account()
            if len(self._accounts) > FUNCTIONS:
                self._accounts.popitem(last=False)
        else:
            self._accounts.move_to_end(function)
        return account


def _told(name: str, one: Account, prices: Prices) -> dict[str, Any]:
    weight = one.weight
    wait_cost, idle_cost = one.waited_s * prices.late_s, one.idle_gb_s * prices.idle_gb_s
    return {
        "function": name,
        "runs": one.runs,
        "predicted": one.predicted / weight if weight else None,
        "observed": one.observed / weight if weight else None,
        "squared_error": one.squared / weight if weight else None,
        "invocations": one.invocations,
        "cold": one.cold,
        "waited_s": one.waited_s,
        "decisions": one.decisions,
        "idle_s": one.idle_s,
        "wasted_s": one.wasted_s,
        "saved_s": one.saved_s,
        "wait_cost": wait_cost,
        "idle_cost": idle_cost,
    }
