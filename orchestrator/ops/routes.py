"""How a process that follows the routes stands with them."""

import time
from collections.abc import Iterable

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from orchestrator.catalog.watch import RouteTable
from orchestrator.ops.catalogue import one
from orchestrator.ops.health import Check

STALE_S = 15.0


class RouteMetrics(Collector):
    """Reads the table in the loop that fills it."""

    def __init__(self, table: RouteTable) -> None:
        self._table = table

    def collect(self) -> Iterable[Metric]:
        table, now = self._table, time.monotonic()
        yield one("foreglow_routes", len(table.routes))
        yield one("foreglow_route_generation", table.generation)
        yield one("foreglow_route_sequence", table.sequence)
        yield one("foreglow_route_lag_seconds", now - table.current_at)
        yield one("foreglow_route_change_age_seconds", now - table.changed_at)
        yield one("foreglow_route_loads", table.loads)


def route_checks(table: RouteTable) -> list[Check]:
    """Routes once loaded stay in force while Redis is away: that makes a process worse off, not unready."""
    age = time.monotonic() - table.current_at
    return [
        Check("routes", table.loaded.is_set(), "no routes yet: is Redis reachable, and has control published them?"),
        Check("routes-current", age < STALE_S, f"not known to be the newest for {age:.0f} s: is Redis reachable?", needed=False),
    ]
