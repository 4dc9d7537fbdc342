"""Brings a version's layers into tier 2 of every zone before it gets traffic. A zone that is down holds nothing up for long."""

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import structlog

from orchestrator.flow.dependencies import Busy
from workers.code.zone import ZoneClient
from workers.ports import ChunkSource
from workers.rpc.transport import Identity

FILL_S = 60.0
"""How long a zone that makes progress may take; one that does not answer is given up within seconds."""

FILLS = 2
"""At once: each holds a thread."""

log = structlog.get_logger(__name__)

Zones = Callable[[], Mapping[str, Sequence[str]]]
"""Addresses of the caches of each zone that has one, now."""


class Filling:
    """Thread-safe. `stopping`: the process was told to end."""

    def __init__(self, origin: ChunkSource, zones: Zones, stopping: Callable[[], bool], identity: Identity | None = None) -> None:
        self._origin = origin
        self._zones = zones
        self._stopping = stopping
        self._identity = identity
        self._clients: dict[str, ZoneClient] = {}
        self._lock = threading.Lock()
        self._slots = threading.BoundedSemaphore(FILLS)

    def __call__(self, tenant: str, layers: Sequence[str]) -> str:
        """Empty when all of it is in every zone, else which zones are without and why. Raises Busy, OriginError."""
        zones = self._zones()
        if not zones:
            return ""
        if not self._slots.acquire(blocking=False):
            raise Busy("other versions are being brought into the zones")
        try:
            wanted = {layer: [chunk.name for chunk in self._origin.manifest(tenant, layer).chunks] for layer in layers}
            clients = self._current(zones)
            with ThreadPoolExecutor(len(clients), thread_name_prefix="zones") as threads:
                reasons = list(threads.map(lambda client: self._fill(client, tenant, wanted), clients))
        finally:
            self._slots.release()
        if self._stopping():
            raise Busy("the control flow is being stopped")
        return "; ".join(
            f"zone {client.zone}: not filled, {why}; its nodes are served from the origin"
            for client, why in zip(clients, reasons, strict=True)
            if why
        )

    def close(self) -> None:
        with self._lock:
            for client in self._clients.values():
                client.close()

    def _fill(self, client: ZoneClient, tenant: str, wanted: Mapping[str, Sequence[str]]) -> str:
        for layer, names in wanted.items():
            why = client.fill(tenant, layer, names, FILL_S, self._stopping)
            if why:
                log.warning("zone.not_filled", zone=client.zone, tenant=tenant, layer=layer[:19], reason=why)
                return why
        return ""

    def _current(self, zones: Mapping[str, Sequence[str]]) -> list[ZoneClient]:
        """One for each zone, with the caches it has now; what was learned of those that do not answer is kept."""
        with self._lock:
            for zone in self._clients.keys() - zones.keys():
                self._clients.pop(zone).close()
            for zone, caches in zones.items():
                client = self._clients.setdefault(zone, ZoneClient(zone, self._identity))
                client.use(caches)
            return [self._clients[zone] for zone in zones]
