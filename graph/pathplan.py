"""The policy `path`: at the start of a run, one instance of everything it is likely to reach, at once. No price. Pure."""

from collections.abc import Iterable, Mapping, Sequence

from graph.bounds import over
from graph.ids import FunctionId, name_of
from graph.plans import Budget, Evidence, ExpectedCall, PrewarmDecision, Skipped
from graph.reasons import reason
from graph.timing import quantile

AT_ONCE_SHARE = 0.5
"""A further instance of a function is prepared when, given that the function is reached at all, at least this part of the
runs keeps that many busy at once. The first instance needs only `Budget.min_reach`: without it a stage waits a whole start,
while a missing further one is often made up for by the first becoming free."""


def decide(
    expected: Sequence[ExpectedCall],
    budget: Budget,
    idle: Mapping[FunctionId, int],
    plan_id: str,
    entry: FunctionId,
    elapsed_s: float,
) -> tuple[list[PrewarmDecision], list[FunctionId], list[Skipped]]:
    """What to prepare, what is ready already, and what was left out."""
    decisions: list[PrewarmDecision] = []
    ready: list[FunctionId] = []
    skipped: list[Skipped] = []
    lines: list[tuple[ExpectedCall, int]] = []
    for call in expected:
        wanted = instances(call, budget)
        held = max(0, idle.get(call.function, 0))
        if not wanted:
            skipped.append(Skipped(call.function, f"reach {call.reach:.3f} is under {budget.min_reach:g}", call.reach))
        elif held >= wanted:
            ready.append(call.function)
        lines += [(call, ordinal) for ordinal in range(held + 1, wanted + 1)]
    lines.sort(key=lambda line: -_urgency(line[0], line[1], elapsed_s))
    memory_mb = 0
    for call, ordinal in lines:
        why = over(budget, len(decisions), memory_mb, call.memory_mb)
        if why:
            reach = call.concurrent[ordinal - 1]
            skipped.append(Skipped(call.function, why if ordinal == 1 else f"instance {ordinal}: {why}", reach))
            continue
        memory_mb += call.memory_mb
        decisions.append(_decision(f"{plan_id}-{len(decisions) + 1}", call, ordinal, entry, budget, elapsed_s))
    return decisions, ready, skipped


def instances(call: ExpectedCall, budget: Budget) -> int:
    """How many instances of the function a run is worth having."""
    if call.reach < budget.min_reach:
        return 0
    floor = max(budget.min_reach, AT_ONCE_SHARE * call.reach)
    return max(1, sum(1 for share in call.concurrent if share >= floor))


def losers(
    open_decisions: Iterable[PrewarmDecision],
    expected: Sequence[ExpectedCall],
    budget: Budget,
    after: FunctionId | None = None,
) -> list[tuple[str, str]]:
    """Which decisions of a run are no longer worth having, as (decision id, why); the highest ordinals of a function go first.

    `expected` is the prediction since `after` started. `open_decisions`: those that have not ended, without what a started stage
    is about to use.
    """
    wanted = {call.function: (instances(call, budget), call) for call in expected}
    of_function: dict[FunctionId, list[PrewarmDecision]] = {}
    for decision in open_decisions:
        of_function.setdefault(decision.function, []).append(decision)
    since = f" after {name_of(after)}" if after else ""
    lost: list[tuple[str, str]] = []
    for function, decisions in of_function.items():
        needed, call = wanted.get(function, (0, None))
        for decision in sorted(decisions, key=lambda each: each.ordinal)[needed:]:
            if call is None:
                why = f"not expected any more{since}"
            elif not needed:
                why = f"reach fell to {call.reach:.3f}{since}, under {budget.min_reach:g}"
            else:
                why = f"no more than {needed} at once expected{since}"
            lost.append((decision.decision_id, why))
    return lost


def _lead(call: ExpectedCall, elapsed_s: float) -> float | None:
    return max(0.0, quantile(call.offsets_s, 0.5) - elapsed_s) if call.offsets_s else None


def _urgency(call: ExpectedCall, ordinal: int, elapsed_s: float) -> float:
    """Reach per second until needed. The start itself is time until needed, too, so that "now" is not infinitely urgent."""
    return call.concurrent[ordinal - 1] / ((_lead(call, elapsed_s) or 0.0) + max(call.start_s, 0.001))


def _decision(
    decision_id: str, call: ExpectedCall, ordinal: int, entry: FunctionId, budget: Budget, elapsed_s: float
) -> PrewarmDecision:
    return PrewarmDecision(
        decision_id=decision_id,
        function=call.function,
        ordinal=ordinal,
        memory_mb=call.memory_mb,
        start_in_s=0.0,
        expires_s=budget.unused_s,
        reason=reason(call, ordinal, entry),
        evidence=Evidence(
            source=call.source,
            reach=call.reach,
            concurrent=call.concurrent[ordinal - 1],
            samples=call.samples,
            lead_s=_lead(call, elapsed_s),
            start_s=call.start_s,
            trace_ids=call.trace_ids,
        ),
    )
