"""Tier 1: layers of code on the node's own disk, brought from tier 2 or the origin once, verified, kept within bounds.

A layer is one entry, its files on the disk as a start needs them. The way here is workers.code.fetching, the folder
workers.code.shelf, bounds and pins workers.code.room, what goes first workers.code.eviction.
"""

import asyncio
import contextlib
import errno
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import structlog

from graph.ids import VersionId, function_of
from workers.code.archive import unpack_old_layer, verify_old_layer
from workers.code.chunks import chunk_key
from workers.code.fetching import Errand, Fetcher
from workers.code.hosting import Hosting
from workers.code.layers import LARGEST, verify
from workers.code.lazy.starting import LazyStarts
from workers.code.manifest import LayerError, Manifest
from workers.code.origin import OldLayer, Origin, OriginError
from workers.code.room import Bounds, NoRoom, Room, mib
from workers.code.shelf import Key, Shelf, folders_of, footprint, size_of
from workers.code.sweeping import Sweeper
from workers.code.tally import FAILED, TIER1, CodeTally
from workers.ports import ChunkSource, CodeReport, CodeUnavailable, Fetched
from workers.versions import VersionSpec

LAYERS_AT_ONCE = 16
"""Layers being written that somebody waits for: most of the time they wait for chunks."""

AHEAD_AT_ONCE = 4
"""Those that nobody waits for. As many as a node ever brings ahead: somebody may begin to wait for one, and it must not be behind
others then."""

FULL = (errno.ENOSPC, errno.EDQUOT)
Answer = TypeVar("Answer")
log = structlog.get_logger(__name__)


@dataclass(slots=True, eq=False)
class _Coming:
    errand: Errand
    task: "asyncio.Task[int]"  # the rank of the farthest source that something came from
    mounted: "asyncio.Future[None]"  # it can be used before it is whole
    large: bool = False  # it would be started lazily when somebody waited for it


