"""The way to tier 2: chunks and manifests from the caches of this zone, over HTTP.

Each object has one replica by rendezvous hashing. One that does not answer is left alone for a while, and the next takes its
place; with none left the caller goes to the origin. Between hosts both sides show certificates; on a unix socket each checks
that the other runs as the same user. Blocking: it is called from threads.
"""

import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import structlog

from workers.code.chunks import MAX_STORED_BYTES
from workers.code.manifest import (
    MAX_MANIFEST_BYTES,
    PARCEL_CHUNKS,
    LayerError,
    Manifest,
    check_name,
    decode_manifest,
    hex_of,
)
from workers.code.origin import OriginError
from workers.code.rendezvous import ranked
from workers.code.replica import Body, Replica, ReplicaAway, ReplicaRefused
from workers.rpc.transport import Address, Identity, NotTrusted, parse_address

TRIES = 2
"""Replicas that one object is asked of: with two down, the origin is the shorter way."""

SLICE_S = 1.0
FILL_READ_S = 3.0
"""A cache says how far it is after SLICE_S at the latest: one that stands still is noticed soon, however large the layer."""

STALLED_ROUNDS = 3
MAX_ANSWER = 64 << 10
NOT_FOUND = 404

Told = TypeVar("Told")
Answer = tuple[int, str] | str
"""How many objects a replica lacks and why, or why it does not say."""

log = structlog.get_logger(__name__)


class ZoneClient:
    """A ChunkSource: the caches of one zone. `replicas` may change while it is used. Raises OriginError."""

    name = "tier2"

    def __init__(self, zone: str, identity: Identity | None = None, replicas: Iterable[Address] = ()) -> None:
        self.zone = zone
        self._identity = identity
        self._replicas: Mapping[str, Replica] = {}
        self._lock = threading.Lock()
        self.use(replicas)

    @property
    def replicas(self) -> Sequence[str]:
        return sorted(self._replicas)

    @property
    def there(self) -> bool:
        """False in a zone without caches: there is nobody to ask."""
        return bool(self._replicas)

    def use(self, addresses: Iterable[Address | str]) -> None:
        """The caches there are from now on; connections to those that stay are kept."""
        told = {str(address): address for address in addresses}
        with self._lock:
            before = self._replicas
            now: dict[str, Replica] = {}
            for name, address in told.items():
                try:
                    known = before.get(name)
                    read = parse_address(address) if isinstance(address, str) else address
                    now[name] = known if known is not None else Replica(read, self._identity)
                except (ValueError, NotTrusted) as error:
                    log.error("zone.unusable", cache=name[:80], reason=str(error))
            self._replicas = now
        for name, replica in before.items():
            if name not in now:
                replica.close()

    def manifest(self, tenant: str, digest: str) -> Manifest:
        """The layer's manifest, its digest checked."""
        try:
            path = f"{_layer(tenant, digest)}/manifest"
            stored = self._first(digest, lambda replica: replica.ask("GET", path, MAX_MANIFEST_BYTES))
            return decode_manifest(stored, digest)
        except LayerError as error:
            raise OriginError(f"zone {self.zone}: {error}") from error

    def parcel(self, tenant: str, digest: str) -> "ZoneParcel":
        """The layer in one answer, of the replica that is asked for the manifest; it sends the chunks that it holds."""
        try:
            return self._first(digest, lambda replica: _parcel(replica, _layer(tenant, digest), digest))
        except LayerError as error:
            raise OriginError(f"zone {self.zone}: {error}") from error

    def chunk(self, tenant: str, digest: str, name: str) -> bytes:
        """The chunk as it is stored; whoever has the key unpacks and checks it."""
        try:
            path = f"{_layer(tenant, digest)}/chunks/{check_name(name)}"
            return self._first(name, lambda replica: replica.ask("GET", path, MAX_STORED_BYTES))
        except LayerError as error:
            raise OriginError(f"zone {self.zone}: {error}") from error

    def close(self) -> None:
        self.use(())

    def _first(self, key: str, ask: Callable[[Replica], Told]) -> Told:
        """What the first replica for `key` says that answers."""
        why: list[str] = []
        for replica_name, replica in self._in_order(key):
            if len(why) == TRIES:
                break
            if not replica.admits(time.monotonic()):
                continue
            try:
                return ask(replica)
            except ReplicaAway as error:
                why.append(f"{_shown(replica_name)}: {error}")
            except ReplicaRefused as error:
                raise OriginError(f"zone {self.zone}, {_shown(replica_name)}: {error}") from error
        raise OriginError(f"zone {self.zone}: no cache answers ({'; '.join(why) or self._nobody()})")

    def _in_order(self, key: str) -> list[tuple[str, Replica]]:
        known = self._replicas
        return [(name, known[name]) for name in ranked(key, known)]

    def _nobody(self) -> str:
        return "all are left alone for a while after they did not answer" if self._replicas else "there is none"

    # -- filling

    def fill(self, tenant: str, digest: str, names: Iterable[str], within_s: float, stop: Callable[[], bool] = bool) -> str:
        """Has the layer's chunks, and its manifest, brought into the zone; each to the replica that nodes ask first.

        Empty when all are there, else why not. A replica that does not answer loses its share to the next. Never raises.
        """
        deadline = time.monotonic() + within_s
        wanted = sorted({check_name(name) for name in names})
        away: dict[str, str] = {}
        missing, stalled = len(wanted) + 1, 0
        while True:
            shares = self._shares(digest, wanted, away)
            if not shares:
                return "; ".join(f"{_shown(name)}: {reason}" for name, reason in away.items()) or self._nobody()
            answers = self._step(tenant, digest, shares)
            away |= {name: answer for name, answer in answers.items() if isinstance(answer, str)}
            lacking = {name: answer for name, answer in answers.items() if not isinstance(answer, str)}
            left = sum(count for count, _ in lacking.values())
            if not left and len(lacking) == len(answers):
                return ""
            left += sum(len(shares[name]) for name in answers if name in away)
            stalled = 0 if left < missing else stalled + 1
            missing = left
            if stalled >= STALLED_ROUNDS or stop() or time.monotonic() > deadline:
                reasons = [reason for _, reason in lacking.values() if reason]
                return reasons[0] if reasons else f"{missing} of {len(wanted)} chunks are missing after {within_s:.0f} s at most"

    def _shares(self, digest: str, wanted: Iterable[str], away: Mapping[str, str]) -> dict[str, list[str]]:
        """Which chunks each replica is to have; the one that nodes ask for the manifest is in it in any case."""
        known, now = self._replicas, time.monotonic()
        usable = [name for name, replica in known.items() if name not in away and replica.admits(now)]
        if not usable:
            return {}
        shares: dict[str, list[str]] = {ranked(digest, usable)[0]: []}
        for name in wanted:
            shares.setdefault(ranked(name, usable)[0], []).append(name)
        return shares

    def _step(self, tenant: str, digest: str, shares: Mapping[str, Sequence[str]]) -> dict[str, Answer]:
        known = self._replicas

        def ask(name: str) -> Answer:
            body = json.dumps({"chunks": shares[name], "within_s": SLICE_S}).encode()
            try:
                answer = known[name].ask("POST", f"{_layer(tenant, digest)}/fill", MAX_ANSWER, body, FILL_READ_S)
                told = json.loads(answer)
                return int(told["missing"]), str(told["reason"])
            except (ReplicaAway, ReplicaRefused) as error:
                return str(error) or "it does not answer"
            except (ValueError, KeyError, TypeError) as error:
                return f"it answers what this release does not understand: {error!r}"

        with ThreadPoolExecutor(len(shares), thread_name_prefix="fill") as threads:
            return dict(zip(shares, threads.map(ask, shares), strict=True))


