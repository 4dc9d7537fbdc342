"""What every process says of itself, and of its connections."""

from collections.abc import Iterable, Mapping, Sequence

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

import orchestrator
from orchestrator.ops.catalogue import family
from workers.rpc.messages import PROTOCOL


class BuildMetrics(Collector):
    """Which release runs."""

    def collect(self) -> Iterable[Metric]:
        yield family("foreglow_build", [((orchestrator.__version__, str(PROTOCOL)), 1)])


def connections(up: Mapping[str, Sequence[bool]]) -> Iterable[Metric]:
    """For each kind of peer, whether each connection that should be there is up."""
    yield family("foreglow_connections", [((peer,), sum(states)) for peer, states in up.items()])
    yield family("foreglow_connections_wanted", [((peer,), len(states)) for peer, states in up.items()])
