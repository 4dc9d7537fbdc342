"""How a link's connection begins: dialled or taken, each side's certificate looked at, then handed to its reader."""

import asyncio
import contextlib
import errno
import functools
import socket
import ssl
from collections.abc import Callable

import structlog

from workers.network.portable.accepting import Accepting
from workers.network.portable.secured import Reader, Records, Secured
from workers.rpc.transport import BACKLOG, HANDSHAKE_TIMEOUT_S, HostPort, Identity, NotTrusted, certified, tune

UNDER_WAY = 256
"""Handshakes of one listener: for one more, that which has taken longest is given up."""

CONGESTED = 256 << 10
"""Bytes that wait for the peer, from which on its reader is paused; at a quarter of it it goes on."""

_READ = 16 << 10

log = structlog.get_logger(__name__)

Make = Callable[[], Reader]


async def connect(make: Make, address: HostPort, identity: Identity | None) -> None:
    """Raises OSError (TimeoutError, ssl.SSLError); NotTrusted when this process has no certificate to show, or the peer's
    names no process of a cluster."""
    if identity is None:
        raise NotTrusted("this process has not joined a cluster: it has no certificate")
    sock = await _dialled(address)
    await _begin(sock, Records(identity.client, server_side=False), make)


async def _dialled(address: HostPort) -> socket.socket:
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    failed: OSError = OSError(f"{address} has no address")
    for family, kind, protocol, _, place in found:
        sock = socket.socket(family, kind, protocol)
        sock.setblocking(False)
        try:
            await loop.sock_connect(sock, place)
        except OSError as error:
            failed = error
            sock.close()
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise failed


async def _begin(sock: socket.socket, records: Records, make: Make) -> None:
    """Owns the socket."""
    try:
        tune(sock)
        async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
            await _shake(sock, records)
        peer = certified(records.tls)
    except TimeoutError:
        sock.close()
        raise TimeoutError(f"no TLS handshake within {HANDSHAKE_TIMEOUT_S:g} s") from None
    except BaseException:
        sock.close()
        raise
    Secured(sock, records, peer, make(), CONGESTED, CONGESTED // 4).begin()


async def _shake(sock: socket.socket, records: Records) -> None:
    loop = asyncio.get_running_loop()
    while True:
        try:
            records.tls.do_handshake()
            done = True
        except ssl.SSLWantReadError:
            done = False
        except ssl.SSLError:
            with contextlib.suppress(OSError):  # the peer is to know why; if it can still hear
                await loop.sock_sendall(sock, records.going.read())
            raise
        if records.going.pending:
            await loop.sock_sendall(sock, records.going.read())
        if done:
            return
        came = await loop.sock_recv(sock, _READ)
        if not came:
            raise ConnectionResetError(errno.ECONNRESET, "the peer closed the connection during the TLS handshake")
        records.came.write(came)


class Listener:
    """Takes connections until `close`."""

    def __init__(self, sock: socket.socket, make: Make, identity: Identity) -> None:
        self.sockets = (sock,)
        self._make = make
        self._identity = identity
        self._shaking: dict[asyncio.Task[None], None] = {}  # oldest first
        self._accepting = Accepting(sock, self._take)

    def _take(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        while len(self._shaking) >= UNDER_WAY:
            oldest = next(iter(self._shaking))
            del self._shaking[oldest]
            oldest.cancel()
        task = asyncio.get_running_loop().create_task(self._shake(sock))
        self._shaking[task] = None
        task.add_done_callback(functools.partial(self._shaken, sock))

    async def _shake(self, sock: socket.socket) -> None:
        try:
            await _begin(sock, Records(self._identity.server, server_side=True), self._make)
        except (OSError, NotTrusted) as error:
            log.debug("link.refused", error=str(error))

    def _shaken(self, sock: socket.socket, task: asyncio.Task[None]) -> None:
        self._shaking.pop(task, None)
        if task.cancelled():
            sock.close()  # it may not have begun

    def close(self) -> None:
        """Nothing is taken any more, handshakes under way are given up; connections stand. Idempotent."""
        (sock,) = self.sockets
        if sock.fileno() >= 0:
            self._accepting.stop()
            sock.close()
        for task in self._shaking:
            task.cancel()


def serve(make: Make, address: HostPort, identity: Identity | None) -> Listener:
    """At the first address that the host's name means. Raises OSError, NotTrusted as `connect` does."""
    if identity is None:
        raise NotTrusted("this process has not joined a cluster: it has no certificate")
    family, _, _, _, place = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    sock = socket.create_server(place[:2], family=family, backlog=BACKLOG)
    sock.setblocking(False)
    return Listener(sock, make, identity)
