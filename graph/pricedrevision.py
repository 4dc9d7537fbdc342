"""The policy `priced` once a stage has started: what is open is kept while it pays, moved to a better moment, or given up."""

from collections import Counter
from collections.abc import Mapping, Sequence

from graph.bounds import left
from graph.ids import FunctionId, name_of
from graph.plans import Budget, ExpectedCall, Held, Level, PrewarmDecision, Prices, Standbys
from graph.pricedplan import Decided, fill, idle_enough
from graph.pricing import cost
from graph.reasons import duration
from graph.standbyplan import Cover, choose, groups, standby_cost
from graph.weighing import Weighed, Weighing, weigh

MOVED = 0.02
"""A preparation that has not begun is moved to another moment when that saves more than this part of its cost."""

_GRAIN_S = 1e-3
_NOW = -1e9


def revise(
    open_decisions: Sequence[Held],
    expected: Sequence[ExpectedCall],
    prices: Prices,
    budget: Budget,
    idle: Mapping[FunctionId, int],
    now: float,
    plan_id: str,
    entry: FunctionId,
    elapsed_s: float,
    standbys: Standbys | None,
    after: FunctionId | None,
) -> Decided:
    """For a run with open decisions. `after`: the stage that has started last. The rest as in graph.planning.revise."""
    weighing = weigh(expected, prices, idle, elapsed_s)
    decided = Decided([], idle_enough(weighing, idle), [], [], [])
    since = f" after {name_of(after)}" if after else ""
    of_function: dict[FunctionId, list[Held]] = {}
    shared: list[Held] = []
    for held in sorted(open_decisions, key=lambda each: (_ready_in(each, now), each.decision.decision_id)):
        if held.decision.level == Level.STANDBY:
            shared.append(held)
        else:
            of_function.setdefault(held.decision.function, []).append(held)
    lines: dict[FunctionId, list[Weighed]] = {}
    for one in weighing.instances:
        lines.setdefault(one.call.function, []).append(one)
    kept: list[PrewarmDecision] = []
    for function, holdings in of_function.items():
        wanted = lines.get(function, [])
        for held, one in zip(holdings, wanted, strict=False):
            why = _verdict(weighing, held, one, now, since)
            if why:
                decided.cancelled.append((held.decision.decision_id, why))
            else:
                one.claimed = True
                kept.append(held.decision)
        for held in holdings[len(wanted) :]:
            why = f"no more than {len(wanted)} at once expected{since}" if wanted else f"not expected any more{since}"
            decided.cancelled.append((held.decision.decision_id, why))
    made: list[Cover] = []
    if standbys:
        counts = _keep_standbys(decided, kept, shared, weighing, standbys, now, since)
        made = choose(weighing, standbys, counts)
    else:
        decided.cancelled += [(held.decision.decision_id, "standbys are not planned any more") for held in shared]
    decided.kept = [decision.decision_id for decision in kept]
    fill(decided, weighing, left(budget, kept), plan_id, entry, made)
    return decided


def _ready_in(held: Held, now: float) -> float:
    """Seconds until it is ready, without its start time where it has not begun; orders what is furthest first."""
    if held.ready_at is not None:
        return _NOW
    return held.ordered_at + held.decision.start_in_s - now


def _verdict(weighing: Weighing, held: Held, one: Weighed, now: float, since: str) -> str:
    """Why a decision does not stand any more; empty when it does."""
    prices, at = weighing.prices, _ready_in(held, now)
    if at > 0.0 and one.pays and abs(at - one.start_in_s) <= _GRAIN_S:
        return ""
    starts = weighing.starts[one.row]
    if held.ready_at is not None:
        at, starts = 0.0, (0.0,)
    elif held.started:
        at = min(at, 0.0)
    costs, _ = cost(one.needed, at, weighing.leads[one.row], starts, one.idle_price, prices.late_s)
    if at <= 0.0:
        again = one.cost + prices.late_s * one.call.start_s  # a start is not free: as dear as waiting for one
        if costs <= min(again, one.never) + 1e-9:
            return ""
        instead = "a start on demand" if one.never < again else "another, begun later,"
        return f"reach is {one.needed:.3f}{since}: keeping it would cost {costs:.3g}, {instead} {min(again, one.never):.3g}"
    if not one.pays:
        return f"reach is {one.needed:.3f}{since}: preparing it would cost {costs:.3g}, a start on demand {one.never:.3g}"
    if costs <= one.cost * (1.0 + MOVED) + 1e-9:
        return ""
    return f"moved{since}: it is better begun in {duration(one.start_in_s)} than in {duration(at)}"


def _keep_standbys(
    decided: Decided,
    kept: list[PrewarmDecision],
    shared: Sequence[Held],
    weighing: Weighing,
    standbys: Standbys,
    now: float,
    since: str,
) -> dict[int, int]:
    """Keeps the standbys whose holding still costs less than what they save. How many are left, per shape."""
    ways = groups(weighing, standbys)
    counts: Counter[int] = Counter()
    for held in shared:
        shape = held.decision.memory_mb
        place = counts[shape] + standbys.free.get(shape, 0)
        way = ways[shape][0] if shape in ways else None
        needed = float(way.at_least[place]) if way is not None and place < len(way.at_least) else 0.0
        if way is None or not needed:
            decided.cancelled.append((held.decision.decision_id, f"nothing competes for it any more{since}"))
            continue
        at = 0.0 if held.ready_at is not None else _ready_in(held, now)
        clone_s = 0.0 if held.ready_at is not None else standbys.clone_s
        costs = standby_cost(way, needed, at, clone_s, weighing.prices.late_s)
        never = weighing.prices.late_s * needed * way.start_s
        if costs > never:
            why = f"holding it would cost {costs:.3g}, starts on demand {never:.3g}{since}"
            decided.cancelled.append((held.decision.decision_id, why))
            continue
        counts[shape] += 1
        kept.append(held.decision)
    return counts
