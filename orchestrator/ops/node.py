"""The node's numbers as metrics, and what it needs to be ready. The node itself knows nothing of this."""

from collections import Counter
from collections.abc import Iterable, Sequence

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from orchestrator.ops.catalogue import family, histogram, one
from orchestrator.ops.health import Check
from workers.code.room import REASONS
from workers.code.tally import FAILED, TIER1
from workers.code.tier1 import Tier1
from workers.instances import State
from workers.node import Node

MB = 1 << 20


class NodeMetrics(Collector):
    """Reads the node in its own loop."""

    def __init__(self, node: Node, tier: Tier1, functions: int = 0) -> None:
        """`functions`: so many get a label of their own."""
        self._node = node
        self._tier = tier
        tier.tally.labels = functions

    def collect(self) -> Iterable[Metric]:
        node, instances = self._node, self._node.instances
        states = Counter({"idle": 0, "busy": 0, "preparing": 0})
        for instance in instances.table:
            states["preparing" if instance.state is State.PREPARING else "busy" if instance.live else "idle"] += 1
        yield family("foreglow_instances", [((state,), count) for state, count in states.items()])
        yield one("foreglow_standbys", node.standbys)
        yield one("foreglow_standbys_held", len(node.held))
        memory = instances.memory
        yield family("foreglow_memory_bytes", [(("total",), memory.total_mb * MB), (("promised",), memory.used_mb * MB)])
        templates = node.templates
        standings = templates.standings
        yield family("foreglow_function_templates", [((name,), standings[name]) for name in ("held", "making", "refused")])
        yield one("foreglow_function_template_bytes", templates.held_mb * MB)
        yield one("foreglow_function_template_clones", templates.cloned)
        yield family("foreglow_function_template_refusals", [((kind,), count) for kind, count in templates.refused.items()])
        yield one("foreglow_steps_waiting", node.steps_waiting)
        yield histogram("foreglow_prepare_seconds", [((kind,), part) for kind, part in instances.prepared.whole.items()])
        yield histogram("foreglow_prepare_step_seconds", instances.prepared.steps.items())
        yield family("foreglow_prepare_failures", [((why,), count) for why, count in instances.not_prepared.items()])
        yield family("foreglow_idle_ended", [((why,), count) for why, count in node.idling.ended.items()])
        yield one("foreglow_decisions_open", len(node.decisions))
        yield from self._code()
        yield from self._tunnels()
        yield family("foreglow_isolation", [((node.report.driver, node.report.tier), 1)])
        roles = Counter({"gateway": 0, "planner": 0, "control": 0})
        roles.update(node.peers)
        yield family("foreglow_connections", [((role,), count) for role, count in roles.items()])

    def _tunnels(self) -> Iterable[Metric]:
        tunnels = self._node.tunnels
        counts = tunnels.counts()
        yield family("foreglow_tunnels", [((state,), counts[state]) for state in ("ready", "not-ready")])
        yield family("foreglow_tunnel_backend", [((tunnels.plane.backend,), 1)])
        yield one("foreglow_attached", counts["attached"])
        yield family("foreglow_attach", [((how,), count) for how, count in tunnels.attaching.items()])
        yield histogram("foreglow_attach_seconds", [((), tunnels.attach_times)])

    def _code(self) -> Iterable[Metric]:
        tally, fetcher = self._tier.tally, self._tier.fetcher
        yield family("foreglow_code_requests", [((tier,), tally.requests[tier]) for tier in (TIER1, *fetcher.names, FAILED)])
        yield histogram("foreglow_code_seconds", [((tier,), part) for tier, part in tally.seconds.items()])
        yield one("foreglow_code_ahead", tally.ahead)
        yield family("foreglow_code_fetched_bytes", [((name,), fetcher.brought[name]) for name in fetcher.names])
        faults = (("damaged", fetcher.damaged), ("no-answer", fetcher.silent))
        yield family("foreglow_code_faults", [((name, kind), of[name]) for kind, of in faults for name in fetcher.names])
        yield one("foreglow_code_bytes", self._tier.bytes_held)
        yield one("foreglow_code_layers", self._tier.layers_held)
        lazy = self._tier.lazy
        yield one("foreglow_code_lazy_starts", lazy.started if lazy is not None else 0)
        yield one("foreglow_code_lazy_mounts", lazy.mounts.mounted if lazy is not None else 0)
        yield family("foreglow_code_evictions", [((why,), tally.evictions[why]) for why in REASONS])
        yield one("foreglow_code_evicted_bytes", tally.evicted_bytes)
        yield family("foreglow_function_code_requests", tally.by_function.items())


def node_checks(node: Node) -> Sequence[Check]:
    return [
        Check("gateway", "gateway" in node.peers, "no gateway is connected: no invocation comes here", needed=False),
        Check("planner", "planner" in node.peers, "no planner is connected: nothing is prewarmed here", needed=False),
    ]
