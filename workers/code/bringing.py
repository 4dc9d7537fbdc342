"""Layers on their way to a node: each by one task, however many wait for it, until it is held or is mounted and can be used.

From where and how chunks come is workers.code.fetching's; what is used before it is whole, workers.code.lazy's.
"""

import asyncio
import contextlib
import errno
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import structlog

from workers.code.archive import unpack_old_layer, verify_old_layer
from workers.code.chunks import chunk_key
from workers.code.errands import Errand, Errands
from workers.code.fetching import Fetcher
from workers.code.holding import Holding
from workers.code.layers import LARGEST, verify
from workers.code.lazy.starting import LazyStarts
from workers.code.manifest import LayerError, Manifest
from workers.code.origin import OldLayer, Origin, OriginError
from workers.code.room import NoRoom, mib
from workers.code.shelf import Key, folders_of, footprint, size_of
from workers.code.tally import CodeTally
from workers.ports import CodeUnavailable

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


class Bringing:
    """Lives in one event loop. `origin`: for layers in the form of an earlier release, which only that has. Without `lazy` no
    layer is used before it is whole."""

    def __init__(
        self,
        holding: Holding,
        fetcher: Fetcher,
        errands: Errands,
        origin: Origin | None,
        cluster_key: bytes,
        lazy: LazyStarts | None,
        tally: CodeTally,
    ) -> None:
        self._holding = holding
        self._fetcher = fetcher
        self._errands = errands
        self._origin = origin
        self._cluster_key = cluster_key
        self._lazy = lazy
        self._tally = tally
        self._coming: dict[Key, _Coming] = {}
        self._gone: set[str] = set()  # tenants; a name is never given again
        self._threads = ThreadPoolExecutor(LAYERS_AT_ONCE, thread_name_prefix="tier1")
        self._behind = ThreadPoolExecutor(AHEAD_AT_ONCE, thread_name_prefix="tier1-ahead")

    async def bring(self, key: Key, function: str) -> int:
        """Until it is held, or mounted: the rank of the farthest source that something came from, -1 when nothing had to come.
        Who gives up waiting does not end it for the others. Raises CodeUnavailable, NoRoom among them."""
        coming = self._coming.get(key)
        if coming is not None and coming.large and not coming.errand.urgent:  # it comes whole, and somebody waits now
            self._errands.end(coming.errand)
            await asyncio.wait({coming.task})
            coming = self._coming.get(key)
        if self._holding.has(key):
            return -1
        if coming is None:
            coming = self._begin(key, function, urgent=True)
        else:
            self._errands.hurry(coming.errand)
        first: set[asyncio.Future[Any]] = {coming.task, coming.mounted}
        await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
        if not coming.task.done() and self._lazy is not None and await self._lazy.up(*key):
            return coming.errand.rank
        return await asyncio.shield(coming.task)

    async def bring_ahead(self, key: Key, function: str) -> None:
        """Until it is held; behind all that somebody waits for. Raises as `bring` does."""
        coming = self._coming.get(key) or self._begin(key, function, urgent=False)
        await asyncio.shield(coming.task)

    def gone(self, tenant: str) -> bool:
        """`forget` was called for it."""
        return tenant in self._gone

    async def forget(self, tenant: str) -> None:
        """What is on its way is given up, and what is mounted goes; for good. Returns when nothing can come any more."""
        self._gone.add(tenant)
        coming = [one for key, one in self._coming.items() if key[0] == tenant]
        for one in coming:
            self._errands.end(one.errand)
        if self._lazy is not None:
            await self._lazy.mounts.forget(tenant)
        await asyncio.gather(*(one.task for one in coming), return_exceptions=True)

    def end(self) -> None:
        """What is on its way is given up."""
        for one in self._coming.values():
            self._errands.end(one.errand)

    def close(self) -> None:
        """`end`, and waits for it. What is asked after it is refused."""
        self.end()
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._behind.shutdown(wait=True, cancel_futures=True)

    # -- one layer

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
            if self._holding.doubts(key) and await self._still_whole(key, pool):
                return -1
            try:
                path, size = await self._bring_new(key, errand, pool)
                self._holding.keep(key, path, size, function)
            finally:
                self._fetcher.leave(errand)
                if self._lazy is not None:
                    self._lazy.hand_over(*key)
        except NoRoom:
            raise
        except (OriginError, LayerError, OSError, RuntimeError) as error:
            raise CodeUnavailable(f"layer {key[1][:19]} of tenant {key[0]}: {error}") from error
        self._tally.came(function, size)
        return errand.rank

    async def _still_whole(self, key: Key, pool: ThreadPoolExecutor) -> bool:
        path = self._holding.path(key)
        assert path is not None
        whole = await self._run(pool, self._verify, key, path)
        if self._holding.path(key) is not path:
            return False  # it went meanwhile
        if whole:
            self._holding.trust(key, path)
        else:
            log.warning("code.not_whole", tenant=key[0], layer=key[1][:19], reason="damaged when the machine went down")
            self._holding.drop(key)
        return whole

    def _verify(self, key: Key, path: Path) -> bool:
        return verify(path, key[1], chunk_key(self._cluster_key, key[0])) or verify_old_layer(path, key[1], LARGEST)

    async def _bring_new(self, key: Key, errand: Errand, pool: ThreadPoolExecutor) -> tuple[Path, int]:
        """Where it lies, and its bytes on the disk."""
        with contextlib.ExitStack() as held:
            held.enter_context(self._errands.under_way(errand))  # also between its manifest and its first chunk
            try:
                manifest = await self._run(pool, self._fetcher.manifest, errand)
            except OldLayer:
                size = 0  # nothing says it before it is here
                write: Callable[[Path], None] = partial(self._write_old, key)
            else:
                size = footprint((file.size for file in manifest.files), folders_of(file.path for file in manifest.files))
                write = partial(self._write_new, errand, manifest)
            with self._holding.reserved(key, size, errand.urgent):
                if size and self._lazy is not None and self._lazy.wants(manifest):
                    coming = self._coming[key]
                    coming.large = True
                    if errand.urgent:  # mounted at once, and whole when this returns
                        held.close()  # the most of it is waited for by nobody
                        write = await self._lazy.bring(errand, manifest, self._fetcher, coming.mounted) or write
                path = await self._place(key, size, write, errand, pool)
        if key[0] in self._gone:  # told while it was on its last bytes; `forget` waits for this, and sweeps the folder then
            raise OriginError("its tenant is gone")
        return path, size or await self._run(pool, size_of, path)

    async def _place(self, key: Key, size: int, write: Callable[[Path], None], errand: Errand, pool: ThreadPoolExecutor) -> Path:
        """A full disk is tried a second time, when something could go. Raises NoRoom, and what writing raised."""
        held = self._holding
        try:
            return await self._run(pool, held.put, key, write)
        except OSError as error:
            if error.errno not in FULL:
                raise
            freed = held.free(size) if errand.urgent else 0
            log.warning("code.disk_full", tenant=key[0], layer=key[1][:19], wanted=size, freed=freed, held=held.bytes_held)
            if not freed:
                raise self._no_space(size) from error
        await held.deleted()
        try:
            return await self._run(pool, held.put, key, write)
        except OSError as error:
            raise (self._no_space(size) if error.errno in FULL else error) from error

    def _write_new(self, errand: Errand, manifest: Manifest, folder: Path) -> None:
        self._fetcher.layer(errand, manifest, folder)

    def _write_old(self, key: Key, folder: Path) -> None:
        """In the form of an earlier release, which only the origin has."""
        if self._origin is None:
            raise OriginError("it is in the form of an earlier release, and no origin is known here")
        with self._origin.old_layer(*key) as archive:
            unpack_old_layer(archive, folder, key[1], LARGEST)

    def _no_space(self, size: int) -> NoRoom:
        return NoRoom(
            f"the node's disk is full: {mib(size)} of code do not fit, and of the {mib(self._holding.bytes_held)} in tier 1 "
            "nothing more may go; free space below FOREGLOW_STATE, or lower FOREGLOW_NODE_CODE_BYTES"
        )

    async def _run(self, pool: ThreadPoolExecutor, work: Callable[..., Answer], *args: object) -> Answer:
        return await asyncio.get_running_loop().run_in_executor(pool, partial(work, *args))
