"""Network namespaces with one tap each, made ahead: what a guest's network card ends in.

A namespace has no name and no owner but two descriptors, so whatever ends the node also ends its namespaces: a dead
predecessor leaves none. In it are the tap and nothing else: no address, no route, no forwarding, loopback down. Whoever
attaches the guest to a private network works in `Tap.namespace`. A namespace serves one guest and is never used again.
"""

import asyncio
import contextlib
import fcntl
import os
import queue
import socket
import struct
import threading
from collections import deque
from dataclasses import dataclass
from typing import Self

import structlog

from workers.drivers import syscalls

GUEST_MAC = "52:54:00:00:00:01"
GUEST_ADDRESS, GUEST_PREFIX, GUEST_GATEWAY = "100.64.0.2", 30, "100.64.0.1"
"""The same in every guest, for its namespace is its own. Shared address space (RFC 6598): nobody's own network."""

TAP_NAME = "tap0"
AHEAD = 8  # namespaces waiting; a refill takes 1 to 5 ms each
TUN = "/dev/net/tun"
STOP_TIMEOUT_S = 10.0
NICENESS = 10  # of the thread that makes them, which holds the kernel's one lock of network settings while it does

_TUNSETIFF, _SIOCGIFFLAGS, _SIOCSIFFLAGS = 0x4004_54CA, 0x8913, 0x8914
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
_IFF_UP = 0x1
_SETTINGS = (  # (below /proc/sys/net, value): IPv4's are inherited from the host, which may well forward
    ("ipv6/conf/all/disable_ipv6", "1"),
    ("ipv6/conf/default/disable_ipv6", "1"),
    ("ipv4/ip_forward", "0"),
)

log = structlog.get_logger(__name__)


class NoTap(Exception):
    """A network namespace with a tap could not be made; the message names the step and what to do."""


@dataclass
class Tap:
    """`tap`: the descriptor QEMU takes; `namespace`: the network namespace it is in. Both close on exec."""

    tap: int
    namespace: int

    def handed_over(self) -> None:
        """QEMU has it: the tap goes when that ends."""
        if self.tap >= 0:
            os.close(self.tap)
            self.tap = -1

    def close(self) -> None:
        """Idempotent. Without another process in it the namespace is gone with this."""
        self.handed_over()
        if self.namespace >= 0:
            os.close(self.namespace)
            self.namespace = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def make_tap() -> Tap:
    """Moves the calling thread into a fresh network namespace, for good, and makes the tap in it. Raises NoTap."""
    step, namespace, tap = "network namespace", -1, -1
    try:
        syscalls.unshare(syscalls.NEWNET)
        namespace = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        for name, value in _SETTINGS:
            step = f"setting {name}"
            _set(name, value)
        step = f"tap by {TUN}"
        tap = os.open(TUN, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        request = struct.pack("16sH22x", TAP_NAME.encode(), _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR)
        fcntl.ioctl(tap, _TUNSETIFF, request)
        step = "tap up"
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            (flags,) = struct.unpack_from("H", fcntl.ioctl(sock, _SIOCGIFFLAGS, request), 16)
            fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sH22x", TAP_NAME.encode(), flags | _IFF_UP))
    except OSError as error:
        Tap(tap, namespace).close()
        raise NoTap(f"{step}: {error.strerror or error}") from error
    return Tap(tap, namespace)


def _set(name: str, value: str) -> None:
    try:
        with open(f"/proc/sys/net/{name}", "r+", encoding="ascii") as file:
            if file.read().strip() != value:
                file.seek(0)
                file.write(value)
    except FileNotFoundError:  # a kernel without IPv6
        if not name.startswith("ipv6"):
            raise


class TapPool:
    """Keeps `ahead` namespaces ready, refilled by a thread of its own. Use it on one event loop; bounded by `ahead` and by
    those who wait in `take`."""

    def __init__(self, ahead: int = AHEAD) -> None:
        self._ahead = ahead
        self._ready: deque[Tap] = deque()
        self._waiting: deque[asyncio.Future[Tap]] = deque()
        self._orders: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._ordered = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._maker: threading.Thread | None = None
        self._closed = False

    @property
    def ready(self) -> int:
        return len(self._ready)

    async def start(self, timeout_s: float = 10.0) -> None:
        """Makes the first, which tells whether it can be done here, and has the others made. Raises NoTap, TimeoutError."""
        self._loop = asyncio.get_running_loop()
        self._maker = threading.Thread(target=self._make, name="foreglow-taps", daemon=True)
        self._maker.start()
        try:
            self._put(await self._wait(timeout_s))
        except BaseException:
            await self.close()
            raise

    async def take(self, timeout_s: float = 5.0) -> Tap:
        """One that nobody has used, the caller's to close; waits when none is ready. Raises NoTap, TimeoutError."""
        if self._closed or self._maker is None:
            raise NoTap("the pool of network namespaces is closed")
        if self._ready:
            tap = self._ready.popleft()
            self._order()
            return tap
        return await self._wait(timeout_s)

    async def close(self) -> None:
        """Closes what is ready; what was taken is its taker's. Idempotent."""
        self._closed = True
        if self._maker is not None:
            self._orders.put(False)
            await asyncio.get_running_loop().run_in_executor(None, self._maker.join, STOP_TIMEOUT_S)  # else it ends with the node
            await asyncio.sleep(0)  # what it made last comes in, and is closed
            self._maker = None
        while self._ready:
            self._ready.popleft().close()
        while self._waiting:
            self._fail(self._waiting.popleft(), NoTap("the pool of network namespaces was closed"))

    async def _wait(self, timeout_s: float) -> Tap:
        future: asyncio.Future[Tap] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        self._order()
        try:
            return await asyncio.wait_for(asyncio.shield(future), timeout_s)
        except BaseException:
            if future.done() and not future.cancelled() and future.exception() is None:
                self._put(future.result())  # it came as its taker gave up
            raise
        finally:
            future.cancel()
            with contextlib.suppress(ValueError):
                self._waiting.remove(future)

    def _order(self) -> None:
        """As many as are missing of those that wait to be taken and of those somebody waits for."""
        while not self._closed and self._ordered < self._ahead + len(self._waiting) - len(self._ready):
            self._ordered += 1
            self._orders.put(True)

    def _make(self) -> None:
        """The thread: it lives in the namespace it made last, and asks nobody for the host's."""
        assert self._loop is not None
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        while self._orders.get():
            made: Tap | NoTap
            try:
                made = make_tap()
            except NoTap as error:
                made = error
            try:
                self._loop.call_soon_threadsafe(self._made, made)
            except RuntimeError:  # the loop has ended
                if isinstance(made, Tap):
                    made.close()
                return

    def _made(self, made: Tap | NoTap) -> None:
        self._ordered -= 1
        if isinstance(made, NoTap):
            log.warning("taps.not_made", error=str(made))  # tried again when the next one is taken
            if self._waiting:
                self._fail(self._waiting.popleft(), made)
            return
        self._put(made)

    def _put(self, tap: Tap) -> None:
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_result(tap)
                return
        if self._closed:
            tap.close()
        else:
            self._ready.append(tap)

    @staticmethod
    def _fail(future: "asyncio.Future[Tap]", error: NoTap) -> None:
        if not future.done():
            future.set_exception(error)
