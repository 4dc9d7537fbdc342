"""One zone cache as its callers see it: kept connections to it, and when to leave it alone.

http.client, and not the HTTP library used elsewhere: a chunk is read into one buffer, at a third of the CPU, and a node need not
load the rest.
"""

import os
import socket
import ssl
import threading
import time
from collections import deque
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from workers.code.breaker import Breaker
from workers.rpc.transport import Address, Identity, NotTrusted, certified, peer_uid

ROLE = "zone-cache"
CONNECT_S = 1.0
READ_S = 3.0
"""Without a byte for so long, a replica stands still: the next one, and then the origin, are asked instead."""

WHOLE_S = 20.0
KEPT = 16
KEPT_S = 30.0
"""An idle connection is not used after this; the cache keeps it for longer, so that none ends under a question."""


class ReplicaAway(Exception):
    """A replica did not answer, or not as one does."""


class ReplicaRefused(Exception):
    """A replica that works said no; another one would say the same."""


class _Connection(HTTPConnection):
    """Opens itself when it is first asked, and only to who may be there. Raises NotTrusted, OSError."""

    def __init__(self, address: Address, context: ssl.SSLContext | None) -> None:
        super().__init__(ROLE)
        self.context = context
        self.idle_since = 0.0
        self._address = address

    def connect(self) -> None:
        sock = self._socket()
        try:
            if isinstance(sock, ssl.SSLSocket):
                role = certified(sock).role
                if role != ROLE:
                    raise NotTrusted(f"a {role[:63]} is no zone cache")
            elif peer_uid(sock) != os.geteuid():
                raise NotTrusted("the zone cache's socket is another user's")
        except BaseException:
            sock.close()
            raise
        self.sock = sock

    def _socket(self) -> socket.socket:
        if not isinstance(self._address, Path):
            assert self.context is not None
            plain = socket.create_connection((self._address.host, self._address.port), CONNECT_S)
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return self.context.wrap_socket(plain)  # which closes it when it fails
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.settimeout(CONNECT_S)
            sock.connect(str(self._address))
        except BaseException:
            sock.close()
            raise
        return sock


class Replica:
    """One zone cache. Thread-safe."""

    def __init__(self, address: Address, identity: Identity | None) -> None:
        if identity is None and not isinstance(address, Path):
            raise NotTrusted("this process has no certificate to show a zone cache of another host")
        self._breaker = Breaker()
        self._address = address
        self._identity = identity
        self._lock = threading.Lock()
        self._idle: deque[_Connection] = deque()
        self._closed = False

    def admits(self, now: float) -> bool:
        """Whether to ask it now."""
        with self._lock:
            return self._breaker.admits(now)

    def ask(self, method: str, path: str, at_most: int, body: bytes = b"", read_s: float = READ_S) -> bytes:
        """The body of a good answer. Raises ReplicaAway, ReplicaRefused; the breaker has heard of it then."""
        try:
            status, answer = self._ask(method, path, at_most, body, read_s)
        except (HTTPException, NotTrusted, OSError, ValueError) as error:
            with self._lock:
                self._breaker.failed(time.monotonic())
            raise ReplicaAway(f"{type(error).__name__}: {error}") from error
        with self._lock:
            self._breaker.worked()
        if status == 200:
            return answer
        why = answer[:300].decode(errors="replace").strip() or f"status {status}"
        if status >= 500:
            raise ReplicaAway(why)  # it lives, and cannot help: the origin is away from there, or it has too much to do
        raise ReplicaRefused(why)

    def close(self) -> None:
        """What is being asked is finished."""
        with self._lock:
            self._closed = True
            while self._idle:
                self._idle.pop().close()

    def _ask(self, method: str, path: str, at_most: int, body: bytes, read_s: float) -> tuple[int, bytes]:
        deadline = time.monotonic() + WHOLE_S
        connection = self._take()
        kept = connection.sock is not None
        try:
            try:
                return self._exchange(connection, method, path, at_most, body, read_s, deadline)
            except (ConnectionError, HTTPException, ssl.SSLError):
                if not kept:
                    raise
            connection.close()  # it was ended while it was idle; whatever is asked may be asked twice
            return self._exchange(connection, method, path, at_most, body, read_s, deadline)
        except BaseException:
            connection.close()
            raise
        finally:
            self._give_back(connection)

    def _exchange(
        self, connection: _Connection, method: str, path: str, at_most: int, body: bytes, read_s: float, deadline: float
    ) -> tuple[int, bytes]:
        if connection.sock is None:
            connection.connect()
        connection.sock.settimeout(read_s)
        connection.request(method, path, body or None)
        answer = connection.getresponse()
        size = answer.length
        if size is None or size > at_most:
            raise ValueError(f"an answer of over {at_most} bytes, or without a length")
        found = bytearray(size)
        left = memoryview(found)
        while left:
            count = answer.readinto(left)
            if not count:
                raise ValueError(f"an answer that ends {len(left)} bytes early")
            left = left[count:]
            if time.monotonic() > deadline:
                raise ValueError(f"not done within {WHOLE_S:.0f} s")
        answer.close()
        if answer.will_close:
            connection.close()
        return answer.status, bytes(found)

    def _take(self) -> _Connection:
        """An idle connection that shows the certificate of now, or a new one."""
        context = self._identity.client if self._identity is not None else None
        now = time.monotonic()
        with self._lock:
            while self._idle:
                kept = self._idle.pop()
                if kept.context is context and now - kept.idle_since < KEPT_S:
                    return kept
                kept.close()
        return _Connection(self._address, context)

    def _give_back(self, connection: _Connection) -> None:
        connection.idle_since = time.monotonic()
        with self._lock:
            if connection.sock is not None and not self._closed and len(self._idle) < KEPT:
                self._idle.append(connection)
                return
        connection.close()
