"""The page's operations listener. The page itself knows nothing of this: it reads the API only."""

from collections.abc import Callable, Iterable

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from orchestrator.ops.catalogue import one
from orchestrator.ops.listener import Operations


class PageMetrics(Collector):
    def __init__(self, viewers: Callable[[], int]) -> None:
        self._viewers = viewers

    def collect(self) -> Iterable[Metric]:
        yield one("foreglow_viewers", self._viewers())


def page_operations(serving: Callable[[], bool], viewers: Callable[[], int]) -> Operations:
    return Operations("page", serving, tuple, PageMetrics(viewers))
