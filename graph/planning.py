"""plan(...): which instances to prepare, in which order, and why; losers(...): which of them are not needed after all. Pure."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence

from graph.decay import CAUTIOUS_RUNS
from graph.ids import FunctionId, TenantId, name_of
from graph.plans import (
    Budget,
    EdgeSource,
    Evidence,
    ExpectedCall,
    PrewarmDecision,
    PrewarmPlan,
    Prices,
    Skipped,
    Trigger,
)
from graph.timing import quantile

POLICIES = ("path", "off")

AT_ONCE_SHARE = 0.5
"""A further instance of a function is prepared when, given that the function is reached at all, at least this part of the
runs keeps that many busy at once. The first instance needs only `Budget.min_reach`: without it a stage waits a whole start,
while a missing further one is often made up for by the first becoming free."""


def plan(
    expected: Sequence[ExpectedCall],
    prices: Prices,
    budget: Budget,
    idle: Mapping[FunctionId, int],
    now: float,
    *,
    tenant: TenantId,
    entry: FunctionId,
    trigger: Trigger,
    policy: str = "path",
    trace_id: str | None = None,
    plan_id: str = "",
    elapsed_s: float = 0.0,
) -> PrewarmPlan:
    """Decides what to prepare for a run of `entry` that started `elapsed_s` seconds before `now`.

    `idle`: instances per function that are ready, or being prepared for other plans, and free to be used. `budget` is
    what this plan may spend. Policy `path` prepares, at once, an instance of every function whose reach is at least
    `budget.min_reach`, and further ones as `AT_ONCE_SHARE` says; when the budget is short, those whose reach per second
    until needed is highest come first. It looks at no price: `prices` steers the priced policy. Policy `off` decides
    nothing. `plan_id` is derived from the other arguments when empty; decisions are `plan_id-1`, `plan_id-2`, ...
    Raises ValueError for an unknown policy.
    """
    if policy not in POLICIES:
        raise ValueError(f"policy: {policy!r} is not one of {', '.join(POLICIES)}")
    del prices  # of the priced policy; part of the signature so that callers state them from the start
    plan_id = plan_id or _derived_id(tenant, entry, trigger, trace_id, now)
    decisions: list[PrewarmDecision] = []
    ready: list[FunctionId] = []
    skipped: list[Skipped] = []
    if policy == "path":
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
            why = ""
            if len(decisions) >= budget.instances:
                why = f"the budget of {budget.instances} instances is used up"
            elif memory_mb + call.memory_mb > budget.memory_mb:
                why = f"{call.memory_mb} MB more would exceed the budget of {budget.memory_mb} MB"
            if why:
                reach = call.concurrent[ordinal - 1]
                skipped.append(Skipped(call.function, why if ordinal == 1 else f"instance {ordinal}: {why}", reach))
                continue
            memory_mb += call.memory_mb
            decisions.append(_decision(f"{plan_id}-{len(decisions) + 1}", call, ordinal, entry, budget, elapsed_s))
    return PrewarmPlan(
        plan_id=plan_id,
        tenant=tenant,
        entry=entry,
        trigger=trigger,
        policy=policy,
        created_at=now,
        trace_id=trace_id,
        decisions=tuple(decisions),
        ready=tuple(ready),
        skipped=tuple(skipped),
    )


def instances(call: ExpectedCall, budget: Budget) -> int:
    """How many instances of the function a run is worth having, by the rule of `path`."""
    if call.reach < budget.min_reach:
        return 0
    floor = max(budget.min_reach, AT_ONCE_SHARE * call.reach)
    return max(1, sum(1 for share in call.concurrent if share >= floor))


def losers(
    open_decisions: Iterable[PrewarmDecision],
    expected: Sequence[ExpectedCall],
    budget: Budget,
    seen: Sequence[FunctionId] = (),
) -> list[tuple[str, str]]:
    """Which decisions of a run that have not ended are no longer worth having, as (decision id, why).

    `expected` is the prediction after the stages in `seen`. A function that has started is left alone, one decision for
    each start: the invocation is about to use it, and the outcome says so soon. Of the others the highest ordinals go first.
    """
    wanted = {call.function: (instances(call, budget), call) for call in expected}
    of_function: dict[FunctionId, list[PrewarmDecision]] = {}
    for decision in open_decisions:
        of_function.setdefault(decision.function, []).append(decision)
    lost: list[tuple[str, str]] = []
    for function, decisions in of_function.items():
        needed, call = wanted.get(function, (0, None))
        kept = needed + sum(1 for stage in seen if stage == function)
        for decision in sorted(decisions, key=lambda each: each.ordinal)[kept:]:
            after = f" after {name_of(seen[-1])}" if seen else ""
            if call is None:
                why = f"not expected any more{after}"
            elif not needed:
                why = f"reach fell to {call.reach:.3f}{after}, under {budget.min_reach:g}"
            else:
                why = f"no more than {needed} at once expected{after}"
            lost.append((decision.decision_id, why))
    return lost


def _derived_id(tenant: str, entry: str, trigger: str, trace_id: str | None, now: float) -> str:
    told = "\0".join((tenant, entry, trigger, trace_id or "", repr(now)))
    return hashlib.sha256(told.encode()).hexdigest()[:16]


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
        reason=_reason(call, ordinal, entry),
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


def _reason(call: ExpectedCall, ordinal: int, entry: FunctionId) -> str:
    caller, callee = name_of(entry), name_of(call.function)
    once = f" once {name_of(call.given)} has started" if call.given else ""
    if call.source == EdgeSource.REQUESTED:
        text = f"{callee} was asked for by name"
    elif call.source == EdgeSource.DECLARED:
        traces = ", no trace tells yet" if not call.samples else ""
        text = f"{caller} declares calls that lead to {callee}{traces}"
        if call.reach < 0.995:
            text += f" ({_percent(call.reach)}{once})"
    else:
        counted = "1 trace" if call.samples == 1 else f"{call.samples} traces"
        cautious = "at least " if call.samples < CAUTIOUS_RUNS and call.source == EdgeSource.LEARNED else ""
        text = f"{caller} reaches {callee}{once} in {cautious}{_percent(call.reach)} of "
        text += counted if call.source == EdgeSource.LEARNED else f"its runs, by {counted} and its declared calls"
        if call.offsets_s:
            text += f", about {_duration(quantile(call.offsets_s, 0.5))} after it starts"
    if ordinal > 1 and call.source != EdgeSource.REQUESTED:
        text += f"; {ordinal} at once in {_percent(call.concurrent[ordinal - 1])}"
    return text


def _percent(share: float) -> str:
    return f"{share * 100:.1f} %" if share < 0.0995 else f"{share * 100:.0f} %"


def _duration(seconds: float) -> str:
    if seconds < 1.0:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 60.0 else f"{seconds / 60:.1f} min"
