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
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException, HTTPResponse
from pathlib import Path

from workers.code.breaker import Breaker
from workers.code.manifest import PARCEL_LENGTH_BYTES
from workers.rpc.transport import Address, Identity, NotTrusted, certified, peer_uid

ROLE = "zone-cache"
CONNECT_S = 1.0
READ_S = 3.0
"""Without a byte for so long, a replica stands still: the next one, and then the origin, are asked instead."""

WHOLE_S = 20.0
MAX_REFUSAL = 64 << 10
KEPT = 16
KEPT_S = 30.0
"""An idle connection is not used after this; the cache keeps it for longer, so that none ends under a question."""


class ReplicaAway(Exception):
    """A replica did not answer, or not as one does."""


class ReplicaRefused(Exception):
    """A replica that works said no; another one would say the same. `status`: HTTP's."""

    def __init__(self, why: str, status: int) -> None:
        super().__init__(why)
        self.status = status


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

    def exchange(self, method: str, path: str, body: bytes, read_s: float) -> HTTPResponse:
        """Asks on the connection that stands; the head of the answer."""
        self.sock.settimeout(read_s)
        self.request(method, path, body or None)
        return self.getresponse()

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

    def ask(self, method: str, path: str, at_most: int, body: bytes = b"", read_s: float | None = None) -> bytes:
        """The body of a good answer. Raises ReplicaAway, ReplicaRefused; the breaker has heard of it then."""
        with self._heard():
            status, answer = self._ask(method, path, at_most, body, READ_S if read_s is None else read_s)
        _check(status, answer)
        return answer

    def open(self, path: str, read_s: float | None = None) -> "Body":
        """A good answer to a GET, to be read as it comes. Raises as `ask` does."""
        with self._heard():
            connection = self._take()
            try:
                answer = self._begin(connection, "GET", path, b"", READ_S if read_s is None else read_s)
                refusal = _whole(answer, MAX_REFUSAL, time.monotonic() + WHOLE_S) if answer.status != 200 else b""
            except BaseException:
                connection.close()
                raise
        if answer.status != 200:
            self._give_back(connection, answer)
            _check(answer.status, refusal)
        return Body(self, connection, answer)

    def close(self) -> None:
        """What is being asked is finished."""
        with self._lock:
            self._closed = True
            while self._idle:
                self._idle.pop().close()

    @contextmanager
    def _heard(self) -> Iterator[None]:
        """The breaker hears how it went. Raises ReplicaAway for what may go wrong on the way."""
        try:
            yield
        except (HTTPException, NotTrusted, OSError, ValueError) as error:
            with self._lock:
                self._breaker.failed(time.monotonic())
            raise ReplicaAway(f"{type(error).__name__}: {error}") from error
        with self._lock:
            self._breaker.worked()

    def _ask(self, method: str, path: str, at_most: int, body: bytes, read_s: float) -> tuple[int, bytes]:
        deadline = time.monotonic() + WHOLE_S
        connection = self._take()
        try:
            answer = self._begin(connection, method, path, body, read_s)
            found = _whole(answer, at_most, deadline)
        except BaseException:
            connection.close()
            raise
        self._give_back(connection, answer)
        return answer.status, found

    def _begin(self, connection: _Connection, method: str, path: str, body: bytes, read_s: float) -> HTTPResponse:
        """The answer's head."""
        if connection.sock is not None:
            try:
                return connection.exchange(method, path, body, read_s)
            except (ConnectionError, HTTPException, ssl.SSLError):
                connection.close()  # it was ended while it was idle; whatever is asked may be asked twice
        connection.connect()
        return connection.exchange(method, path, body, read_s)

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

    def _give_back(self, connection: _Connection, answer: HTTPResponse) -> None:
        """Its answer was read to the end."""
        answer.close()
        connection.idle_since = time.monotonic()
        with self._lock:
            if connection.sock is not None and not answer.will_close and not self._closed and len(self._idle) < KEPT:
                self._idle.append(connection)
                return
        connection.close()


class Body:
    """An answer that comes part by part, each behind its length (see orchestrator.zone_cache.app). One thread at a time; `close`
    it in any case. Raises ReplicaAway; the breaker has heard of it then."""

    def __init__(self, replica: Replica, connection: _Connection, answer: HTTPResponse) -> None:
        self._replica = replica
        self._connection = connection
        self._answer = answer
        self._deadline = time.monotonic() + WHOLE_S
        self._closed = False

    def part(self, at_most: int) -> bytes | None:
        """The next one; None behind the last."""
        with self._replica._heard():
            length = bytearray(PARCEL_LENGTH_BYTES)
            if not _fill(self._answer, length, self._deadline, may_end=True):
                return None
            size = int.from_bytes(length, "big")
            if size > at_most:
                raise ValueError(f"a part of over {at_most} bytes")
            found = bytearray(size)
            _fill(self._answer, found, self._deadline)
            return bytes(found)

    def close(self) -> None:
        """The connection is kept when nothing more is to come on it."""
        if self._closed:
            return
        self._closed = True
        if self._answer.isclosed():
            self._replica._give_back(self._connection, self._answer)
        else:
            self._answer.close()
            self._connection.close()


def _check(status: int, answer: bytes) -> None:
    """Raises ReplicaAway, ReplicaRefused."""
    if status == 200:
        return
    why = answer[:300].decode(errors="replace").strip() or f"status {status}"
    if status >= 500:
        raise ReplicaAway(why)  # it lives, and cannot help: the origin is away from there, or it has too much to do
    raise ReplicaRefused(why, status)


def _whole(answer: HTTPResponse, at_most: int, deadline: float) -> bytes:
    size = answer.length
    if size is None or size > at_most:
        raise ValueError(f"an answer of over {at_most} bytes, or without a length")
    found = bytearray(size)
    _fill(answer, found, deadline)
    return bytes(found)


def _fill(answer: HTTPResponse, room: bytearray, deadline: float, may_end: bool = False) -> bool:
    """Reads until `room` is full. False: `may_end`, and nothing more comes. Raises ValueError, and what reading raises."""
    left = memoryview(room)
    while left:
        count = answer.readinto(left)
        if not count:
            if may_end and len(left) == len(room):
                return False
            raise ValueError(f"an answer that ends {len(left)} bytes early")
        left = left[count:]
        if time.monotonic() > deadline:
            raise ValueError(f"not done within {WHOLE_S:.0f} s")
    return True
