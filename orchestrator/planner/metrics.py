"""The planner's numbers as metrics, and what it needs to be ready."""

import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from orchestrator.ops.catalogue import family, histogram, one
from orchestrator.ops.health import Check
from orchestrator.ops.routes import route_checks
from orchestrator.ops.shared import connections

if TYPE_CHECKING:
    from orchestrator.planner.serving import Planner


class PlannerMetrics(Collector):
    """Reads the planner in its own loop."""

    def __init__(self, planner: "Planner") -> None:
        self._planner = planner

    def collect(self) -> Iterable[Metric]:
        planner, tally = self._planner, self._planner.decisions.tally
        yield family("foreglow_decisions_made", [((trigger,), count) for trigger, count in tally.made.items()])
        yield family("foreglow_decisions", [((outcome,), count) for outcome, count in tally.ended.items()])
        yield one("foreglow_decisions_open", planner.decisions.open)
        yield histogram("foreglow_prewarm_lead_seconds", [((outcome,), part) for outcome, part in tally.lead.items()])
        yield histogram("foreglow_prewarm_idle_seconds", [((outcome,), part) for outcome, part in tally.idle.items()])
        purses = planner.loop.accounts.purses.all().values()
        yield one("foreglow_prewarm_paid_seconds", sum(each.idle_s for each in purses))
        yield one("foreglow_busy_seconds", sum(each.busy_s for each in purses))
        yield one("foreglow_versions_resting", planner.loop.accounts.setbacks.count(time.monotonic()))
        yield one("foreglow_entries_foreseen", len(planner.loop.ahead.foresight))
        yield one("foreglow_functions_kept_by_price", planner.loop.keeping.count)
        scaling = planner.scaling
        yield one("foreglow_scaling_ticks", scaling.ticks)
        yield one("foreglow_scaling_cpu_seconds", scaling.seconds)
        yield one("foreglow_scaling_part_seconds", scaling.longest)
        yield one("foreglow_instances_wanted", scaling.wanted)
        yield one("foreglow_instances_short", scaling.short.total())
        functions, records = planner.graph.size()
        yield one("foreglow_graph_functions", functions)
        yield one("foreglow_graph_records", records)
        learned = planner.learner.counters
        yield one("foreglow_traces_learned", learned.observed)
        yield one("foreglow_traces_waiting", planner.assembler.traces)
        yield one("foreglow_traces_early", planner.assembler.early)
        yield one("foreglow_spans_received", planner.assembler.received)
        yield one("foreglow_spans_waiting", len(planner.assembler))
        yield one("foreglow_spans_exported", planner.exporter.sent)
        yield family(
            "foreglow_dropped",
            [
                (("traces", "contradictory"), learned.refused),
                (("traces", "too-many-waiting"), learned.dropped_waiting),
                (("exported-spans", "queue-full-or-unsent"), planner.exporter.dropped),
                *((("spans", reason.replace(" ", "-")), count) for reason, count in planner.assembler.dropped.items()),
            ],
        )
        yield from connections(
            {
                "node": [peer.connection is not None for peer in planner.fleet.nodes],
                "gateway": [peer.connection is not None for peer in planner.gateways.peers],
            }
        )


def planner_checks(planner: "Planner") -> Sequence[Check]:
    nodes, gateways = planner.fleet.nodes, planner.gateways.peers
    return [
        *route_checks(planner.table),
        Check("nodes", bool(planner.fleet.up()), f"none of {len(nodes)} nodes is reachable", needed=False),
        Check(
            "gateways",
            any(peer.connection is not None for peer in gateways),
            f"none of {len(gateways)} gateways is reachable: no triggers, no records",
            needed=False,
        ),
    ]
