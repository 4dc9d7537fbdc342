"""Connections and datagrams that leave this host for a function: out of a proxy, or out of the node where there is no Vpc."""

import asyncio
import contextlib
import errno
import socket
from collections.abc import Callable
from ipaddress import IPv4Network, ip_address
from pathlib import Path

from workers.network.portable.words import MAX_DATA, Open, Reason
from workers.networks import VpcSpec

CONNECT_TIMEOUT_S = 10.0
FLOW_IDLE_S, QUESTION_IDLE_S = 30.0, 6.0
DATAGRAMS_AT_ONCE = 32
KEEPALIVE = ((socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 6))
UNSENT_TIMEOUT_MS = 60_000
DISCARD = 9  # RFC 863
RESOLV_CONF = Path("/etc/resolv.conf")
_IP_BIND_ADDRESS_NO_PORT = 24


class NoWay(Exception):
    """`reason` as the link says it."""

    def __init__(self, code: str, text: str = "") -> None:
        super().__init__(text or code)
        self.reason = Reason(code, text)


async def dial(address: str, port: int, source: str = "") -> socket.socket:
    """Connected, from `source` when this host has that address. Raises NoWay."""
    loop = asyncio.get_running_loop()
    sock = _socket(socket.SOCK_STREAM, source)
    try:
        for option, value in (*KEEPALIVE, (socket.TCP_USER_TIMEOUT, UNSENT_TIMEOUT_MS)):
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            await loop.sock_connect(sock, (address, port))
        return sock
    except TimeoutError as error:
        sock.close()
        raise NoWay("timeout", f"{address}:{port} does not answer") from error
    except ConnectionRefusedError as error:
        sock.close()
        raise NoWay("refused", f"{address}:{port} refuses") from error
    except OSError as error:
        sock.close()
        raise NoWay("unreachable", f"{address}:{port}: {error}") from error
    except BaseException:
        sock.close()
        raise


def _socket(kind: int, source: str) -> socket.socket:
    """Raises NoWay."""
    try:
        sock = socket.socket(socket.AF_INET, kind | socket.SOCK_NONBLOCK)
    except OSError as error:
        raise NoWay("limit", str(error)) from error
    if source:
        try:
            sock.setsockopt(socket.SOL_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
            sock.bind((source, 0))
        except OSError as error:
            if error.errno != errno.EADDRNOTAVAIL:  # it is elsewhere: this one leaves with its own
                sock.close()
                raise NoWay("unreachable", f"cannot leave as {source}: {error}") from error
    return sock


def source_of(spec: VpcSpec) -> str:
    """The address with which functions leave this host into the Vpc: its fixed one where this host has that, else the host's own
    on the way there; empty: there is none. Nothing is sent."""
    if spec.address and has(spec.address):
        return spec.address
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for cidr in spec.cidrs:
            with contextlib.suppress(OSError, ValueError):
                probe.connect((str(next(iter(IPv4Network(cidr).hosts()))), DISCARD))
                return str(probe.getsockname()[0])
    return ""


def has(address: str) -> bool:
    """This host has the address now."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


def system_resolver() -> str:
    """The first IPv4 name server of this host. Raises NoWay."""
    with contextlib.suppress(OSError):
        for line in RESOLV_CONF.read_text(encoding="utf-8", errors="replace").splitlines():
            words = line.split()
            if len(words) >= 2 and words[0] == "nameserver":
                with contextlib.suppress(ValueError):
                    if ip_address(words[1]).version == 4:
                        return words[1]
    raise NoWay("unreachable", f"{RESOLV_CONF} names no IPv4 name server")


def idle_of(to: Open) -> float:
    """How long a flow there is kept without a datagram: a question for a name is asked again after a few seconds, from anew."""
    return QUESTION_IDLE_S if to.address == "" else FLOW_IDLE_S


class Datagrams:
    """A flow's own socket, connected to where it goes. It ends by `close`, or when nothing has come or gone for a while."""

    def __init__(self, on_datagram: Callable[[bytes], None], on_idle: Callable[[], None], idle_s: float = FLOW_IDLE_S) -> None:
        self._on_datagram = on_datagram
        self._on_idle = on_idle
        self._idle_s = idle_s
        self._loop = asyncio.get_running_loop()
        self._used = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self._sock: socket.socket | None = None

    def open(self, address: str, port: int, source: str = "") -> None:
        """Raises NoWay."""
        sock = _socket(socket.SOCK_DGRAM, source)
        try:
            sock.connect((address, port))
        except OSError as error:
            sock.close()
            raise NoWay("unreachable", f"{address}:{port}: {error}") from error
        self._sock = sock
        self._loop.add_reader(sock.fileno(), self._readable)
        self._timer = self._loop.call_later(self._idle_s, self._look)

    def send(self, payload: bytes) -> None:
        """Dropped when it cannot go now."""
        self._used = self._loop.time()
        if self._sock is not None:
            with contextlib.suppress(OSError):
                self._sock.send(payload)

    def _readable(self) -> None:
        self._used = self._loop.time()
        for _ in range(DATAGRAMS_AT_ONCE):
            if self._sock is None:
                return
            try:
                payload = self._sock.recv(MAX_DATA)
            except BlockingIOError:
                return
            except OSError:  # refused there: lost, as datagrams may be
                continue
            self._on_datagram(payload)

    def close(self) -> None:
        """Idempotent."""
        sock, self._sock = self._sock, None
        if self._timer is not None:
            self._timer.cancel()
        if sock is not None:
            self._loop.remove_reader(sock.fileno())
            sock.close()

    def _look(self) -> None:
        left = self._used + self._idle_s - self._loop.time()
        if left > 0:
            self._timer = self._loop.call_later(left, self._look)
        elif self._sock is not None:
            self.close()
            self._on_idle()
