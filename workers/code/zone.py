"""The way to tier 2: chunks and manifests from the caches of this zone, over HTTP.

Each object has one replica by rendezvous hashing. One that does not answer is left alone for a while, and the next takes its
place; with none left the caller goes to the origin. Between hosts both sides show certificates; on a unix socket each checks
that the other runs as the same user. Blocking: it is called from threads.
"""

import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import structlog

from workers.code.breaker import Breaker
from workers.code.chunks import MAX_STORED_BYTES
from workers.code.manifest import MAX_MANIFEST_BYTES, LayerError, Manifest, check_name, decode_manifest, hex_of
from workers.code.origin import OriginError
from workers.code.rendezvous import ranked
from workers.rpc.transport import Address, Identity, NotTrusted, certified, parse_address, peer_uid

ROLE = "zone-cache"
CONNECT_S = 1.0
READ_S = 3.0
"""Without a byte for so long, a replica stands still: the next one, and then the origin, are asked instead."""

WHOLE_S = 20.0
TRIES = 2
"""Replicas that one object is asked of: with two down, the origin is the shorter way."""

CONNECTIONS = 16
KEPT = 8
FILL_READ_S = 6.0
"""A cache answers how far it is within SLICE_S, plus what is under way by then."""

SLICE_S = 2.0
STALLED_ROUNDS = 3
MAX_ANSWER = 64 << 10

log = structlog.get_logger(__name__)


class ReplicaAway(Exception):
    """A replica did not answer, or not as one does."""


class ReplicaRefused(Exception):
    """A replica that works said no; another one would say the same."""


