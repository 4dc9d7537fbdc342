"""The zone cache's numbers as metrics, and what it needs to be ready."""

from collections.abc import Iterable, Sequence

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from orchestrator.catalog.watch import RouteTable
from orchestrator.ops.catalogue import family, histogram, one
from orchestrator.ops.health import Check
from orchestrator.zone_cache.holding import Holding

RESULTS = {"hit": "hits", "miss": "misses", "absent": "absent", "refused": "refused", "failed": "failed"}


class ZoneMetrics(Collector):
    """Reads the cache in its own loop."""

    def __init__(self, holding: Holding) -> None:
        self._holding = holding

    def collect(self) -> Iterable[Metric]:
        tally, disk = self._holding.tally, self._holding.disk
        yield family("foreglow_zone_requests", [((result,), getattr(tally, counted)) for result, counted in RESULTS.items()])
        yield one("foreglow_zone_served_bytes", tally.served_bytes)
        yield one("foreglow_zone_fetched_bytes", tally.fetched_bytes)
        yield one("foreglow_zone_bytes", disk.bytes_held)
        yield one("foreglow_zone_evictions", disk.evictions)
        yield one("foreglow_zone_not_kept", disk.not_kept)
        yield one("foreglow_zone_damaged", tally.damaged)
        yield histogram("foreglow_zone_fill_seconds", [((), tally.fill)])


def zone_checks(table: RouteTable) -> Sequence[Check]:
    """Without the members it serves this host only."""
    reason = "Redis has not told who the members are: nodes of other hosts go to the origin"
    return [Check("members", table.loaded.is_set(), reason, needed=False)]
