"""Every instance a run may need, with what preparing it at each moment costs: what the priced policy chooses from. Pure."""

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from graph.ids import FunctionId
from graph.plans import Alternative, Evidence, ExpectedCall, Prices
from graph.pricing import Curves, Floats, Lead, curves, lead, posterior, start_points

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_SAME = 1e-12


class Weighed(msgspec.Struct):
    """The `ordinal`-th instance of one call: how likely it is needed, and the moment at which preparing it costs least.

    `needed`: the probability that so many are busy at once, given what the time so far tells. `best`: the column of the curves.
    `idle_price`: of this instance, a second. `cost`: of preparing at the best moment, `never`: of not preparing. `idle_s`: what
    it then idles. `claimed`: a decision that is under way already serves it, or a standby does.
    """

    call: ExpectedCall
    row: int  # of the curves
    ordinal: int
    needed: float
    idle_price: float
    kappa: float
    best: int
    start_in_s: float
    cost: float
    never: float
    idle_s: float
    claimed: bool = False

    @property
    def pays(self) -> bool:
        return self.cost < self.never - _SAME

    @property
    def gain(self) -> float:
        return self.never - self.cost


class Weighing(msgspec.Struct):
    """All calls of a prediction, weighed. Rows of `curves` and entries of `leads` and `starts` are in the order of `expected`."""

    expected: Sequence[ExpectedCall]
    prices: Prices
    leads: list[Lead]
    starts: list[Floats]
    curves: Curves
    instances: list[Weighed]


def weigh(expected: Sequence[ExpectedCall], prices: Prices, idle: Mapping[FunctionId, int], elapsed_s: float) -> Weighing:
    """`idle`: instances per function that are there anyway; they serve the first ones needed."""
    leads = [lead(call.offsets_s, elapsed_s, call.start_s, not call.started) for call in expected]
    starts = [start_points(call.starts_s, call.start_s) for call in expected]
    found = curves(leads, starts)
    lines = [
        (row, ordinal, posterior(share, leads[row].left))
        for row, call in enumerate(expected)
        for ordinal, share in enumerate(call.concurrent, start=1)
        if ordinal > max(0, idle.get(call.function, 0))
    ]
    if not lines:
        return Weighing(expected, prices, leads, starts, found, [])
    rows = np.array([row for row, _, _ in lines], np.intp)
    needed = np.array([share for _, _, share in lines])
    price = np.array([prices.idle_gb_s * expected[row].memory_mb / 1024 for row, _, _ in lines])
    likely = needed[:, None]
    idled = likely * found.called_s[rows] + (1.0 - likely) * found.uncalled_s[rows]
    cost = price[:, None] * idled + prices.late_s * likely * found.waited_s[rows]
    cost[~np.isfinite(found.at[rows])] = np.inf
    best = cost.shape[1] - 1 - np.argmin(cost[:, ::-1], axis=1)  # of equals the latest
    index = np.arange(len(lines))
    columns = zip(
        lines,
        price.tolist(),
        best.tolist(),
        found.at[rows, best].tolist(),
        cost[index, best].tolist(),
        (prices.late_s * needed * found.never_s[rows]).tolist(),
        idled[index, best].tolist(),
        strict=True,
    )
    kappas = {call.memory_mb: prices.kappa(call.memory_mb) for call in expected}
    instances = [
        Weighed(expected[row], row, ordinal, share, idle_price, kappas[expected[row].memory_mb], column, at, least, never, idle_s)
        for (row, ordinal, share), idle_price, column, at, least, never, idle_s in columns
    ]
    return Weighing(expected, prices, leads, starts, found, instances)


def evidence(weighing: Weighing, one: Weighed) -> Evidence:
    """What the decision to prepare `one` at its best moment stands on."""
    call, samples = one.call, weighing.leads[one.row].samples
    known = weighing.leads[one.row].known
    quantiles = tuple(np.quantile(samples, QUANTILES).tolist()) if known else ()
    idle_cost = one.idle_price * one.idle_s
    return Evidence(
        source=call.source,
        reach=posterior(call.reach, weighing.leads[one.row].left),
        concurrent=one.needed,
        samples=call.samples,
        lead_s=quantiles[QUANTILES.index(0.5)] if known else None,
        start_s=call.start_s,
        price=one.cost - one.never,
        trace_ids=call.trace_ids,
        lead_quantiles_s=quantiles,
        wait_cost=max(0.0, one.cost - idle_cost),
        idle_cost=idle_cost,
        idle_s=one.idle_s,
        kappa=one.kappa,
        alternatives=alternatives(weighing, one),
    )


def alternatives(weighing: Weighing, one: Weighed) -> tuple[Alternative, ...]:
    """Never, now, and where the quantile rule alone would have put it; the cheapest first."""
    found, prices = weighing.curves, weighing.prices
    columns = {"now": 0}
    if one.needed > one.kappa and weighing.leads[one.row].known:
        size = len(weighing.leads[one.row].samples)
        columns["rule"] = min(size, int(one.kappa / one.needed * size) + 1)
    listed = [Alternative("never", one.never)]
    for what, column in columns.items():
        if column == one.best:
            continue
        called, uncalled = found.called_s[one.row, column], found.uncalled_s[one.row, column]
        idled = one.needed * called + (1.0 - one.needed) * uncalled
        waited = prices.late_s * one.needed * found.waited_s[one.row, column]
        listed.append(Alternative(what, float(one.idle_price * idled + waited), float(found.at[one.row, column])))
    return tuple(sorted(listed, key=lambda each: each.cost))
