"""A socket that a loop watches, without a transport in between: what is written leaves in the same turn, as far as the socket
takes it. For a small frame, what transports do besides takes longer than all the rest."""

import asyncio
import socket
import threading
from abc import ABC, abstractmethod

AT_ONCE = 256 << 10
"""Bytes that one turn of the loop reads of a socket, or offers to it of those that wait."""

_buffers = threading.local()


def shared(name: str, size: int = AT_ONCE) -> memoryview:
    """A buffer of this thread for what does not outlive a turn of its loop."""
    if not hasattr(_buffers, name):
        setattr(_buffers, name, memoryview(bytearray(size)))
    return getattr(_buffers, name)  # type: ignore[no-any-return]


class Duplex(ABC):
    """Owns the socket. Its heirs read (into `_into`), and say what happens when they are behind with writing, and at the end."""

    def __init__(self, sock: socket.socket, high: int, low: int) -> None:
        """From `high` bytes that wait it is behind, at `low` no more."""
        sock.setblocking(False)
        self._sock = sock
        self._fd = sock.fileno()
        self._loop = asyncio.get_running_loop()
        self._high, self._low = high, low
        self._into = shared("read")
        self._waiting = bytearray()
        self._behind = self._reading = self._closed = False

    @abstractmethod
    def _readable(self) -> None:
        """There is something to read, an end, or an error."""

    @abstractmethod
    def _on_behind(self, behind: bool) -> None:
        """It is behind now, or no more."""

    def _on_written(self) -> None:  # noqa: B027 - not all heirs need to know
        """What waited has been written."""

    @abstractmethod
    def _on_end(self, error: Exception | None) -> None:
        """The socket failed (or the peer ended it) and is closed. Called once, in a turn of its own; not after `_close`."""

    def _read(self, on: bool) -> None:
        if on != self._reading and not self._closed:
            self._reading = on
            if on:
                self._loop.add_reader(self._fd, self._readable)
            else:
                self._loop.remove_reader(self._fd)

    def _send(self, chunk: bytes) -> None:
        """At once, unless older bytes wait. Nothing happens on a closed one."""
        if self._closed:
            return
        sent = 0
        if not self._waiting:
            try:
                sent = self._sock.send(chunk)
            except (BlockingIOError, InterruptedError):
                pass
            except OSError as error:
                self._end(error)
                return
            if sent == len(chunk):
                return
            self._loop.add_writer(self._fd, self._writable)
        with memoryview(chunk) as view:
            self._waiting += view[sent:]
        if len(self._waiting) > self._high and not self._behind:
            self._behind = True
            self._on_behind(True)

    def _writable(self) -> None:
        try:
            with memoryview(self._waiting) as view, view[:AT_ONCE] as first:
                sent = self._sock.send(first)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._end(error)
            return
        del self._waiting[:sent]
        if not self._waiting:
            self._loop.remove_writer(self._fd)
        if self._behind and len(self._waiting) <= self._low:
            self._behind = False
            self._on_behind(False)
        if not self._waiting and not self._closed:
            self._on_written()

    def _end(self, error: Exception | None) -> None:
        if not self._closed:
            self._close()
            self._loop.call_soon(self._on_end, error)

    def _close(self) -> None:
        """Now; what waits is lost. Idempotent."""
        if not self._closed:
            self._closed, self._reading = True, False
            self._loop.remove_reader(self._fd)
            self._loop.remove_writer(self._fd)
            self._sock.close()
            self._waiting.clear()
