"""The gateway's numbers as metrics, and what it needs to be ready."""

from collections.abc import Iterable, Sequence

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from orchestrator.catalog.watch import RouteTable
from orchestrator.gateway.reports import Reports
from orchestrator.gateway.runs import Runs
from orchestrator.ops.catalogue import family, histogram, one
from orchestrator.ops.health import Check
from orchestrator.ops.routes import route_checks
from orchestrator.ops.shared import connections


class GatewayMetrics(Collector):
    def __init__(self, runs: Runs, reports: Reports) -> None:
        self._runs = runs
        self._reports = reports

    def collect(self) -> Iterable[Metric]:
        runs, reports, tally = self._runs, self._reports, self._runs.tally
        yield family("foreglow_invocations", [((result,), count) for result, count in tally.results.items()])
        yield histogram("foreglow_invocation_seconds", [((), tally.seconds)])
        yield one("foreglow_in_flight", len(runs))
        yield one("foreglow_waiting", runs.waiting)
        yield family("foreglow_throttled", [((reason,), count) for reason, count in tally.throttled.items()])
        yield family("foreglow_refused", [((str(status),), count) for status, count in tally.refused.items()])
        yield histogram("foreglow_start_seconds", [((kind,), part) for kind, part in tally.starts.whole.items()])
        yield histogram("foreglow_start_step_seconds", tally.starts.steps.items())
        yield family("foreglow_function_invocations", tally.by_function.items())
        yield family(
            "foreglow_dropped",
            [
                (("records", "buffer-full"), reports.dropped),
                (("triggers", "no-planner"), reports.triggers_unheard),
                (("triggers", "planner-congested"), reports.triggers_congested),
            ],
        )
        yield from connections({"node": [link.up for link in runs.links], "planner": [True] * reports.subscribers})


def gateway_checks(table: RouteTable, runs: Runs, reports: Reports) -> Sequence[Check]:
    up = sum(link.up for link in runs.links)
    return [
        *route_checks(table),
        # before the first node has joined there is nothing to wait for
        Check("nodes", up > 0 or not runs.links, f"none of {len(runs.links)} nodes is reachable"),
        Check("planner", reports.subscribers > 0, "no planner listens: nothing is prewarmed or learned", needed=False),
    ]