class Tier1:
    """Lives in one event loop. `sources` are asked in their order; `close` when done, or `stop`.

    `lazy`: a large layer that somebody waits for is used before it is whole. Without it none is.
    """

    def __init__(
        self,
        folder: Path,
        sources: Sequence[ChunkSource],
        cluster_key: bytes,
        bounds: Bounds | None = None,
        lazy: LazyStarts | None = None,
    ) -> None:
        self._cluster_key = cluster_key
        self.lazy = lazy
        self._origin = next((source for source in sources if isinstance(source, Origin)), None)
        self.fetcher = Fetcher(sources, cluster_key)
        self.tally = CodeTally()
        self._shelf = Shelf(folder)
        self._room = Room(bounds or Bounds(), self._evicted)
        self._paths: dict[Key, Path] = {}
        self._owners: dict[Key, str] = {}  # the function that a layer came for; others may share it
        self._doubtful: set[Key] = set()  # here, and to be verified before their first use
        self._coming: dict[Key, _Coming] = {}
        self._gone: set[str] = set()  # tenants; a name is never given again
        self._threads = ThreadPoolExecutor(LAYERS_AT_ONCE, thread_name_prefix="tier1")
        self._behind = ThreadPoolExecutor(AHEAD_AT_ONCE, thread_name_prefix="tier1-ahead")
        self._sweeper = Sweeper(self._shelf, self.fetcher.quiet)
        self.hosting = Hosting(self.bring_ahead)
        for found in self._shelf.open():
            self._keep(found.key, found.path, found.size)
            if found.doubtful:
                self._doubtful.add(found.key)

    # -- asked by the node

    async def fetch(self, spec: VersionSpec) -> Fetched:
        """At once when all layers are here; else each is brought by one task, however many ask. Raises CodeUnavailable."""
        began = time.perf_counter()
        keys, source = _keys(spec), TIER1
        missing = [key for key in keys if not self._here(key)]
        try:
            if missing:
                with self.pinned(spec):  # what is here must not make room for what is missing
                    ranks = await asyncio.gather(*(self._bring(key, _function(spec)) for key in missing))
                source = self.fetcher.names[max(ranks)] if max(ranks) >= 0 else TIER1
            folders = [self._folder_of(key) for key in keys]
        except CodeUnavailable:
            self.tally.asked(_function(spec), FAILED, time.perf_counter() - began)
            raise
        for key in keys:
            if self._here(key):
                self._room.use(key)
        self.tally.asked(_function(spec), source, time.perf_counter() - began)
        return Fetched(tuple(folders), source)

    def bring(self, tenant: str, specs: Sequence[VersionSpec]) -> None:
        """The tenant is hosted here: these versions, the most wanted first, come in the background while there is room for them.
        Takes the place of what was asked for it before."""
        if tenant not in self._gone:
            self.hosting.want(tenant, [spec for spec in specs if not self.held(spec)])

    async def bring_ahead(self, spec: VersionSpec) -> None:
        """One version that nobody waits for. Raises CodeUnavailable, NoRoom among them."""
        with self.pinned(spec):
            for key in _keys(spec):
                if not self._here(key):
                    coming = self._coming.get(key) or self._begin(key, _function(spec), urgent=False)
                    await asyncio.shield(coming.task)
                    self.tally.ahead += 1

    def held(self, spec: VersionSpec) -> bool:
        """True when all layers are here and verified."""
        return all(self._here(key) for key in _keys(spec))

    def pin(self, spec: VersionSpec) -> None:
        """Keeps the version's layers, here or yet to come, until as many `unpin`: pin a version while it may have instances."""
        self._room.pin(_keys(spec))

    def unpin(self, spec: VersionSpec) -> None:
        self._room.unpin(_keys(spec))

    @contextlib.contextmanager
    def pinned(self, spec: VersionSpec) -> Iterator[None]:
        self.pin(spec)
        try:
            yield
        finally:
            self.unpin(spec)

    async def forget(self, tenant: str) -> None:
        """Every layer of the tenant goes, pinned or not, and its folder; what is on its way is given up. For good."""
        self._gone.add(tenant)
        self.hosting.forget(tenant)
        coming = [one for key, one in self._coming.items() if key[0] == tenant]
        for one in coming:
            self.fetcher.end(one.errand)
        if self.lazy is not None:
            await self.lazy.mounts.forget(tenant)
        await asyncio.gather(*(one.task for one in coming), return_exceptions=True)
        for key in self._room.keys_of(tenant):
            self._drop(key)
        self.tally.forget(tenant)
        await self._sweeper.forget(tenant)

    def report(self) -> CodeReport:
        ms = {tier: times.total * 1000 for tier, times in self.tally.seconds.items()}
        return CodeReport(self.bytes_held, self.tally.requests, ms, self.tally.evictions.total())

    def report_of(self, tenant: str) -> Mapping[str, CodeReport]:
        return {
            name: CodeReport(one.brought, one.requests, {tier: s * 1000 for tier, s in one.seconds.items()}, one.evictions)
            for name, one in self.tally.functions(tenant).items()
        }

    @property
    def bytes_held(self) -> int:
        return self._room.bytes_held

    @property
    def layers_held(self) -> int:
        return len(self._room)

    def bytes_of(self, tenant: str) -> int:
        """What lies here, or is on its way, of one tenant."""
        return self._room.bytes_of(tenant)

    async def stop(self) -> None:
        """`close`, and every mount is gone."""
        self.hosting.close()
        for one in self._coming.values():
            self.fetcher.end(one.errand)
        if self.lazy is not None:
            await self.lazy.close()
        self.close()

    def close(self) -> None:
        """What is on its way is given up, and waited for; what is asked after it is refused."""
        self.hosting.close()
        for one in self._coming.values():
            self.fetcher.end(one.errand)
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._behind.shutdown(wait=True, cancel_futures=True)
        self.fetcher.close()
        self._sweeper.close()

    # -- bringing

    def _here(self, key: Key) -> bool:
        return key in self._paths and key not in self._doubtful

    def _folder_of(self, key: Key) -> Path:
        if self._here(key):
            return self._paths[key]
        layer = self.lazy.mounts.get(*key) if self.lazy is not None else None
        if layer is None:
            raise CodeUnavailable(f"layer {key[1][:19]} of tenant {key[0]}: it is gone again, as its tenant may be")
        return layer.path

    async def _bring(self, key: Key, function: str) -> int:
        """Until it is here, or mounted. Who gives up waiting does not end it for the others."""
        coming = self._coming.get(key)
        if coming is not None and coming.large and not coming.errand.urgent:  # it comes whole, and somebody waits now
            self.fetcher.end(coming.errand)
            await asyncio.wait({coming.task})
            coming = self._coming.get(key)
        if self._here(key):
            return -1
        if coming is None:
            coming = self._begin(key, function, urgent=True)
        else:
            self.fetcher.hurry(coming.errand)
        first: set[asyncio.Future[Any]] = {coming.task, coming.mounted}
        await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
        if not coming.task.done() and self.lazy is not None and await self.lazy.up(*key):
            return coming.errand.rank
        return await asyncio.shield(coming.task)

    def _begin(self, key: Key, function: str, urgent: bool) -> _Coming:
        errand = Errand(*key, urgent)
        mounted = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(self._bring_once(key, function, errand))
        coming = self._coming[key] = _Coming(errand, task, mounted)
        coming.task.add_done_callback(partial(self._came, key))
        return coming

    def _came(self, key: Key, task: "asyncio.Task[int]") -> None:
        self._coming.pop(key, None)
        if not task.cancelled():
            task.exception()  # whoever waited was told; nobody may be left

    async def _bring_once(self, key: Key, function: str, errand: Errand) -> int:
        """The rank of the farthest source; -1 when it was here all along, and only in doubt."""
        pool = self._threads if errand.urgent else self._behind
        try:
            if key[0] in self._gone:
                raise OriginError("its tenant is gone")
            if key in self._doubtful and await self._still_whole(key, pool):
                return -1
            try:
                size = await self._bring_new(key, errand, pool)
            finally:
                self.fetcher.leave(errand)
                if self.lazy is not None:
                    self.lazy.hand_over(*key)
        except NoRoom:
            raise
        except (OriginError, LayerError, OSError, RuntimeError) as error:
            raise CodeUnavailable(f"layer {key[1][:19]} of tenant {key[0]}: {error}") from error
        self._owners[key] = function
        self.tally.came(function, size)
        return errand.rank

    async def _still_whole(self, key: Key, pool: ThreadPoolExecutor) -> bool:
        path = self._paths[key]
        whole = await self._run(pool, self._verify, key, path)
        if self._paths.get(key) is not path:
            return False  # it went meanwhile
        if whole:
            self._paths[key] = self._shelf.trust(path, key)
            self._doubtful.discard(key)
        else:
            log.warning("code.not_whole", tenant=key[0], layer=key[1][:19], reason="damaged when the machine went down")
            self._drop(key)
        return whole

    def _verify(self, key: Key, path: Path) -> bool:
        return verify(path, key[1], chunk_key(self._cluster_key, key[0])) or verify_old_layer(path, key[1], LARGEST)

    async def _bring_new(self, key: Key, errand: Errand, pool: ThreadPoolExecutor) -> int:
        """Its bytes on the disk."""
        with contextlib.ExitStack() as held:
            held.enter_context(self.fetcher.under_way(errand))  # also between its manifest and its first chunk
            try:
                manifest = await self._run(pool, self.fetcher.manifest, errand)
            except OldLayer:
                size = 0  # nothing says it before it is here
                write: Callable[[Path], None] = partial(self._write_old, key)
            else:
                size = footprint((file.size for file in manifest.files), folders_of(file.path for file in manifest.files))
                write = partial(self._write_new, errand, manifest)
            with self._room.reserved(key, size, errand.urgent):
                if size and self.lazy is not None and self.lazy.wants(manifest):
                    coming = self._coming[key]
                    coming.large = True
                    if errand.urgent:  # mounted at once, and whole when this returns
                        held.close()  # the most of it is waited for by nobody
                        write = await self.lazy.bring(errand, manifest, self.fetcher, coming.mounted) or write
                path = await self._place(key, size, write, errand, pool)
        if key[0] in self._gone:  # told while it was on its last bytes; `forget` waits for this, and sweeps the folder then
            raise OriginError("its tenant is gone")
        size = size or await self._run(pool, size_of, path)
        self._keep(key, path, size)
        return size

    async def _place(self, key: Key, size: int, write: Callable[[Path], None], errand: Errand, pool: ThreadPoolExecutor) -> Path:
        """A full disk is tried a second time, when something could go. Raises NoRoom, and what writing raised."""
        try:
            return await self._run(pool, self._put, key, write)
        except OSError as error:
            if error.errno not in FULL:
                raise
            freed = self._room.free(size) if errand.urgent else 0
            log.warning("code.disk_full", tenant=key[0], layer=key[1][:19], wanted=size, freed=freed, held=self.bytes_held)
            if not freed:
                raise self._no_space(size) from error
        await self._sweeper.wait()
        try:
            return await self._run(pool, self._put, key, write)
        except OSError as error:
            raise (self._no_space(size) if error.errno in FULL else error) from error

    def _put(self, key: Key, write: Callable[[Path], None]) -> Path:
        temporary = self._shelf.begin(key)
        try:
            write(temporary)
            return self._shelf.keep(temporary, key)
        except BaseException:
            self._shelf.sweep(temporary)
            raise

    def _write_new(self, errand: Errand, manifest: Manifest, folder: Path) -> None:
        self.fetcher.layer(errand, manifest, folder)

    def _write_old(self, key: Key, folder: Path) -> None:
        """In the form of an earlier release, which only the origin has."""
        if self._origin is None:
            raise OriginError("it is in the form of an earlier release, and no origin is known here")
        with self._origin.old_layer(*key) as archive:
            unpack_old_layer(archive, folder, key[1], LARGEST)

    def _no_space(self, size: int) -> NoRoom:
        return NoRoom(
            f"the node's disk is full: {mib(size)} of code do not fit, and of the {mib(self.bytes_held)} in tier 1 nothing more "
            "may go; free space below FOREGLOW_STATE, or lower FOREGLOW_NODE_CODE_BYTES"
        )

    # -- coming and going

    def _keep(self, key: Key, path: Path, size: int) -> None:
        self._paths[key] = path
        self._room.keep(key, size)

    def _drop(self, key: Key) -> None:
        self._room.drop(key)
        self._sweep(key)

    def _evicted(self, key: Key, size: int, why: str) -> None:
        self.tally.evicted(self._owners.get(key, ""), why, size)
        self._sweep(key)

    def _sweep(self, key: Key) -> None:
        self._doubtful.discard(key)
        self._owners.pop(key, None)
        self._sweeper.sweep(self._paths.pop(key))

    async def _run(self, pool: ThreadPoolExecutor, work: Callable[..., Answer], *args: object) -> Answer:
        return await asyncio.get_running_loop().run_in_executor(pool, partial(work, *args))


def _function(spec: VersionSpec) -> str:
    return function_of(VersionId(spec.version))


def _keys(spec: VersionSpec) -> list[Key]:
    return [(spec.tenant, layer) for layer in spec.package.layers]
