"""What a tenant may let idle: a bucket of idle seconds, filled by busy ones; idling gets dearer as it empties. Pure.

`Budget.idle_s_per_busy_s` says how many instance-seconds may idle for each busy one. What a plan is expected to idle is reserved
when it is made, so that plans made at once do not spend the same seconds twice; what really idled is paid when a decision
ends. The price of idling rises as the bucket empties, so that what saves least per idle second is left out first; what is
left in it is also the bound of a plan (Budget.idle_s), so that it holds whatever the prices are.
"""

import msgspec

from graph.plans import Budget, Prices

FULL_S = 300.0
"""The most a tenant can have saved up, idle seconds; also what it begins with, so that its first runs are prepared for.

A few wide paths under way at once must fit: they are expected to idle some seconds a call."""

DEAREST = 64.0
"""The price of idling is multiplied by up to this, when the bucket is empty. It is 1 while the bucket is at least half full."""


class Spending(msgspec.Struct, frozen=True):
    """One tenant's. `left_s`: idle seconds in the bucket; below 0 when more idled than was expected. `reserved_s`: of it, what
    open decisions are expected to idle. `busy_s` and `idle_s`: all that was ever counted, for reports.
    """

    left_s: float = FULL_S
    reserved_s: float = 0.0
    busy_s: float = 0.0
    idle_s: float = 0.0


def earn(state: Spending, busy_s: float, budget: Budget) -> Spending:
    """An invocation kept an instance busy for so long."""
    left_s = min(FULL_S, state.left_s + budget.idle_s_per_busy_s * max(0.0, busy_s))
    return msgspec.structs.replace(state, left_s=left_s, busy_s=state.busy_s + max(0.0, busy_s))


def reserve(state: Spending, expected_idle_s: float) -> Spending:
    """Decisions were made: Evidence.idle_s of each, or PrewarmPlan.expected_idle_s of all."""
    return msgspec.structs.replace(state, reserved_s=state.reserved_s + max(0.0, expected_idle_s))


def pay(state: Spending, expected_idle_s: float, idle_s: float) -> Spending:
    """A decision ended: `expected_idle_s` had been reserved for it, and its instance was ready and unused for `idle_s`."""
    return msgspec.structs.replace(
        state,
        left_s=state.left_s - max(0.0, idle_s),
        reserved_s=max(0.0, state.reserved_s - max(0.0, expected_idle_s)),
        idle_s=state.idle_s + max(0.0, idle_s),
    )


def free_s(state: Spending) -> float:
    """Idle seconds the next plan may be expected to cost."""
    return max(0.0, state.left_s - state.reserved_s)


def pressure(state: Spending) -> float:
    """By how much idling is dearer now: 1 from a half full bucket up, DEAREST when it is empty, geometric between."""
    level = min(1.0, 2.0 * free_s(state) / FULL_S)
    return float(DEAREST ** (1.0 - level))


def steer(state: Spending, prices: Prices, budget: Budget) -> tuple[Prices, Budget]:
    """The prices and the budget with which to plan now. Who may let nothing idle has nothing saved up either."""
    left_s = free_s(state) if budget.idle_s_per_busy_s > 0 else 0.0
    dearer = msgspec.structs.replace(prices, idle_gb_s=prices.idle_gb_s * pressure(state))
    return dearer, msgspec.structs.replace(budget, idle_s=left_s)
