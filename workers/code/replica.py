"""One zone cache as its callers see it: an HTTP client that knows whom it speaks to, and when to leave it alone."""

import os
import ssl
import threading
import time
from pathlib import Path
from typing import Any

import httpx

from workers.code.breaker import Breaker
from workers.rpc.transport import Address, Identity, NotTrusted, certified, peer_uid

ROLE = "zone-cache"
CONNECT_S = 1.0
READ_S = 3.0
"""Without a byte for so long, a replica stands still: the next one, and then the origin, are asked instead."""

WHOLE_S = 20.0
CONNECTIONS = 16
KEPT = 8
KEPT_S = 30.0


class ReplicaAway(Exception):
    """A replica did not answer, or not as one does."""


class ReplicaRefused(Exception):
    """A replica that works said no; another one would say the same."""


class Replica:
    """One zone cache. Thread-safe."""

    def __init__(self, address: Address, identity: Identity | None) -> None:
        if identity is None and not isinstance(address, Path):
            raise NotTrusted("this process has no certificate to show a zone cache of another host")
        self.breaker = Breaker()
        self._address = address
        self._identity = identity
        self._lock = threading.Lock()
        self._shown = identity.client if identity is not None else None
        self._http = self._made()
        self._before: httpx.Client | None = None

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
        with self._current().stream(method, path, content=body or None, timeout=timeout) as answer:
            _check_peer(answer.extensions["network_stream"])
            found = bytearray()
            for part in answer.iter_raw():
                found += part
                if len(found) > at_most:
                    raise ValueError(f"an answer of over {at_most} bytes")
                if time.monotonic() > deadline:
                    raise ValueError(f"not done within {WHOLE_S:.0f} s")
            return answer.status_code, bytes(found)

    def _made(self) -> httpx.Client:
        limits = httpx.Limits(max_connections=CONNECTIONS, max_keepalive_connections=KEPT, keepalive_expiry=KEPT_S)
        if isinstance(self._address, Path):
            unused = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # else all authorities of this host are read for a plain socket
            transport = httpx.HTTPTransport(unused, uds=str(self._address), limits=limits, trust_env=False)
            return httpx.Client(base_url="http://zone-cache", transport=transport, trust_env=False)
        assert self._shown is not None
        transport = httpx.HTTPTransport(verify=self._shown, limits=limits, trust_env=False)
        return httpx.Client(base_url=f"https://{self._address}", transport=transport, trust_env=False)

    def _current(self) -> httpx.Client:
        """A certificate that was renewed is shown on new connections; those before it get until the next renewal to end."""
        with self._lock:
            if self._identity is not None and self._identity.client is not self._shown:
                self._shown = self._identity.client
                if self._before is not None:
                    self._before.close()
                self._before, self._http = self._http, self._made()
            return self._http

    def close(self) -> None:
        with self._lock:
            for one in (self._http, self._before):
                if one is not None:
                    one.close()


def _check_peer(stream: Any) -> None:
    """Raises NotTrusted. What was asked is no secret among members, and what comes is checked by its name."""
    secured = stream.get_extra_info("ssl_object")
    if secured is not None:
        peer = certified(secured)
        if peer.role != ROLE:
            raise NotTrusted(f"a {peer.role[:63]} is no zone cache")
    elif peer_uid(stream.get_extra_info("socket")) != os.geteuid():
        raise NotTrusted("the zone cache's socket is another user's")
