"""Takes out of the origin what nothing refers to any more: packages and layers first, then chunks that no layer names.

Roots are the catalog's: uploads kept, versions that serve or may serve; what a route, an alias or a plan refers to are such
versions. Something goes only when it has been unreferenced for GRACE_S *and* was written as long ago, so that a node that fetches
what was deleted a moment ago ends well, and so does a publish whose version is not written down yet. Chunks are deleted in a turn
of their own (workers.code.turns), never while the tenant publishes.
"""

import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Protocol

import msgspec
import structlog
from sqlalchemy.exc import SQLAlchemyError

from orchestrator.catalog.errors import NotFound
from orchestrator.catalog.store import Store
from orchestrator.flow.metrics import Swept
from workers.code.objects import Stored
from workers.code.origin import OldLayer, Origin, OriginError
from workers.code.turns import Turn, sweeping

GRACE_S = 3600.0
EVERY_S = 1800.0
FIRST_S = 60.0
UPLOAD_UNUSED_S = 86400.0
"""An upload that no version uses is kept for a day; over the quota it makes room earlier."""

LEASE = "origin"
LEASE_S = 300.0
BATCH = 1000
MAX_WATCHED = 100_000
"""Unreferenced objects that are remembered between two sweeps; beyond it they are looked at later."""

log = structlog.get_logger(__name__)


class Roots(Protocol):
    """What the catalog knows: orchestrator.catalog.packages."""

    def release(self, tenant: str, now: float, unused_s: float) -> int: ...

    def kept(self, tenant: str) -> set[str] | None: ...


class Verdict(msgspec.Struct, frozen=True):
    """`gone`: to be deleted now. `watched`: unreferenced, by name, since when."""

    gone: Sequence[Stored]
    watched: Mapping[str, float]


def judge(found: Iterable[Stored], kept: set[str], watched: Mapping[str, float], now: float, written_before: float) -> Verdict:
    """Which packages and layers go. `kept`: digests; `watched`: as of the sweep before; `now` is of the clock that `watched` has,
    `written_before` of the origin's."""
    gone: list[Stored] = []
    still: dict[str, float] = {}
    for one in found:
        name = one.name.rpartition("/")[2]
        if f"sha256:{name.partition('.')[0]}" in kept:
            continue
        since = watched.get(one.name, now)
        if since <= now - GRACE_S and one.modified < written_before:
            gone.append(one)
        elif len(still) < MAX_WATCHED:
            still[one.name] = since
    # what says that something is whole goes before the rest of it
    gone.sort(key=lambda one: not one.name.endswith((".manifest", ".listing")))
    return Verdict(gone, still)


