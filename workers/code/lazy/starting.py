"""When a layer is started lazily, and what one start teaches the next, on whichever node."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import structlog

from workers.code.errands import Errand
from workers.code.fetching import Fetcher
from workers.code.layers import assemble
from workers.code.lazy.layer import LazyLayer, ReadChunk
from workers.code.lazy.mounts import LazyMounts
from workers.code.manifest import Chunk, Manifest
from workers.code.origin import Origin, OriginError

FROM_BYTES = 8 << 20
"""A smaller layer is whole before a mount would pay."""

THREADS = 16
"""Chunks waited for at once, of all layers; workers.code.lazy.fill bounds those of one."""

ORDER_TIMEOUT_S = 5.0

log = structlog.get_logger(__name__)


async def lazy_starts(folder: Path, origin: Origin, from_bytes: int) -> "LazyStarts | None":
    """What this node can do, found by doing it, and told in the log. None: every layer is fetched whole. `from_bytes` 0: not
    wanted."""
    mounts = LazyMounts(folder)
    why_not = await mounts.probe() if from_bytes else "turned off, or there is no isolation"
    log.info("node.lazy_starts", possible=not why_not, reason=why_not or "probed", from_bytes=from_bytes)
    return LazyStarts(mounts, origin, from_bytes) if not why_not else None


class LazyStarts:
    """`origin` keeps the orders in which layers are touched; None: no order is kept. Use it on one event loop."""

    def __init__(self, mounts: LazyMounts, origin: Origin | None, from_bytes: int = FROM_BYTES) -> None:
        self.mounts = mounts
        self.started = 0
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="lazy")
        self._origin = origin
        self._from_bytes = from_bytes
        self._asides: set[asyncio.Task[None]] = set()

    def wants(self, manifest: Manifest) -> bool:
        """The layer is large enough, and one more is possible."""
        return manifest.size >= self._from_bytes and self.mounts.usable

    async def bring(
        self, errand: Errand, manifest: Manifest, fetcher: Fetcher, mounted: "asyncio.Future[None]"
    ) -> Callable[[Path], None] | None:
        """Mounts the layer and says so by `mounted`. Returns when all of it is here: what writes its tree into an empty folder,
        to be called in a thread before `hand_over`. None: it cannot be, the log says why. Raises OriginError: it was given up."""
        tenant, digest = errand.tenant, errand.digest

        async def read(chunk: Chunk) -> bytes:
            one = Errand(tenant, digest, urgent=True)  # with a time limit of its own
            try:
                return await asyncio.get_running_loop().run_in_executor(self._threads, fetcher.chunk, one, chunk)
            finally:
                errand.rank = max(errand.rank, one.rank)

        try:
            layer = await self.start(tenant, digest, manifest, read)
            mounted.set_result(None)
            await asyncio.shield(layer.whole)
        except OSError as error:
            errand.check()
            log.warning("lazy.not_started", tenant=tenant, layer=digest[:19], reason=str(error), instead="fetched whole")
            return None
        return partial(assemble, manifest, layer.chunk)

    async def start(self, tenant: str, digest: str, manifest: Manifest, read_chunk: ReadChunk) -> LazyLayer:
        """Mounted; the order that was recorded may come a moment later. Raises as LazyMounts.mount does."""

        def learned(order: Sequence[int]) -> None:
            self._aside(self._keep(tenant, digest, order))

        layer = await self.mounts.mount(tenant, digest, manifest, read_chunk, learned)
        self.started += 1
        self._aside(self._recall(tenant, digest, layer))
        return layer

    async def up(self, tenant: str, digest: str) -> bool:
        """True when it can be handed out now; its server is started again when it has died."""
        try:
            return await self.mounts.again(tenant, digest)
        except OSError as error:
            log.warning("lazy.given_up", tenant=tenant, layer=digest[:19], reason=str(error), instead="fetched whole")
            return False

    def hand_over(self, tenant: str, digest: str) -> None:
        """The layer was brought, or cannot be: nobody new gets the mount, if there is one."""
        self.mounts.unmount(tenant, digest)

    async def close(self) -> None:
        await self.mounts.close()
        self._threads.shutdown(wait=False, cancel_futures=True)
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
