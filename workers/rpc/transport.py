"""Where a process is reached, and how each side knows the other: a unix socket on one host, mutual TLS between hosts.

On a unix socket both sides check that the other runs as the same user; over TCP both show a certificate of the cluster's
authority, whose one name is `foreglow://ROLE/NAME`. The frames are the same bytes on both.
"""

import asyncio
import contextlib
import os
import socket
import ssl
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

HANDSHAKE_TIMEOUT_S = 5.0
USER_TIMEOUT_MS = 2000  # what was sent and is not acknowledged by then: the host is gone
KEEPALIVE = ((socket.TCP_KEEPIDLE, 1), (socket.TCP_KEEPINTVL, 1), (socket.TCP_KEEPCNT, 2))
BACKLOG = 128
SCHEME = "foreglow://"
LOCAL = "@"
"""In the names of what runs beside control, and in no member's: they are in no table, the authority's own folder made them."""


class HostPort(msgspec.Struct, frozen=True):
    """A TCP address. It reads as it is written: `host:port`, `[v6]:port`."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


Address = Path | HostPort
Make = Callable[[], asyncio.Protocol]


class Peer(msgspec.Struct, frozen=True):
    """Who a process is. `fingerprint`: SHA-256 of its certificate, hex; empty on a unix socket, or where any will do. `before`:
    of the one that this one renews, which counts until the member has shown the new one; empty when there is none."""

    role: str
    name: str
    fingerprint: str = ""
    before: str = ""

    def counts(self, fingerprint: str) -> bool:
        """Whether who shows this certificate may be it."""
        return not self.fingerprint or (fingerprint != "" and fingerprint in (self.fingerprint, self.before))


class NotTrusted(Exception):
    """The other side is not who may be there."""


def parse_address(text: str) -> Address:
    """A path (it has a slash) or `host:port`. Raises ValueError."""
    text = text.strip()
    if "/" in text:
        return Path(text)
    host, _, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        host = ""
    if not host or not (port.isascii() and port.isdigit()) or not 0 <= int(port) <= 65535:
        raise ValueError(f"{text[:80]!r} is no address: give host:port, [v6]:port, or the path of a socket")
    return HostPort(host, int(port))


def label(address: Address) -> str:
    """How messages name it: a socket by its file's name."""
    return address.name if isinstance(address, Path) else str(address)


class Identity:
    """This process in the cluster: its certificate, its key, and the authority it trusts. Raises OSError (ssl.SSLError) and
    ValueError when the files do not hold them."""

    def __init__(self, key: Path, certificate: Path, authority: Path) -> None:
        self._files = key, certificate, authority
        self.certificate = ssl.PEM_cert_to_DER_cert(certificate.read_text())
        self.server = _context(ssl.PROTOCOL_TLS_SERVER, key, certificate, authority)
        self.client = _context(ssl.PROTOCOL_TLS_CLIENT, key, certificate, authority)

    def reload(self) -> None:
        """The certificate was renewed, for the same key: connections show it from now on, those that stand are left alone. Must
        run in the thread that serves with this identity, between two handshakes. Raises as the constructor does."""
        key, certificate, authority = self._files
        fresh = ssl.PEM_cert_to_DER_cert(certificate.read_text())
        client = _context(ssl.PROTOCOL_TLS_CLIENT, key, certificate, authority)
        self.server.load_cert_chain(certificate, key)  # listeners hold this very context
        self.client, self.certificate = client, fresh


def _context(protocol: int, key: Path, certificate: Path, authority: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # certificates name processes, not hosts: `certified` looks at that
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(authority)
    context.load_cert_chain(certificate, key)
    if protocol == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0  # a resumed session would not show its certificate again
    return context


def certified(secured: Any) -> Peer:
    """Whom the verified certificate at the other end of an ssl object names. Raises NotTrusted."""
    from hashlib import sha256

    whole, shown = secured.getpeercert(True), secured.getpeercert()
    if not whole or not shown:
        raise NotTrusted("the peer showed no certificate")
    names = [value for kind, value in shown.get("subjectAltName", ()) if kind == "URI" and value.startswith(SCHEME)]
    role, _, name = names[0].removeprefix(SCHEME).partition("/") if len(names) == 1 else ("", "", "")
    if not role or not name:
        raise NotTrusted("the peer's certificate names no process of a cluster")
    return Peer(role, name, sha256(whole).hexdigest())


def prepare(transport: asyncio.Transport) -> Peer | None:
    """At the start of a connection: who the certificate says is there, None on a unix socket of this user's.
    Raises NotTrusted."""
    secured = transport.get_extra_info("ssl_object")
    sock = transport.get_extra_info("socket")
    if secured is None:
        if sock.family != socket.AF_UNIX:
            raise NotTrusted("the peer speaks without TLS")
        if peer_uid(sock) != os.geteuid():
            raise NotTrusted("the peer runs as another user")
        return None
    tune(sock)
    return certified(secured)


def tune(sock: Any) -> None:
    """A connection between hosts: nothing waits for more to send, and a host that is gone is noticed."""
    with contextlib.suppress(OSError):  # gone already: that is noticed elsewhere
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in KEEPALIVE:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)


def peer_uid(sock: socket.socket) -> int:
    """The uid of the process at the other end of a unix socket (SO_PEERCRED)."""
    _, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return int(uid)


async def connect(make: Make, address: Address, identity: Identity | None) -> None:
    """Raises OSError; NotTrusted when this process has no certificate to show on TCP."""
    loop = asyncio.get_running_loop()
    if isinstance(address, Path):
        await loop.create_unix_connection(make, str(address))
        return
    if identity is None:
        raise NotTrusted("this process has not joined a cluster: it has no certificate")
    await loop.create_connection(make, address.host, address.port, ssl=identity.client, ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S)


async def serve(make: Make, address: Address, identity: Identity | None) -> asyncio.AbstractServer:
    """Listens. A unix socket is 0600 and replaces a stale one. Raises OSError, NotTrusted as `connect` does."""
    loop = asyncio.get_running_loop()
    if isinstance(address, Path):
        return await loop.create_unix_server(make, sock=_bound(address))
    if identity is None:
        raise NotTrusted("this process has not joined a cluster: it has no certificate")
    return await loop.create_server(
        make,
        address.host,
        address.port,
        ssl=identity.server,
        ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S,
        reuse_address=True,
        backlog=BACKLOG,
    )


def _bound(path: Path) -> socket.socket:
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    previous = os.umask(0o177)
    try:
        sock.bind(str(path))
    except OSError:
        sock.close()
        raise
    finally:
        os.umask(previous)
    return sock
