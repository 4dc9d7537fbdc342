"""What a zone cache holds of the origin: read from its disk, else read through, once however many ask.

Every object is checked each time it is read, on its way in and on its way out: a damaged one is dropped and brought again.
"""

import asyncio
import contextlib
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import msgspec
import structlog

from orchestrator.zone_cache.disk import Key, ZoneDisk
from workers.code.chunks import intact
from workers.code.manifest import PARCEL_CHUNKS, LayerError, decode_manifest, encode_manifest, hex_of
from workers.code.origin import OriginError
from workers.ports import ChunkSource
from workers.tallies import Histogram

READERS = 8
FETCHERS = 16
FILLERS = 8
"""Of the fetchers' places, so many may be taken by one filling: what a start waits for finds others free."""

ORIGIN_S = 10.0
"""How long anybody waits for the origin here; it has limits of its own behind this one."""

FLIGHTS = 2000
LAYERS_BYTES = 64 << 20
NAME_BYTES = 120
"""About what one chunk's name costs in a set."""

Found = TypeVar("Found")
log = structlog.get_logger(__name__)


class NotHere(Exception):
    """The origin has no such layer, or the layer names no such chunk."""


class Unavailable(Exception):
    """It is not held here, and the origin does not give it now."""


class Layer(msgspec.Struct, frozen=True):
    """A manifest as it is stored, and the names of the chunks in it. `few`: in their order, of a layer that is one parcel."""

    stored: bytes
    names: frozenset[str]
    few: Sequence[str] = ()

    @property
    def weight(self) -> int:
        return len(self.stored) + NAME_BYTES * len(self.names)


class Filled(msgspec.Struct, frozen=True):
    """`missing`: what is not held yet; `reason`: the last thing that went wrong, empty when nothing did."""

    missing: int
    reason: str = ""


class Tally:
    """Since the process started. Objects are manifests and chunks."""

    def __init__(self) -> None:
        self.hits = self.misses = self.absent = self.failed = self.refused = self.damaged = 0
        self.served_bytes = self.fetched_bytes = 0
        self.fill = Histogram()


