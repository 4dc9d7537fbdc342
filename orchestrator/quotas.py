"""What a tenant may use, and the checks of it. Pure: no I/O, no clock.

Functions, private networks and package bytes are checked by the catalog when it writes; concurrency and invocations per second
by gateways, each for its share; prewarmed instances and their idling by the planner.
"""

import math

import msgspec


class Quotas(msgspec.Struct, frozen=True):
    """The limits in force. `concurrency`: invocations in flight, over all gateways. `package_bytes`: of all packages kept,
    unpacked. `prewarm_instances`: speculative instances at once. `vpcs`: private networks. `prewarm_idle_s_per_busy_s`: what
    plans of the policy priced may let idle, instance-seconds for each busy one."""

    functions: int = 5000
    concurrency: int = 2000
    package_bytes: int = 10 << 30
    invocations_per_s: float = 20_000.0
    prewarm_instances: int = 64
    vpcs: int = 10
    prewarm_idle_s_per_busy_s: float = 1.0


class OwnQuotas(msgspec.Struct, frozen=True, array_like=True):
    """What was set for one tenant; None is the platform's default."""

    functions: int | None = None
    concurrency: int | None = None
    package_bytes: int | None = None
    invocations_per_s: float | None = None
    prewarm_instances: int | None = None
    vpcs: int | None = None
    prewarm_idle_s_per_busy_s: float | None = None


def in_force(own: OwnQuotas, defaults: Quotas) -> Quotas:
    chosen = {name: value for name in Quotas.__struct_fields__ if (value := getattr(own, name)) is not None}
    return msgspec.structs.replace(defaults, **chosen) if chosen else defaults


def refusal(tenant: str, quota: str, used: float, more: float, limit: float) -> str:
    """Why `more` on top of `used` is refused, "" when it fits: the reason, the numbers, and who can change it."""
    if used + more <= limit:
        return ""
    asked = f" and {more:,.0f} more were asked for" if more != 1 else ""
    numbers = f"the quota {quota} of tenant {tenant} is {limit:,.15g}: {used:,.0f} are in use{asked}"
    return f"{numbers}; {_less(quota)}{who_can(tenant, quota)}"


def _less(quota: str) -> str:
    if quota == "package_bytes":
        return "packages of removed functions make room an hour after their upload, or "
    return "remove some, or "


def who_can(tenant: str, quota: str) -> str:
    option = quota.replace("_", "-")
    return f"an operator can raise it (foreglow tenants quotas {tenant} --{option} N)"


def share_of(limit: float, gateways: int) -> int:
    """One gateway's part of a limit of whole things, rounded up: a small quota must not become none at all."""
    return math.ceil(limit / max(1, gateways))


def take_token(full_at: float, now: float, per_s: float, burst_s: float, debt_s: float = 0.0) -> tuple[float, float]:
    """One token out of a bucket that refills with `per_s` and holds `burst_s` seconds of it, one token at least.

    The state is one number, the moment at which the bucket is full again; 0 is a full one. Returns the state after it, and 0.0
    when the token was there, else the seconds until it is (nothing was taken then). With `debt_s` it is always taken, and the
    bucket is in debt by that many seconds at most.
    """
    if per_s <= 0:
        return full_at, 0.0 if debt_s else 60.0
    cost = 1.0 / per_s
    after = (full_at if full_at > now else now) + cost
    burst = burst_s if burst_s > cost else cost
    late = after - now - burst
    if late <= 1e-9:
        return after, 0.0
    if debt_s:
        return min(after, now + burst + debt_s), 0.0
    return full_at, late
