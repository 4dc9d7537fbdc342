"""Generic standbys for calls that compete: one clone without code for whichever branch is taken. Pure.

Let N be how many of a group of calls of one memory shape come in a run. The k-th standby is used with probability P(N >= k); it
idles like an instance does, at the price of what a standby holds, and saves a call the difference between a start S and
specialising it, S' (docs/planning.md). It is worth having as long as that pays; and a group is left to standbys when what
remains (specialising, calls beyond them) costs less than instances of their own. P(N >= k) comes from the runs compared where
they tell which calls came together (branches exclude each other), and is that of independent calls otherwise.
"""

from collections.abc import Iterable, Sequence

import msgspec
import numpy as np

from graph.plans import Prices, Standbys
from graph.pricing import START_POINTS, Curves, Floats, Lead, cost, curves
from graph.timing import RESERVOIR
from graph.weighing import Weighed, Weighing

COMPETING = 0.95
"""A call at least this likely does not compete: an instance of its own is used, and used without a wait."""

MOST = 8
"""Standbys a plan holds for one group at most."""

SPLITS = 4
"""So many ways of leaving only the less likely calls of a group to standbys are weighed."""

_SAME = 1e-12
_SAMPLES = 512  # of all members together, in a mixture
_FEWEST = 4  # of each


class Group(msgspec.Struct):
    """Calls of one memory shape that could share standbys, the likeliest first."""

    memory_mb: int
    members: list[Weighed]
    lead: Lead
    at_least: Floats  # [k - 1]: P(N >= k)
    start_s: float  # mean start of a call without a standby
    specialise_s: float
    idle_price: float


class Cover(msgspec.Struct):
    """The `ordinal`-th standby of a group: when to make it, what it costs with it and without, and what it idles."""

    group: Group
    ordinal: int
    needed: float
    start_in_s: float
    cost: float
    never: float
    idle_s: float


