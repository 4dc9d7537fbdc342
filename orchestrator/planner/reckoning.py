"""How predictions held and what prewarming and waiting cost, per function, as it goes. Bounded; no I/O.

Calibration is prequential: what was predicted when a run began, against what the run then did (graph.calibration). Costs are
those of the priced policy, in the unit of `Prices`, whichever policy was in force: so that policies can be compared.
"""

from collections.abc import Callable, Iterable, Mapping, Set
from typing import Any, TypeVar

import msgspec

from graph.calibration import Calibration, merged
from graph.costs import Costs
from graph.fairbook import FairBook
from graph.ids import FunctionId
from graph.plans import Outcome, Prices
from orchestrator.planner.log import LogEntry
from tracing.records import InvocationRecord

FUNCTIONS = 20_000
CALIBRATED = 500
"""So many functions' predictions are remembered, about 20 kB each; those of the runs that ended last, tenants sharing them."""

Kept = TypeVar("Kept")

COLD_S = 0.001
"""An invocation that waited longer for its instance started cold."""


class Account(msgspec.Struct, array_like=True):
    """One function's, since it was opened. `cold`: invocations that waited for an instance."""

    costs: Costs = msgspec.field(default_factory=Costs)
    invocations: int = 0
    cold: int = 0


class Books(msgspec.Struct):
    """What is written down with the planner's state."""

    accounts: dict[str, Account] = {}
    predictions: dict[str, Calibration] = {}


class Reckoning:
    def __init__(self, books: Books | None = None) -> None:
        kept = books or Books()
        self._accounts: FairBook[str, Account] = _filled(kept.accounts, FUNCTIONS)
        self._predictions: FairBook[str, Calibration] = _filled(kept.predictions, CALIBRATED)

    def books(self) -> Books:
        return Books(dict(self._accounts.items()), dict(self._predictions.items()))

    def run(self, predicted: Mapping[FunctionId, float], called: Set[FunctionId]) -> None:
        """A run has ended. What it called and nobody expected counts as predicted with 0."""
        for function in predicted.keys() | called:
            held = _newest(self._predictions, function, Calibration)
            held.add(min(1.0, max(0.0, predicted.get(function, 0.0))), function in called)

    def invoked(self, records: Iterable[InvocationRecord]) -> None:
        for record in records:
            account = _newest(self._accounts, record.function, Account)
            waited_s = record.timings.start_ms / 1000
            account.invocations += 1
            if waited_s <= COLD_S:
                continue
            account.cold += 1
            if record.decision_id:
                account.costs.waited_s += waited_s
            else:
                account.costs.waited(waited_s)

    def ended(self, entry: LogEntry, memory_mb: int) -> None:
        """A decision. `memory_mb`: what it held while it was ready."""
        account = _newest(self._accounts, entry.function, Account)
        account.costs.ended(Outcome(entry.outcome), memory_mb, entry.idle_s, entry.saved_s)

    def forget_tenant(self, tenant: str) -> None:
        self._accounts.forget(tenant)
        self._predictions.forget(tenant)

    def of(self, tenant: str, prices: Prices) -> dict[str, Any]:
        """{error, brier, bins, functions}, see orchestrator.control.schemas.calibration."""
        prefix = f"{tenant}/"
        mine, accounts = self._predictions.of(tenant), self._accounts.of(tenant)
        whole = merged(list(mine.values()))
        names = sorted(accounts.keys() | mine.keys())
        return {
            "error": whole.error(),
            "brier": whole.brier(),
            "bins": [{"predicted": one.predicted, "observed": one.observed, "count": one.count} for one in whole.bins()],
            "functions": [_told(name.removeprefix(prefix), accounts.get(name), mine.get(name), prices) for name in names],
        }


def _told(name: str, account: Account | None, predictions: Calibration | None, prices: Prices) -> dict[str, Any]:
    account = account or Account()
    costs = account.costs
    wait_cost, idle_cost = costs.at(prices)
    whole = predictions.bins(1) if predictions is not None else []
    return {
        "function": name,
        "runs": sum(one.count for one in whole),
        "predicted": whole[0].predicted if whole else None,
        "observed": whole[0].observed if whole else None,
        "brier": predictions.brier() if predictions is not None else None,
        "invocations": account.invocations,
        "cold": account.cold,
        "outcomes": {"hit": costs.hits, "late": costs.late, "wasted": costs.wasted, "cancelled": costs.cancelled},
        "unprepared": costs.unprepared,
        "waited_s": costs.waited_s,
        "saved_s": costs.saved_s,
        "idle_s": costs.idle_s,
        "wasted_s": costs.wasted_s,
        "wait_cost": wait_cost,
        "idle_cost": idle_cost,
    }


def _filled(kept: Mapping[str, Kept], most: int) -> FairBook[str, Kept]:
    made: FairBook[str, Kept] = FairBook(most)
    for name, value in kept.items():
        made.put(name.partition("/")[0], name, value)
    return made


def _newest(held: FairBook[str, Kept], name: str, make: Callable[[], Kept]) -> Kept:
    """The one of this name, made if need be, and used last from now on."""
    found = held.get(name)
    if found is None:
        found = make()
    held.put(name.partition("/")[0], name, found)
    return found
