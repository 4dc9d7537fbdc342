"""What a log of decisions comes to. Pure."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from graph.plans import Outcome
from orchestrator.planner.log import LogEntry

HAD_AN_INSTANCE = (Outcome.HIT, Outcome.LATE, Outcome.WASTED)


def totals(entries: Iterable[LogEntry], tenant: str, function: str = "") -> dict[str, Any]:
    """{decisions, since, outcomes: {hit, ...}, hit_ratio, saved_s, wasted_instance_s} of one tenant, or one of its functions.

    `hit_ratio`: hits / (hits + late + wasted), None while none of these ended; cancelled ones never held an instance ready.
    `saved_s`: preparing that invocations did not wait for. `wasted_instance_s`: how long instances that nobody used were kept
    ready. `since`: when the oldest of them was decided, None without any: the log keeps the newest of all tenants.
    """
    outcomes: Counter[str] = Counter()
    saved_s = wasted_s = 0.0
    since = None
    full = f"{tenant}/{function}"
    for one in entries:
        if one.tenant != tenant or (function and one.function != full):
            continue
        since = one.created_at if since is None else min(since, one.created_at)
        outcomes[one.outcome] += 1
        saved_s += one.saved_s
        if one.outcome is Outcome.WASTED and one.ready_at:
            wasted_s += max(0.0, one.ended_at - one.ready_at)
    ended = sum(outcomes[outcome] for outcome in HAD_AN_INSTANCE)
    return {
        "decisions": outcomes.total(),
        "since": since,
        "outcomes": {outcome.value: outcomes[outcome] for outcome in Outcome},
        "hit_ratio": outcomes[Outcome.HIT] / ended if ended else None,
        "saved_s": saved_s,
        "wasted_instance_s": wasted_s,
    }