class Collector:
    """`run` is a loop for a thread of its own. One flow process at a time does it, the holder of a lease."""

    def __init__(self, roots: Roots, origin: Origin, tally: Swept) -> None:
        self._roots = roots
        self._origin = origin
        self._watched: dict[str, Mapping[str, float]] = {}
        self._stopping = threading.Event()
        self.tally = tally

    def stop(self) -> None:
        self._stopping.set()

    def run(self, store: Store, holder: str) -> None:
        """Until `stop`. Whatever is away is tried again next time."""
        pause = FIRST_S
        while not self._stopping.wait(pause):
            pause = EVERY_S
            try:
                self._in_lease(store, holder)
            except (OriginError, SQLAlchemyError) as error:
                log.warning("origin.not_swept", reason=f"{type(error).__name__}: {error}"[:300])

    def _in_lease(self, store: Store, holder: str) -> None:
        leases, identity = store.leases, store.identity()
        epoch = leases.acquire(LEASE, holder, "", LEASE_S)
        if not epoch:
            return
        if self._origin.owner(identity) != identity:
            log.warning("origin.not_swept", reason="it belongs to another installation, or to another database of this one")
            return
        for tenant in sorted(self._origin.tenants()):
            if self._stopping.is_set() or not leases.renew(LEASE, holder, epoch, LEASE_S):
                return
            self.collect(tenant, time.time())
        leases.release(LEASE, holder, epoch)

    def collect(self, tenant: str, now: float) -> None:
        """One sweep of one tenant. Raises what the database raises; trouble with the origin is counted and told."""
        with suppress(NotFound):  # removed; what was being written then may still be here
            self._roots.release(tenant, now, UPLOAD_UNUSED_S)
        kept = self._roots.kept(tenant)  # read before what is there is listed: what is written later is young
        if kept is None:
            log.warning("origin.not_swept", tenant=tenant, reason="the catalog knows no such tenant")
            return
        try:
            read = self._read_ahead(tenant, kept)
            with sweeping(self._origin, tenant) as turn:
                ended = self._sweep(tenant, kept, now, turn, read) if turn.free else "busy"
        except OriginError as error:
            log.warning("origin.not_swept", tenant=tenant, reason=str(error)[:300])
            ended = "failed"
        self.tally.sweeps[ended] += 1

    def _read_ahead(self, tenant: str, kept: set[str]) -> dict[str, Sequence[str]]:
        """The names of chunks in the layers that stay, by digest. A manifest never changes; reading thousands in a bucket takes
        longer than a turn may."""
        read: dict[str, Sequence[str]] = {}
        shared: dict[str, str] = {}  # layers share most of their chunks: each name is kept once
        for some in self._origin.list("layers", tenant):
            for digest in filter(None, map(_layer_of, some)):
                if digest in kept and not self._stopping.is_set():
                    with suppress(OriginError):  # the sweep comes upon it again
                        read[digest] = [shared.setdefault(name, name) for name in self._chunks_of(tenant, digest)]
        return read

    def _sweep(self, tenant: str, kept: set[str], now: float, turn: Turn, read: Mapping[str, Sequence[str]]) -> str:
        written_before = turn.at - GRACE_S
        found = [one for kind in ("layers", "packages") for some in self._origin.list(kind, tenant) for one in some]
        verdict = judge(found, kept, self._watched.get(tenant, {}), now, written_before)
        self._watched[tenant] = verdict.watched
        for kind in ("layers", "packages"):
            if not self._delete(tenant, kind, [one for one in verdict.gone if one.name.startswith(f"{kind}/")], turn):
                return "busy"
        gone = {one.name for one in verdict.gone}
        named = self._named(tenant, [one for one in found if one.name not in gone], read)
        for some in self._origin.list("chunks", tenant):
            unnamed = [one for one in some if one.name.rpartition("/")[2] not in named and one.modified < written_before]
            if not self._delete(tenant, "chunks", unnamed, turn):
                return "busy"
        for some in self._origin.list("turns", tenant):
            if dead := [one.name for one in some if one.modified < written_before]:
                self._origin.delete(tenant, dead)
        self._origin.delete_staged(tenant, GRACE_S)
        return "done"

    def _named(self, tenant: str, left: Iterable[Stored], read: Mapping[str, Sequence[str]]) -> set[str]:
        """The chunks of all layers that stay. Raises OriginError: with one manifest unread, no chunk can be judged."""
        named: set[str] = set()
        for digest in filter(None, map(_layer_of, left)):
            known = read.get(digest)
            named.update(self._chunks_of(tenant, digest) if known is None else known)
        return named

    def _chunks_of(self, tenant: str, digest: str) -> Sequence[str]:
        try:
            return [chunk.name for chunk in self._origin.manifest(tenant, digest).chunks]
        except OldLayer:
            return ()

    def _delete(self, tenant: str, kind: str, objects: Sequence[Stored], turn: Turn) -> bool:
        """False when the turn is over: the rest goes another time."""
        for start in range(0, len(objects), BATCH):
            if turn.over or self._stopping.is_set():
                return False
            some = objects[start : start + BATCH]
            self._origin.delete(tenant, [one.name for one in some])
            self.tally.objects[kind] += len(some)
            self.tally.bytes[kind] += sum(one.size for one in some)
        if objects:
            log.info("origin.swept", tenant=tenant, kind=kind, objects=len(objects), bytes=sum(one.size for one in objects))
        return True


def _layer_of(one: Stored) -> str:
    """The digest of the layer whose manifest this is; empty for any other object."""
    name = one.name.rpartition("/")[2]
    return f"sha256:{name.removesuffix('.manifest')}" if one.name.startswith("layers/") and name.endswith(".manifest") else ""
