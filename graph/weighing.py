"""Every instance a run may need, with what preparing it at each moment costs: what the priced policy chooses from. Pure."""

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from graph.ids import FunctionId
from graph.plans import Alternative, Evidence, ExpectedCall, Prices
from graph.pricing import Curves, Lead, curves, lead, posterior, start_points

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
    others: tuple[Alternative, ...]
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
    starts: list[tuple[float, ...]]
    curves: Curves
    instances: list[Weighed]
    quantiles: list[list[float]]  # of each lead, see Evidence.lead_quantiles_s


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
        return Weighing(expected, prices, leads, starts, found, [], [])
    rows = np.array([row for row, _, _ in lines], np.intp)
    needed = np.array([share for _, _, share in lines])
    price = np.array([prices.idle_gb_s * expected[row].memory_mb / 1024 for row, _, _ in lines])
    kappa = price / (prices.late_s + price)
    likely = needed[:, None]
    idled = likely * found.called_s[rows] + (1.0 - likely) * found.uncalled_s[rows]
    cost = price[:, None] * idled + prices.late_s * likely * found.waited_s[rows]
    cost[~np.isfinite(found.at[rows])] = np.inf
    best = cost.shape[1] - 1 - np.argmin(cost[:, ::-1], axis=1)  # of equals the latest
    sizes = np.array([len(one.samples) for one in leads])[rows]
    rule = np.minimum((kappa / np.maximum(needed, kappa) * sizes).astype(np.intp) + 1, sizes)
    index = np.arange(len(lines))
    columns = zip(
        lines,
        price.tolist(),
        kappa.tolist(),
        best.tolist(),
        found.at[rows, best].tolist(),
        cost[index, best].tolist(),
        (prices.late_s * needed * found.never_s[rows]).tolist(),
        idled[index, best].tolist(),
        cost[:, 0].tolist(),
        rule.tolist(),
        cost[index, rule].tolist() if cost.shape[1] > 1 else [0.0] * len(lines),
        found.at[rows, rule].tolist() if cost.shape[1] > 1 else [0.0] * len(lines),
        strict=True,
    )
    instances = []
    for (row, ordinal, share), each_s, bar, column, at, least, never, idle_s, at_once, by_rule, ruled, rule_at in columns:
        others = [Alternative("never", never)]
        if column:
            others.append(Alternative("now", at_once, 0.0))
        if share > bar and by_rule != column and leads[row].known:
            others.append(Alternative("rule", ruled, rule_at))
        instances.append(
            Weighed(expected[row], row, ordinal, share, each_s, bar, column, at, least, never, idle_s, tuple(others))
        )
    return Weighing(expected, prices, leads, starts, found, instances, lead_quantiles(leads))


def evidence(weighing: Weighing, one: Weighed) -> Evidence:
    """What the decision to prepare `one` at its best moment stands on."""
    call, known = one.call, weighing.leads[one.row]
    quantiles = tuple(weighing.quantiles[one.row]) if known.known else ()
    idle_cost = one.idle_price * one.idle_s
    return Evidence(
        source=call.source,
        reach=posterior(call.reach, known.left),
        concurrent=one.needed,
        samples=call.samples,
        lead_s=quantiles[len(QUANTILES) // 2] if quantiles else None,
        start_s=call.start_s,
        price=one.cost - one.never,
        trace_ids=call.trace_ids,
        lead_quantiles_s=quantiles,
        wait_cost=max(0.0, one.cost - idle_cost),
        idle_cost=idle_cost,
        idle_s=one.idle_s,
        kappa=one.kappa,
        alternatives=tuple(sorted(one.others, key=_cost)),
    )


def lead_quantiles(leads: Sequence[Lead]) -> list[list[float]]:
    """Of each lead the sample nearest to each of QUANTILES."""
    sizes = np.array([len(one.samples) for one in leads])
    places = np.rint(np.multiply.outer(sizes - 1, QUANTILES)).astype(np.intp) + (np.cumsum(sizes) - sizes)[:, None]
    found: list[list[float]] = np.concatenate([one.samples for one in leads])[places].tolist()
    return found


def _cost(alternative: Alternative) -> float:
    return alternative.cost
