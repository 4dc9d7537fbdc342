"""The zone cache's numbers as metrics, and what it needs to be ready."""

from collections.abc import Iterable, Sequence

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from orchestrator.catalog.watch import RouteTable
from orchestrator.ops.catalogue import family, histogram, one
from orchestrator.ops.health import Check
from orchestrator.zone_cache.holding import Holding


class ZoneMetrics(Collector):
    """Reads the cache in its own loop."""

    def __init__(self, holding: Holding) -> None:
        self._holding = holding

    def collect(self) -> Iterable[Metric]:
        tally, disk = self._holding.tally, self._holding.disk
        results = {"hit": tally.hits, "miss": tally.misses, "absent": tally.absent, "refused": tally.refused, "failed": tally.failed}
        yield family("foreglow_zone_requests", [((result,), count) for result, count in results.items()])
        yield one("foreglow_zone_served_bytes", tally.served_bytes)
        yield one("foreglow_zone_fetched_bytes", tally.fetched_bytes)
        yield one("foreglow_zone_bytes", disk.bytes_held)
        yield one("foreglow_zone_evictions", disk.evictions)
        yield one("foreglow_zone_not_kept", disk.not_kept)
        yield one("foreglow_zone_damaged", tally.damaged)
        yield histogram("foreglow_zone_fill_seconds", [((), tally.fill)])


def zone_checks(table: RouteTable) -> Sequence[Check]:
    """Without the members it serves this host only."""
    return [Check("members", table.loaded.is_set(), "Redis has not told who the members are: nodes of other hosts wait", needed=False)]
