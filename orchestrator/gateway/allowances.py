"""What each tenant may have in flight through this gateway, and start a second: its quotas, divided by the gateways that live.

Only what comes from outside is refused. A child belongs to a run that was admitted: were it refused, or made to wait, its parent
would hold its own place while it waits for one, and a tenant at its limit would stand still. Children are counted instead: they
fill the places and take the tokens of the entries that come after, which have to wait for them.
"""

import math
import time
from dataclasses import dataclass

from orchestrator.catalog.routes import TenantRoute
from orchestrator.catalog.watch import RouteTable
from orchestrator.quotas import Quotas, in_force, share_of, take_token, who_can

BURST_S = 1.0
DEBT_S = 10.0
"""What children take of a tenant's tokens without asking is paid back within this time."""

RETRY_S = 1


class OverQuota(Exception):
    """The message says which quota, how much of it is in use, and who can raise it; `reason` which, for who counts them."""

    def __init__(self, message: str, retry_after_s: int, reason: str) -> None:
        super().__init__(message)
        self.retry_after_s, self.reason = retry_after_s, reason


@dataclass(slots=True, eq=False)
class _Tenant:
    """`route` and `gateways` are what the limits were worked out from."""

    route: TenantRoute | None
    gateways: int
    concurrency: int
    per_s: float
    in_flight: int = 0
    full_at: float = 0.0


class Allowances:
    """On the path of every request: one look-up and a few comparisons each, no I/O."""

    def __init__(self, table: RouteTable, defaults: Quotas) -> None:
        self.gateways = 1
        self.used: dict[str, float] = {}  # key id -> when, until it was told
        self._table = table
        self._defaults = defaults
        self._tenants: dict[str, _Tenant] = {}

    def enter(self, tenant: str, key_id: str, now: float) -> None:
        """An invocation from outside; `leave` follows when it is over. `now`: monotonic. Raises OverQuota: nothing follows."""
        one = self._tenant(tenant)
        if one.in_flight >= one.concurrency:
            raise OverQuota(self._full(tenant, one), RETRY_S, "quota-concurrency")
        one.full_at, wait_s = take_token(one.full_at, now, one.per_s, BURST_S)
        if wait_s:
            raise OverQuota(self._fast(tenant, one), math.ceil(wait_s), "quota-rate")
        one.in_flight += 1
        self.used[key_id] = time.time()

    def enter_child(self, tenant: str, now: float) -> None:
        """A call made by a run that was admitted; `leave` follows."""
        one = self._tenant(tenant)
        one.full_at, _ = take_token(one.full_at, now, one.per_s, BURST_S, DEBT_S)
        one.in_flight += 1

    def leave(self, tenant: str) -> None:
        self._tenants[tenant].in_flight -= 1

    def in_flight(self) -> dict[str, int]:
        """Per tenant that has any. What is idle and owes nothing is forgotten on the way."""
        now = time.monotonic()
        for tenant in [name for name, one in self._tenants.items() if not one.in_flight and one.full_at < now]:
            del self._tenants[tenant]
        return {name: one.in_flight for name, one in self._tenants.items() if one.in_flight}

    def _tenant(self, tenant: str) -> _Tenant:
        route = self._table.tenants.get(tenant)
        one = self._tenants.get(tenant)
        if one is None:
            one = self._tenants[tenant] = _Tenant(route, 0, 0, 0.0)
        if one.route is not route or one.gateways != self.gateways:
            quotas = self._quotas(route)
            one.route, one.gateways = route, self.gateways
            one.concurrency = share_of(quotas.concurrency, self.gateways)
            one.per_s = quotas.invocations_per_s / self.gateways
        return one

    def _quotas(self, route: TenantRoute | None) -> Quotas:
        return in_force(route.quotas, self._defaults) if route is not None else self._defaults

    def _full(self, tenant: str, one: _Tenant) -> str:
        here = f", {one.concurrency} on each of {self.gateways} gateways" if self.gateways > 1 else ""
        limit = self._quotas(one.route).concurrency
        return (
            f"the quota concurrency of tenant {tenant} is {limit}{here}: {one.in_flight} invocations are in flight; "
            f"try again when one has ended, or {who_can(tenant, 'concurrency')}"
        )

    def _fast(self, tenant: str, one: _Tenant) -> str:
        here = f", {one.per_s:g} on each of {self.gateways} gateways" if self.gateways > 1 else ""
        limit = self._quotas(one.route).invocations_per_s
        return (
            f"the quota invocations_per_s of tenant {tenant} is {limit:g}{here}, and child calls count; "
            f"try again as Retry-After says, or {who_can(tenant, 'invocations_per_s')}"
        )
