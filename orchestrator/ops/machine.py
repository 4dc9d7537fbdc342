"""The metrics of every process of this machine as one page, each with the label `process`."""

import asyncio
from collections.abc import Iterable
from pathlib import Path

import httpx
import structlog
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from orchestrator.ops.catalogue import PROCESSES, family
from orchestrator.settings import Settings

TIMEOUT_S = 5.0
MAX_BYTES = 8 << 20
SUFFIX = "-ops.sock"

log = structlog.get_logger(__name__)


async def gather(settings: Settings) -> bytes:
    """Prometheus' text. A process that does not answer in TIMEOUT_S, or has no socket, is `foreglow_up{process=...} 0`."""
    names = [*PROCESSES, *sorted(_others(settings.runtime_folder))]
    pages = dict(zip(names, await asyncio.gather(*(_page(settings.ops_socket(name)) for name in names)), strict=True))
    return await asyncio.to_thread(merge, pages)


def merge(pages: dict[str, str | None]) -> bytes:
    """Text pages by process into one; None for a process that did not answer."""
    families: dict[str, Metric] = {}
    up = []
    for process, page in pages.items():
        try:
            found = list(text_string_to_metric_families(page)) if page is not None else None
        except ValueError as error:
            log.warning("metrics.unreadable", of=process, error=str(error)[:200])
            found = None
        up.append(((process,), float(found is not None)))
        for metric in found or ():
            kept = families.setdefault(metric.name, Metric(metric.name, metric.documentation, metric.type))
            for sample in metric.samples:
                kept.samples.append(sample._replace(labels={**sample.labels, "process": process}))
    registry = CollectorRegistry()
    registry.register(_Families([family("foreglow_up", up), *families.values()]))
    return generate_latest(registry)


class _Families(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


async def _page(path: Path) -> str | None:
    try:
        async with (
            asyncio.timeout(TIMEOUT_S),
            httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=str(path))) as client,
            client.stream("GET", "http://operations/metrics") as answer,
        ):
            if answer.status_code != 200:
                return None
            page = bytearray()
            async for part in answer.aiter_bytes():
                page += part
                if len(page) > MAX_BYTES:
                    return None
            return page.decode()
    except (httpx.HTTPError, OSError, TimeoutError, UnicodeDecodeError):
        return None


def _others(folder: Path) -> set[str]:
    """Processes beside the usual ones, by their sockets."""
    return {path.name.removesuffix(SUFFIX) for path in folder.glob(f"*{SUFFIX}")} - set(PROCESSES)