class Holding:
    """Lives in one event loop; disk and origin are asked in threads."""

    def __init__(self, disk: ZoneDisk, origin: ChunkSource) -> None:
        self.disk = disk
        self.tally = Tally()
        self.removed: set[str] = set()  # tenants; a name is never given again
        self._origin = origin
        self._layers: OrderedDict[tuple[str, str], Layer] = OrderedDict()
        self._layers_weight = 0
        self._flights: dict[Key, asyncio.Task[bytes]] = {}
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="disk")
        self._fetchers = ThreadPoolExecutor(FETCHERS, thread_name_prefix="origin")

    async def layer(self, tenant: str, digest: str) -> Layer:
        """Raises NotHere, Unavailable, LayerError (no digest)."""
        known = self._layers.get((tenant, digest))
        if known is not None:
            self._layers.move_to_end((tenant, digest))
            self.tally.hits += 1
            return known
        key = (tenant, "manifests", hex_of(digest))
        stored = await self._object(key, partial(self._manifest, tenant, digest), partial(_is_manifest, digest=digest))
        manifest = await self._in(self._readers, partial(decode_manifest, stored, digest))
        names = [chunk.name for chunk in manifest.chunks]
        layer = Layer(stored, frozenset(names), names if len(names) <= PARCEL_CHUNKS else ())
        self._remember((tenant, digest), layer)
        return layer

    async def chunk(self, tenant: str, digest: str, name: str) -> bytes:
        """The chunk as it is stored, when the layer names it. Raises as `layer` does."""
        if name not in (await self.layer(tenant, digest)).names:
            self.tally.absent += 1
            raise NotHere(f"layer {digest[:19]} holds no chunk {name[:12]}")
        return await self._object((tenant, "chunks", name), partial(self._origin.chunk, tenant, digest, name), intact)

    async def parcel(self, tenant: str, layer: Layer) -> AsyncIterator[bytes]:
        """The chunks of a small layer in their order, those of a larger one not. Empty for one that is not held: who needs it
        asks for it alone, maybe another replica."""
        for name in layer.few:
            key = (tenant, "chunks", name)
            stored = await self._in(self._readers, partial(self._read, key, intact)) if tenant not in self.removed else None
            self.tally.hits += stored is not None
            yield stored or b""

    async def fill(self, tenant: str, digest: str, names: Iterable[str], within_s: float) -> Filled:
        """Brings what is missing, for `within_s` seconds; asked again it goes on. Raises as `layer` does, for the
        manifest."""
        began = time.monotonic()
        layer = await self.layer(tenant, digest)
        wanted = set(names)
        strangers = wanted - layer.names
        if strangers:
            raise NotHere(f"layer {digest[:19]} holds no chunk {min(strangers)[:12]}")
        missing = iter(sorted(name for name in wanted if not self.disk.holds((tenant, "chunks", name))))
        reasons: list[str] = []

        async def bring() -> None:
            for name in missing:  # shared by all that bring
                try:
                    await self.chunk(tenant, digest, name)
                except (NotHere, Unavailable) as error:
                    reasons.append(str(error))
                if reasons:
                    return

        with contextlib.suppress(TimeoutError):  # what is on its way comes all the same
            async with asyncio.timeout(within_s):
                await asyncio.gather(*(bring() for _ in range(FILLERS)))
        self.tally.fill.add(time.monotonic() - began)
        left = sum(not self.disk.holds((tenant, "chunks", name)) for name in wanted)
        if left and not reasons and self.disk.not_kept:
            reasons.append("the cache's disk has no room for it")
        return Filled(left, reasons[-1] if left and reasons else "")

    async def forget(self, tenant: str) -> None:
        """The tenant is gone for good."""
        self.removed.add(tenant)
        flights = [task for key, task in self._flights.items() if key[0] == tenant]
        await asyncio.gather(*flights, return_exceptions=True)
        for key in [key for key in self._layers if key[0] == tenant]:
            self._layers_weight -= self._layers.pop(key).weight
        await self._in(self._readers, partial(self.disk.forget, tenant))

    def close(self) -> None:
        for threads in (self._readers, self._fetchers):
            threads.shutdown(wait=False, cancel_futures=True)

    # -- one object

    async def _object(self, key: Key, fetch: Callable[[], bytes], good: Callable[[bytes], bool]) -> bytes:
        if key[0] in self.removed:
            self.tally.absent += 1
            raise NotHere(f"the tenant {key[0]} was removed")
        stored = await self._in(self._readers, partial(self._read, key, good))
        if stored is not None:
            self.tally.hits += 1
            return stored
        task = self._flights.get(key)
        if task is None:
            if len(self._flights) >= FLIGHTS:
                raise Unavailable("too much is being fetched from the origin at once; try again")
            task = self._flights[key] = asyncio.create_task(self._fetch(key, fetch, good))
            task.add_done_callback(partial(self._landed, key))
        try:
            async with asyncio.timeout(ORIGIN_S):
                return await asyncio.shield(task)  # who gives up waiting does not end it for the others
        except TimeoutError:
            self.tally.failed += 1
            raise Unavailable(f"the origin did not answer within {ORIGIN_S:.0f} s") from None

    def _landed(self, key: Key, task: "asyncio.Task[bytes]") -> None:
        self._flights.pop(key, None)
        if not task.cancelled():
            task.exception()  # whoever waited for it has heard of it

    async def _fetch(self, key: Key, fetch: Callable[[], bytes], good: Callable[[bytes], bool]) -> bytes:
        try:
            stored = await self._in(self._fetchers, partial(self._bring, key, fetch, good))
        except (OriginError, LayerError, OSError) as error:
            if isinstance(error.__cause__, FileNotFoundError):
                self.tally.absent += 1
                raise NotHere(str(error)) from error
            self.tally.failed += 1
            raise Unavailable(str(error)) from error
        self.tally.misses += 1
        self.tally.fetched_bytes += len(stored)
        return stored

    def _read(self, key: Key, good: Callable[[bytes], bool]) -> bytes | None:
        stored = self.disk.read(key)
        if stored is not None and not good(stored):
            log.error("zone.damaged", tenant=key[0], kind=key[1], object=key[2][:12])
            self.tally.damaged += 1
            self.disk.drop(key)
            return None
        return stored

    def _bring(self, key: Key, fetch: Callable[[], bytes], good: Callable[[bytes], bool]) -> bytes:
        for _ in range(2):
            stored = fetch()
            if good(stored):
                self.disk.keep(key, stored)
                return stored
        raise OriginError(f"{key[1]} {key[2][:12]} of tenant {key[0]}: damaged in the origin")

    def _manifest(self, tenant: str, digest: str) -> bytes:
        return encode_manifest(self._origin.manifest(tenant, digest))

    # -- manifests in memory

    def _remember(self, key: tuple[str, str], layer: Layer) -> None:
        before = self._layers.pop(key, None)
        self._layers_weight += layer.weight - (before.weight if before is not None else 0)
        self._layers[key] = layer
        while self._layers_weight > LAYERS_BYTES and len(self._layers) > 1:
            self._layers_weight -= self._layers.popitem(last=False)[1].weight

    async def _in(self, threads: ThreadPoolExecutor, call: Callable[[], Found]) -> Found:
        return await asyncio.get_running_loop().run_in_executor(threads, call)


def _is_manifest(stored: bytes, digest: str) -> bool:
    try:
        decode_manifest(stored, digest)
    except LayerError:
        return False
    return True
