"""plan(...): which instances to prepare, when, and why; revise(...): what of that still stands once a stage has started. Pure.

The policies are graph.pathplan and graph.pricedplan.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence

from graph import pathplan, pricedplan, pricedrevision
from graph.bounds import left
from graph.ids import FunctionId, TenantId
from graph.plans import (
    Budget,
    ExpectedCall,
    Held,
    PrewarmDecision,
    PrewarmPlan,
    Prices,
    Revision,
    Skipped,
    Standbys,
    Trigger,
)

POLICIES = ("path", "priced", "off")


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
    standbys: Standbys | None = None,
) -> PrewarmPlan:
    """Decides what to prepare for a run of `entry` that started `elapsed_s` seconds before `now`.

    `idle`: instances per function that are ready, or being prepared for other plans, and free to be used. `budget` is
    what this plan may spend. Policy `path` prepares, at once, an instance of every function whose reach is at least
    `budget.min_reach`, and further ones as `AT_ONCE_SHARE` says; when the budget is short, those whose reach per second
    until needed is highest come first. It looks at no price: `prices` steers the priced policy. Policy `off` decides
    nothing.

    Policy `priced` weighs, for the j-th instance of each function, preparing it now, at each moment its samples name, or never,
    and takes what costs least at `prices` (steer them with graph.spending first); `start_in_s` is then the delay until the
    preparation starts, and `expires_s` how long an instance is worth keeping once it is ready. With `standbys` it also weighs
    holding generic ones for calls of one memory shape that compete. `elapsed_s` is then also knowledge: what was not called
    by then is called later, or not at all.
    `plan_id` is derived from the other arguments when empty; decisions are `plan_id-1`, `plan_id-2`, ...
    Raises ValueError for an unknown policy.
    """
    _check(policy)
    plan_id = plan_id or _derived_id(tenant, entry, trigger, trace_id, now)
    decisions: list[PrewarmDecision] = []
    ready: list[FunctionId] = []
    skipped: list[Skipped] = []
    if policy == "path":
        decisions, ready, skipped = pathplan.decide(expected, budget, idle, plan_id, entry, elapsed_s)
    elif policy == "priced":
        priced = pricedplan.decide(expected, prices, budget, idle, plan_id, entry, elapsed_s, standbys)
        decisions, ready, skipped = priced.decisions, priced.ready, priced.skipped
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


def revise(
    open_decisions: Sequence[Held],
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
    standbys: Standbys | None = None,
    seen: Sequence[FunctionId] = (),
) -> Revision:
    """The last replan: what of a run's open decisions still stands, and what must be decided anew, now that `seen` have started.

    `expected` is the prediction after the stages in `seen`. `open_decisions`: all of this run that have not ended, but one less
    of its function for each started stage that no ended decision accounts for: the stage is about to take it. `idle` and
    `budget`: as in plan(), both *without* `open_decisions`, which this function counts itself (the bounds are what may be
    alive together, this run's own included). Raises ValueError for an unknown policy.
    """
    _check(policy)
    plan_id = plan_id or _derived_id(tenant, entry, trigger, trace_id, now)
    after = seen[-1] if seen else None
    if policy == "priced":
        priced = pricedrevision.revise(
            open_decisions, expected, prices, budget, idle, now, plan_id, entry, elapsed_s, standbys, after
        )
        made = PrewarmPlan(
            plan_id=plan_id,
            tenant=tenant,
            entry=entry,
            trigger=trigger,
            policy=policy,
            created_at=now,
            trace_id=trace_id,
            decisions=tuple(priced.decisions),
            ready=tuple(priced.ready),
            skipped=tuple(priced.skipped),
        )
        return Revision(made, tuple(priced.cancelled), tuple(priced.kept))
    unready = [held.decision for held in open_decisions if held.ready_at is None]
    cancelled = pathplan.losers(unready, expected, budget, after) if policy == "path" else []
    gone = {decision_id for decision_id, _ in cancelled}
    kept = [held.decision for held in open_decisions if held.decision.decision_id not in gone]
    own = Counter(decision.function for decision in kept)
    made = plan(
        expected,
        prices,
        left(budget, kept),
        {call.function: idle.get(call.function, 0) + own[call.function] for call in expected},
        now,
        tenant=tenant,
        entry=entry,
        trigger=trigger,
        policy=policy,
        trace_id=trace_id,
        plan_id=plan_id,
        elapsed_s=elapsed_s,
    )
    return Revision(made, tuple(cancelled), tuple(decision.decision_id for decision in kept))


def _check(policy: str) -> None:
    if policy not in POLICIES:
        raise ValueError(f"policy: {policy!r} is not one of {', '.join(POLICIES)}")


def _derived_id(tenant: str, entry: str, trigger: str, trace_id: str | None, now: float) -> str:
    told = "\0".join((tenant, entry, trigger, trace_id or "", repr(now)))
    return hashlib.sha256(told.encode()).hexdigest()[:16]
