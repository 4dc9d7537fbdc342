"""Tier 1: layers of code on the node's own disk, brought from tier 2 or the origin once, verified, kept within bounds.

A layer is one entry, its files on the disk as a start needs them. What is here is workers.code.holding's, what is on its way
workers.code.bringing's.
"""

import asyncio
import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from graph.ids import VersionId, function_of
from workers.code.bringing import Bringing
from workers.code.errands import Errands
from workers.code.fetching import Fetcher
from workers.code.holding import Holding
from workers.code.hosting import Hosting
from workers.code.lazy.starting import LazyStarts
from workers.code.origin import Origin
from workers.code.room import Bounds
from workers.code.shelf import Key
from workers.code.tally import FAILED, TIER1, CodeTally
from workers.ports import ChunkSource, CodeReport, CodeUnavailable, Fetched
from workers.versions import VersionSpec


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
        self.lazy = lazy
        self._errands = Errands()
        self.fetcher = Fetcher(sources, cluster_key, self._errands)
        self.tally = CodeTally()
        self._holding = Holding(folder, bounds or Bounds(), self.tally, self._errands.quiet)
        origin = next((source for source in sources if isinstance(source, Origin)), None)
        self._bringing = Bringing(self._holding, self.fetcher, self._errands, origin, cluster_key, lazy, self.tally)
        self.hosting = Hosting(self.bring_ahead)

    # -- asked by the node

    async def fetch(self, spec: VersionSpec) -> Fetched:
        """At once when all layers are here; else each is brought by one task, however many ask. Raises CodeUnavailable."""
        began = time.perf_counter()
        keys, source = _keys(spec), TIER1
        missing = [key for key in keys if not self._holding.has(key)]
        try:
            if missing:
                with self.pinned(spec):  # what is here must not make room for what is missing
                    ranks = await asyncio.gather(*(self._bringing.bring(key, _function(spec)) for key in missing))
                source = self.fetcher.names[max(ranks)] if max(ranks) >= 0 else TIER1
            folders = [self._folder_of(key) for key in keys]
        except CodeUnavailable:
            self.tally.asked(_function(spec), FAILED, time.perf_counter() - began)
            raise
        self._holding.use(keys)
        self.tally.asked(_function(spec), source, time.perf_counter() - began)
        return Fetched(tuple(folders), source)

    def bring(self, tenant: str, specs: Sequence[VersionSpec]) -> None:
        """The tenant is hosted here: these versions, the most wanted first, come in the background while there is room for them.
        Takes the place of what was asked for it before."""
        if not self._bringing.gone(tenant):
            self.hosting.want(tenant, [spec for spec in specs if not self.held(spec)])

    async def bring_ahead(self, spec: VersionSpec) -> None:
        """One version that nobody waits for. Raises CodeUnavailable, NoRoom among them."""
        with self.pinned(spec):
            for key in _keys(spec):
                if not self._holding.has(key):
                    await self._bringing.bring_ahead(key, _function(spec))
                    self.tally.ahead += 1

    def held(self, spec: VersionSpec) -> bool:
        """True when all layers are here and verified."""
        return all(map(self._holding.has, _keys(spec)))

    def pin(self, spec: VersionSpec) -> None:
        """Keeps the version's layers, here or yet to come, until as many `unpin`: pin a version while it may have instances."""
        self._holding.pin(_keys(spec))

    def unpin(self, spec: VersionSpec) -> None:
        self._holding.unpin(_keys(spec))

    @contextlib.contextmanager
    def pinned(self, spec: VersionSpec) -> Iterator[None]:
        self.pin(spec)
        try:
            yield
        finally:
            self.unpin(spec)

    async def forget(self, tenant: str) -> None:
        """Every layer of the tenant goes, pinned or not, and its folder; what is on its way is given up. For good."""
        self.hosting.forget(tenant)
        await self._bringing.forget(tenant)
        self.tally.forget(tenant)
        await self._holding.forget(tenant)

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
        return self._holding.bytes_held

    @property
    def layers_held(self) -> int:
        return len(self._holding)

    def bytes_of(self, tenant: str) -> int:
        """What lies here, or is on its way, of one tenant."""
        return self._holding.bytes_of(tenant)

    async def stop(self) -> None:
        """`close`, and every mount is gone."""
        self.hosting.close()
        self._bringing.end()
        if self.lazy is not None:
            await self.lazy.close()
        self.close()

    def close(self) -> None:
        """What is on its way is given up, and waited for; what is asked after it is refused."""
        self.hosting.close()
        self._bringing.close()
        self._errands.close()
        self.fetcher.close()
        self._holding.close()

    def _folder_of(self, key: Key) -> Path:
        path = self._holding.path(key) if self._holding.has(key) else None
        if path is not None:
            return path
        layer = self.lazy.mounts.get(*key) if self.lazy is not None else None
        if layer is None:
            raise CodeUnavailable(f"layer {key[1][:19]} of tenant {key[0]}: it is gone again, as its tenant may be")
        return layer.path


def _function(spec: VersionSpec) -> str:
    return function_of(VersionId(spec.version))


def _keys(spec: VersionSpec) -> list[Key]:
    return [(spec.tenant, layer) for layer in spec.package.layers]