class Replica:
    """One zone cache. Thread-safe."""

    def __init__(self, address: Address, identity: Identity | None) -> None:
        self.breaker = Breaker()
        self._lock = threading.Lock()
        limits = httpx.Limits(max_connections=CONNECTIONS, max_keepalive_connections=KEPT, keepalive_expiry=30.0)
        if isinstance(address, Path):
            transport = httpx.HTTPTransport(uds=str(address), limits=limits, trust_env=False)
            base = "http://zone-cache"
        else:
            if identity is None:
                raise NotTrusted("this process has no certificate to show a zone cache of another host")
            transport = httpx.HTTPTransport(verify=identity.client, limits=limits, trust_env=False)
            base = f"https://{address}"
        timeout = httpx.Timeout(READ_S, connect=CONNECT_S, pool=READ_S)
        self._http = httpx.Client(base_url=base, transport=transport, timeout=timeout, trust_env=False, follow_redirects=False)

    def admits(self, now: float) -> bool:
        with self._lock:
            return self.breaker.admits(now)

    def ask(self, method: str, path: str, at_most: int, body: bytes = b"", read_s: float = READ_S) -> bytes:
        """The body of a good answer. Raises ReplicaAway, ReplicaRefused; the breaker has heard of it then."""
        try:
            status, answer = self._ask(method, path, at_most, body, read_s)
        except (httpx.HTTPError, NotTrusted, OSError, ValueError, RuntimeError) as error:  # RuntimeError: closed meanwhile
            with self._lock:
                self.breaker.failed(time.monotonic())
            raise ReplicaAway(f"{type(error).__name__}: {error}") from error
        with self._lock:
            self.breaker.worked()
        if status == 200:
            return answer
        why = answer[:300].decode(errors="replace").strip() or f"status {status}"
        if status >= 500:
            raise ReplicaAway(why)  # it lives, and cannot help: the origin is away from there, or it has too much to do
        raise ReplicaRefused(why)

    def _ask(self, method: str, path: str, at_most: int, body: bytes, read_s: float) -> tuple[int, bytes]:
        deadline = time.monotonic() + WHOLE_S
        timeout = httpx.Timeout(read_s, connect=CONNECT_S, pool=READ_S)
        with self._http.stream(method, path, content=body or None, timeout=timeout) as answer:
            _check_peer(answer.extensions["network_stream"])
            found = bytearray()
            for part in answer.iter_raw():
                found += part
                if len(found) > at_most:
                    raise ValueError(f"an answer of over {at_most} bytes")
                if time.monotonic() > deadline:
                    raise ValueError(f"not done within {WHOLE_S:.0f} s")
            return answer.status_code, bytes(found)

    def close(self) -> None:
        self._http.close()


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
            return decode_manifest(self._get(digest, path, MAX_MANIFEST_BYTES), digest)
        except LayerError as error:
            raise OriginError(f"zone {self.zone}: {error}") from error

    def chunk(self, tenant: str, digest: str, name: str) -> bytes:
        """The chunk as it is stored; whoever has the key unpacks and checks it."""
        try:
            return self._get(name, f"{_layer(tenant, digest)}/chunks/{check_name(name)}", MAX_STORED_BYTES)
        except LayerError as error:
            raise OriginError(f"zone {self.zone}: {error}") from error

    def close(self) -> None:
        self.use(())

    def _get(self, key: str, path: str, at_most: int) -> bytes:
        why: list[str] = []
        for replica_name, replica in self._in_order(key):
            if len(why) == TRIES:
                break
            if not replica.admits(time.monotonic()):
                continue
            try:
                return replica.ask("GET", path, at_most)
            except ReplicaAway as error:
                why.append(f"{replica_name}: {error}")
            except ReplicaRefused as error:
                raise OriginError(f"zone {self.zone}, {replica_name}: {error}") from error
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
        wanted = {check_name(name) for name in names} | {hex_of(digest)}
        away: dict[str, str] = {}
        missing, stalled, why = len(wanted) + 1, 0, ""
        while True:
            shares = self._shares(digest, wanted, away)
            if not shares:
                return "; ".join(f"{name}: {reason}" for name, reason in away.items()) or self._nobody()
            answers = self._step(tenant, digest, shares)
            for name, answer in answers.items():
                if isinstance(answer, str):
                    away[name] = answer
            left = [answer for answer in answers.values() if not isinstance(answer, str)]
            now_missing = sum(count for count, _ in left) + sum(len(shares[name]) for name in answers if name in away)
            why = next((reason for _, reason in left if reason), why)
            if not now_missing:
                return ""
            stalled = 0 if now_missing < missing else stalled + 1
            missing = now_missing
            if stalled >= STALLED_ROUNDS or stop() or time.monotonic() > deadline:
                return why or f"{missing} of {len(wanted)} objects missing after {within_s:.0f} s"

    def _shares(self, digest: str, wanted: Iterable[str], away: Mapping[str, str]) -> dict[str, list[str]]:
        known, shares = self._replicas, dict[str, list[str]]()
        now, layer = time.monotonic(), hex_of(digest)
        usable = {name: name not in away and replica.admits(now) for name, replica in known.items()}
        for one in wanted:
            order = ranked(digest if one == layer else one, known)
            first = next((name for name in order if usable[name]), None)
            if first is not None:
                shares.setdefault(first, [])
                if one != layer:  # who is asked to fill gets the manifest in any case
                    shares[first].append(one)
        return shares

    def _step(self, tenant: str, digest: str, shares: Mapping[str, Sequence[str]]) -> dict[str, tuple[int, str] | str]:
        """What each replica says: how many are missing and why, or why it does not say."""
        known = self._replicas

        def ask(name: str) -> tuple[int, str] | str:
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


def _layer(tenant: str, digest: str) -> str:
    return f"/v1/layers/{tenant}/{hex_of(digest)}"


def _check_peer(stream: Any) -> None:
    """Raises NotTrusted. What was asked is no secret among members, and what comes is checked by its name."""
    secured = stream.get_extra_info("ssl_object")
    if secured is not None:
        peer = certified(secured)
        if peer.role != ROLE:
            raise NotTrusted(f"a {peer.role[:63]} is no zone cache")
    elif peer_uid(stream.get_extra_info("socket")) != os.geteuid():
        raise NotTrusted("the zone cache's socket is another user's")
