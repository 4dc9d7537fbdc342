"""A proxy's numbers as metrics, and what it needs to be ready."""

from collections.abc import Iterable, Sequence

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from orchestrator.ops.catalogue import family, one
from orchestrator.ops.health import Check
from orchestrator.vpc_proxy.proxy import Proxy


class ProxyMetrics(Collector):
    """Reads the proxy in its own loop."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy

    def collect(self) -> Iterable[Metric]:
        carrying, kernel = self._proxy.carrying(), self._proxy.kernel_states()
        nodes = [(("portable",), sum(len(each.nodes) for each in carrying)), (("kernel",), sum(each.attached for each in kernel))]
        yield family("foreglow_proxy_nodes", nodes)
        yield one("foreglow_proxy_streams", sum(each.streams for each in carrying))
        yield one("foreglow_proxy_generation", max((each.generation for each in carrying), default=0))
        yield one("foreglow_proxy_changes_of_role", self._proxy.changes)
        yield one("foreglow_proxy_asked_in_vain", self._proxy.asked_in_vain)


def proxy_checks(proxy: Proxy) -> Sequence[Check]:
    """Without control it serves as it was told last."""
    known = proxy.known
    kernel = [state for state in proxy.kernel_states() if not state.ready]
    return [
        Check("network", known.news.spec is not None, "the private network is not known (yet), or is gone: nobody is served"),
        Check(
            "address",
            all(one.address_here for one in proxy.carrying()),
            "this host has not the network's fixed address: what the portable backend carries leaves with the host's own",
            needed=False,
        ),
        Check("control", known.told, "control has told nothing yet: served as it was known last", needed=False),
        Check(
            "kernel",
            not proxy.without_kernel and not kernel,
            proxy.without_kernel or "; ".join(state.reason for state in kernel),
            needed=False,
        ),
    ]
