"""The policy `priced`: each instance at the moment that costs least, standbys for branches that compete, or nothing. Pure."""

from collections.abc import Mapping, Sequence

import msgspec

from graph.bounds import over
from graph.ids import FunctionId, name_of
from graph.plans import (
    Alternative,
    Budget,
    Evidence,
    ExpectedCall,
    Level,
    PrewarmDecision,
    Prices,
    Skipped,
    Standbys,
)
from graph.pricing import LEAST_HELD_S, hold_s
from graph.reasons import duration, percent, reason
from graph.standbyplan import Cover, choose
from graph.weighing import Weighed, Weighing, evidence, lead_quantiles, weigh


class Decided(msgspec.Struct):
    """What a plan comes to. `kept` (ids) and `cancelled` (id, why) are of a revision."""

    decisions: list[PrewarmDecision]
    ready: list[FunctionId]
    skipped: list[Skipped]
    kept: list[str] = []
    cancelled: list[tuple[str, str]] = []


def decide(
    expected: Sequence[ExpectedCall],
    prices: Prices,
    budget: Budget,
    idle: Mapping[FunctionId, int],
    plan_id: str,
    entry: FunctionId,
    elapsed_s: float,
    standbys: Standbys | None,
) -> Decided:
    """For a run with nothing open."""
    weighing = weigh(expected, prices, idle, elapsed_s)
    decided = Decided([], idle_enough(weighing, idle), [])
    fill(decided, weighing, budget, plan_id, entry, choose(weighing, standbys, {}) if standbys else [])
    return decided


def idle_enough(weighing: Weighing, idle: Mapping[FunctionId, int]) -> list[FunctionId]:
    """What needs no decision, because idle instances serve every call that would have been worth one."""
    wanting = {one.call.function for one in weighing.instances if one.pays}
    return [call.function for call in weighing.expected if idle.get(call.function, 0) > 0 and call.function not in wanting]


def fill(decided: Decided, weighing: Weighing, budget: Budget, plan_id: str, entry: FunctionId, made: Sequence[Cover]) -> None:
    """Turns what pays into decisions, what saves most per idle second first, as far as the budget goes; says why of the rest."""
    choices: list[tuple[float, Weighed | Cover]] = []
    for one in weighing.instances:
        if one.claimed:
            continue
        if one.pays:
            choices.append((one.gain / max(one.idle_s, 1e-9), one))
        elif one.ordinal == 1:
            decided.skipped.append(Skipped(one.call.function, _why_not(one), one.needed))
    choices += [((each.never - each.cost) / max(each.idle_s, 1e-9), each) for each in made]
    choices.sort(key=lambda choice: -choice[0])
    memory_mb, idle_s = 0, 0.0
    for _, choice in choices:
        shape = choice.group.memory_mb if isinstance(choice, Cover) else choice.call.memory_mb
        why = over(budget, len(decided.decisions), memory_mb, shape)
        if not why and budget.idle_s is not None and idle_s + choice.idle_s > budget.idle_s:
            why = f"{choice.idle_s:.2g} s of idling more would exceed the {budget.idle_s:.2g} s that are left of the budget"
        if why:
            function = choice.group.members[0].call.function if isinstance(choice, Cover) else choice.call.function
            what = f"instance {choice.ordinal}: " if choice.ordinal > 1 else ""
            decided.skipped.append(Skipped(function, what + why, choice.needed))
            continue
        memory_mb += shape
        idle_s += choice.idle_s
        decision_id = f"{plan_id}-{len(decided.decisions) + 1}"
        if isinstance(choice, Cover):
            decided.decisions.append(_standby(decision_id, choice, weighing, budget))
        else:
            decided.decisions.append(_instance(decision_id, choice, weighing, entry, budget))


def _why_not(one: Weighed) -> str:
    if one.needed <= one.kappa:
        return f"reach {one.needed:.3f} is under {one.kappa:.3f}, where preparing costs more than waiting"
    return f"reach {one.needed:.3f}: preparing it would cost {one.cost:.3g}, a start on demand {one.never:.3g}"


def _instance(decision_id: str, one: Weighed, weighing: Weighing, entry: FunctionId, budget: Budget) -> PrewarmDecision:
    known = weighing.leads[one.row]
    expires_s = budget.unused_s
    if known.known:
        start_s = float(weighing.curves.never_s[one.row])
        more = hold_s(one.needed, len(known.samples), start_s, one.idle_price, weighing.prices.late_s)
        until = float(known.samples[-1]) + max(more, LEAST_HELD_S) - one.start_in_s - start_s
        expires_s = min(budget.unused_s, max(LEAST_HELD_S, until))
    text = reason(one.call, one.ordinal, entry)
    if one.start_in_s > 0.0:
        text += f"; begun in {duration(one.start_in_s)}, so that it is ready for it and no earlier"
    return PrewarmDecision(
        decision_id=decision_id,
        function=one.call.function,
        ordinal=one.ordinal,
        memory_mb=one.call.memory_mb,
        start_in_s=one.start_in_s,
        expires_s=expires_s,
        reason=text,
        evidence=evidence(weighing, one),
    )


def _standby(decision_id: str, cover: Cover, weighing: Weighing, budget: Budget) -> PrewarmDecision:
    group, samples = cover.group, cover.group.lead.samples
    first = group.members[0].call
    names = list(dict.fromkeys(name_of(one.call.function) for one in group.members))
    listed = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    more = hold_s(cover.needed, len(samples), group.start_s - group.specialise_s, group.idle_price, weighing.prices.late_s)
    quantiles = tuple(lead_quantiles([group.lead])[0])
    alone = sum(min(one.cost, one.never) for one in group.members)
    idle_cost = group.idle_price * cover.idle_s
    often = f"{cover.ordinal} of them at once" if cover.ordinal > 1 else "one of them"
    return PrewarmDecision(
        decision_id=decision_id,
        function=first.function,
        ordinal=cover.ordinal,
        memory_mb=group.memory_mb,
        start_in_s=cover.start_in_s,
        expires_s=min(budget.unused_s, max(LEAST_HELD_S, float(samples[-1]) + max(more, LEAST_HELD_S) - cover.start_in_s)),
        reason=f"a standby for whichever of {listed} is called: {often} in {percent(cover.needed)}",
        evidence=Evidence(
            source=first.source,
            reach=float(group.at_least[0]),
            concurrent=cover.needed,
            samples=max(one.call.samples for one in group.members),
            lead_s=quantiles[len(quantiles) // 2],
            start_s=group.specialise_s,
            price=cover.cost - cover.never,
            trace_ids=first.trace_ids,
            lead_quantiles_s=quantiles,
            wait_cost=max(0.0, cover.cost - idle_cost),
            idle_cost=idle_cost,
            idle_s=cover.idle_s,
            kappa=weighing.prices.kappa(group.memory_mb),
            alternatives=tuple(
                sorted((Alternative("never", cover.never), Alternative("instances", alone)), key=lambda each: each.cost)
            ),
        ),
        level=Level.STANDBY,
        covers=tuple(dict.fromkeys(one.call.function for one in group.members)),
    )
