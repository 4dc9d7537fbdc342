"""Takes connections from a listening socket as the loop comes by."""

import asyncio
import socket
from collections.abc import Callable

import structlog

AT_ONCE = 32
"""Connections of one turn of the loop."""

BREATH_S = 1.0
"""No descriptors are left: so long is nothing taken."""

log = structlog.get_logger(__name__)


class Accepting:
    """The listening socket stays its maker's, and is non-blocking."""

    def __init__(self, sock: socket.socket, take: Callable[[socket.socket], None]) -> None:
        self._sock = sock
        self._fd = sock.fileno()
        self._take = take
        self._loop = asyncio.get_running_loop()
        self._breath: asyncio.TimerHandle | None = None
        self._begin()

    def _begin(self) -> None:
        self._loop.add_reader(self._fd, self._acceptable)

    def _acceptable(self) -> None:
        for _ in range(AT_ONCE):
            try:
                taken, _ = self._sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                log.warning("accepting.failed", error=str(error))
                self._loop.remove_reader(self._fd)
                self._breath = self._loop.call_later(BREATH_S, self._begin)
                return
            self._take(taken)

    def stop(self) -> None:
        """To be called before the socket is closed. Idempotent."""
        self._loop.remove_reader(self._fd)
        if self._breath is not None:
            self._breath.cancel()
