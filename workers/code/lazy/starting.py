"""When a layer is started lazily, and what one start teaches the next, on whichever node."""

import asyncio
from collections.abc import Coroutine, Sequence

import structlog

from workers.code.lazy.layer import LazyLayer, ReadChunk
from workers.code.lazy.mounts import LazyMounts
from workers.code.manifest import Manifest
from workers.code.origin import Origin, OriginError

FROM_BYTES = 8 << 20
"""A smaller layer is whole before a mount would pay."""

ORDER_TIMEOUT_S = 5.0

log = structlog.get_logger(__name__)


class LazyStarts:
    """`origin` keeps the orders in which layers are touched; None: no order is kept. Use it on one event loop."""

    def __init__(self, mounts: LazyMounts, origin: Origin | None, from_bytes: int = FROM_BYTES) -> None:
        self.mounts = mounts
        self.started = 0
        self._origin = origin
        self._from_bytes = from_bytes
        self._asides: set[asyncio.Task[None]] = set()

    def wants(self, manifest: Manifest) -> bool:
        """The layer is large enough, and one more is possible."""
        return manifest.size >= self._from_bytes and self.mounts.usable

    async def start(self, tenant: str, digest: str, manifest: Manifest, read_chunk: ReadChunk) -> LazyLayer:
        """Mounted, again when its server has died; raises as LazyMounts.mount does. The recorded order may come after it."""
        again = self.mounts.known(tenant, digest)

        def learned(order: Sequence[int]) -> None:
            self._aside(self._keep(tenant, digest, order))

        layer = await self.mounts.mount(tenant, digest, manifest, read_chunk, learned)
        if not again:
            self.started += 1
            self._aside(self._recall(tenant, digest, layer))
        return layer

    async def close(self) -> None:
        await self.mounts.close()
        if self._asides:
            await asyncio.wait(list(self._asides), timeout=ORDER_TIMEOUT_S)
        for task in self._asides:
            task.cancel()

    def _aside(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._asides.add(task)
        task.add_done_callback(self._asides.discard)

    async def _recall(self, tenant: str, digest: str, layer: LazyLayer) -> None:
        if self._origin is None:
            return
        try:
            layer.recorded(await asyncio.wait_for(asyncio.to_thread(self._origin.order, tenant, digest), ORDER_TIMEOUT_S))
        except (OriginError, TimeoutError) as error:  # a hint, no more
            log.info("lazy.order_unknown", tenant=tenant, layer=digest[:19], reason=str(error) or "timed out")

    async def _keep(self, tenant: str, digest: str, order: Sequence[int]) -> None:
        if self._origin is None:
            return
        try:
            await asyncio.wait_for(asyncio.to_thread(self._origin.put_order, tenant, digest, order), ORDER_TIMEOUT_S)
        except (OriginError, TimeoutError) as error:
            log.info("lazy.order_not_kept", tenant=tenant, layer=digest[:19], reason=str(error) or "timed out")