def groups(weighing: Weighing, standbys: Standbys) -> dict[int, list[Group]]:
    """Per memory shape the ways to share, from all that compete to only the least likely. Only where two or more do."""
    by_shape: dict[int, list[Weighed]] = {}
    for one in weighing.instances:
        able = one.call.standby_s is not None and one.call.standby_s < one.call.start_s
        if able and not one.claimed and one.needed < COMPETING and weighing.leads[one.row].known:
            by_shape.setdefault(one.call.memory_mb, []).append(one)
    found: dict[int, list[Group]] = {}
    for shape, members in sorted(by_shape.items()):
        members.sort(key=lambda one: -one.needed)
        starts = dict.fromkeys(len(members) * part // SPLITS for part in range(SPLITS))
        ways = [members[start:] for start in starts if len(members) - start > 1]
        if ways:
            found[shape] = [_group(weighing, shape, way, standbys) for way in ways]
    return found


def _group(weighing: Weighing, shape: int, members: list[Weighed], standbys: Standbys) -> Group:
    needed = np.array([one.needed for one in members])
    total = max(float(needed.sum()), _SAME)
    held_mb = shape if standbys.memory_mb is None else min(shape, standbys.memory_mb)
    return Group(
        memory_mb=shape,
        members=members,
        lead=_mixed([weighing.leads[one.row] for one in members], needed),
        at_least=together([one.call.in_runs if one.ordinal == 1 else b"" for one in members], needed),
        start_s=float(sum(one.needed * one.call.start_s for one in members)) / total,
        specialise_s=float(sum(one.needed * (one.call.standby_s or 0.0) for one in members)) / total,
        idle_price=weighing.prices.idle_gb_s * held_mb / 1024,
    )


def together(in_runs: Sequence[bytes], needed: Floats) -> Floats:
    """P(N >= k) for k = 1, 2, ... up to MOST."""
    sizes = {len(bits) for bits in in_runs}
    if len(sizes) == 1 and sizes != {0}:
        came = np.unpackbits(np.frombuffer(b"".join(in_runs), np.uint8).reshape(len(in_runs), -1), axis=1).sum(axis=0)
        counted = np.array([float((came >= number).sum()) for number in range(1, MOST + 1)])
        if counted[0] > 0.0:  # scaled, so that they come to what is expected of these calls now
            return counted * min(float(needed.sum()) / float(counted.sum()), 1.0 / float(counted[0]))
    exactly = np.zeros(MOST + 1)  # the last: so many or more
    exactly[0] = 1.0
    for share in needed.tolist():
        moved = exactly * share
        exactly -= moved
        exactly[1:] += moved[:-1]
        exactly[MOST] += moved[MOST]
    return np.cumsum(exactly[::-1])[::-1][1:]


def _mixed(leads: Sequence[Lead], needed: Floats) -> Lead:
    """When the first of them comes, roughly: their samples together, each call as heavy as it is likely, 64 of them."""
    most = max(_FEWEST, _SAMPLES // len(leads))
    steps = [-(-len(one.samples) // most) for one in leads]
    thinned = [one.samples[step // 2 :: step] for one, step in zip(leads, steps, strict=True)]
    sizes = [len(one) for one in thinned]
    samples = np.concatenate(thinned)
    weights = np.repeat(needed / sizes, sizes)
    order = np.argsort(samples, kind="stable")
    reached = np.cumsum(weights[order])
    parts = (np.arange(RESERVOIR) + 0.5) / RESERVOIR * reached[-1]
    places = np.minimum(np.searchsorted(reached, parts), len(order) - 1)
    return Lead(samples[order][places])


def covers(ways: Iterable[Group], prices: Prices, standbys: Standbys, held: int) -> list[list[Cover]]:
    """For each way the standbys worth making beyond the `held` ones and the free ones of the shape."""
    listed = list(ways)
    found = curves([way.lead for way in listed], [(max(standbys.clone_s, 0.0),) * START_POINTS] * len(listed))
    return [_worthwhile(way, found, row, prices, standbys.free.get(way.memory_mb, 0) + held) for row, way in enumerate(listed)]


def _worthwhile(way: Group, found: Curves, row: int, prices: Prices, there: int) -> list[Cover]:
    missed, waited = found.missed[row], found.waited_s[row]
    waits = waited + missed * (way.start_s - found.never_s[row]) + (1.0 - missed) * way.specialise_s
    chosen: list[Cover] = []
    for ordinal in range(there + 1, min(MOST, len(way.members)) + 1):
        needed = float(way.at_least[ordinal - 1])
        idled = needed * found.called_s[row] + (1.0 - needed) * found.uncalled_s[row]
        cost = way.idle_price * idled + prices.late_s * needed * waits
        cost[~np.isfinite(found.at[row])] = np.inf
        best = len(cost) - 1 - int(np.argmin(cost[::-1]))
        never = prices.late_s * needed * way.start_s
        if cost[best] >= never - _SAME:
            break
        chosen.append(Cover(way, ordinal, needed, float(found.at[row, best]), float(cost[best]), never, float(idled[best])))
    return chosen


def standby_cost(way: Group, needed: float, at: float, clone_s: float, late: float) -> float:
    """Of a standby that is made, or has been begun, `at` seconds from now and used with probability `needed`."""
    _, idled = cost(needed, at, way.lead, (clone_s,), way.idle_price, late)
    samples = way.lead.samples
    ready = max(at + clone_s, 0.0)
    waits = np.where(samples < at, way.start_s, way.specialise_s + np.maximum(ready - samples, 0.0)).mean()
    return way.idle_price * idled + late * needed * float(waits)


def saved_by(way: Group, there: int, prices: Prices) -> float:
    """What standbys that are there anyway save the group."""
    return float(way.at_least[:there].sum()) * max(0.0, way.start_s - way.specialise_s) * prices.late_s


def choose(weighing: Weighing, standbys: Standbys, held: dict[int, int]) -> list[Cover]:
    """The standbys to make; claims the calls that are left to them. `held`: per shape, those this run has already."""
    prices, chosen = weighing.prices, list[Cover]()
    for shape, ways in groups(weighing, standbys).items():
        there = held.get(shape, 0)
        best, least = None, _SAME
        for way, made in zip(ways, covers(ways, prices, standbys, there), strict=True):
            alone = sum(min(one.cost, one.never) for one in way.members)
            shared = sum(one.never for one in way.members) - sum(one.never - one.cost for one in made)
            shared -= saved_by(way, there + standbys.free.get(shape, 0), prices)
            if alone - shared > least:
                best, least = (way, made), alone - shared
        if best is not None:
            for one in best[0].members:
                one.claimed = True
            chosen += best[1]
    return chosen