class ZoneParcel:
    """A Parcel (workers.ports) on its way; without `body` it is the manifest alone. Raises OriginError."""

    def __init__(self, manifest: Manifest, body: Body | None) -> None:
        self.manifest = manifest
        self._body = body

    def __iter__(self) -> Iterator[bytes]:
        try:
            while self._body is not None and (stored := self._body.part(MAX_STORED_BYTES)) is not None:
                yield stored
        except ReplicaAway as error:
            raise OriginError(f"in the middle of a parcel: {error}") from error

    def close(self) -> None:
        if self._body is not None:
            self._body.close()


def _parcel(replica: Replica, layer: str, digest: str) -> ZoneParcel:
    """Raises ReplicaAway, ReplicaRefused, LayerError."""
    try:
        body = replica.open(f"{layer}/parcel")
    except ReplicaRefused as refused:
        if refused.status != NOT_FOUND:
            raise
        # no such layer, or a cache of an earlier release, which knows no parcels
        return ZoneParcel(decode_manifest(replica.ask("GET", f"{layer}/manifest", MAX_MANIFEST_BYTES), digest), None)
    try:
        manifest = decode_manifest(body.part(MAX_MANIFEST_BYTES) or b"", digest)
        if len(manifest.chunks) <= PARCEL_CHUNKS:
            return ZoneParcel(manifest, body)
        body.part(0)  # nothing follows
    except BaseException:
        body.close()
        raise
    body.close()
    return ZoneParcel(manifest, None)


def _shown(replica: str) -> str:
    """A socket by its file's name, as elsewhere."""
    return replica.rpartition("/")[2]


def _layer(tenant: str, digest: str) -> str:
    return f"/v1/layers/{tenant}/{hex_of(digest)}"
