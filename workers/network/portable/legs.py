"""A TCP connection of this host's side, joined to whatever carries its bytes on: a stream of a link, or another leg."""

import asyncio
import contextlib
import socket
import struct
from typing import Protocol

from workers.network.portable.duplex import Duplex
from workers.network.portable.words import MAX_DATA

WRITE_HIGH = 32 << 10  # bytes beside the window that may wait in a leg's own buffer
LINGER_S = 30.0
"""Both sides have said their last: so long may the rest wait to be read."""

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Way(Protocol):
    """What carries a leg's bytes on."""

    def room(self) -> int:
        """How many bytes it takes now, twice MAX_DATA at most. 0: `Leg.go_on` will be called when that has changed."""

    def data(self, chunk: bytes) -> None:
        """No more than `room` said."""

    def taken(self, amount: int) -> None:
        """So many of the bytes written to the leg have gone on."""

    def eof(self) -> None:
        """The leg has nothing more to send."""

    def gone(self) -> None:
        """The leg is lost before both sides had ended. Called once, not after `Leg.reset`."""

    def closed(self) -> None:
        """The leg's connection is gone and holds no bytes any more. Called once, last."""


class Leg(Duplex):
    """Bounded by its way: it reads only what that has room for, and says what it has got rid of."""

    def __init__(self, sock: socket.socket) -> None:
        """Owns the socket. No more than one read is done before `join`."""
        super().__init__(sock, WRITE_HIGH, WRITE_HIGH // 4)
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.way: Way | None = None
        self._ended_in = self._ended_out = self._over = False
        self._untaken = 0
        self._early = b""
        self._linger: asyncio.TimerHandle | None = None
        self._read(True)

    # -- the socket

    def _readable(self) -> None:
        way = self.way
        room = way.room() if way is not None else 0 if self._early else MAX_DATA
        if not room:
            self._read(False)
            return
        try:
            amount = self._sock.recv_into(self._into, room)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._end(error)
            return
        if amount:
            chunk = bytes(self._into[:amount])
            if way is not None:
                way.data(chunk)
            else:
                self._early = chunk
        else:
            self._ended_in = True
            self._read(False)
            if way is not None:
                way.eof()
                self._perhaps_done()

    def _on_behind(self, behind: bool) -> None:
        if not behind and self.way is not None and self._untaken:
            amount, self._untaken = self._untaken, 0
            self.way.taken(amount)

    def _on_written(self) -> None:
        if self._ended_out:
            self._last()

    def _on_end(self, error: Exception | None) -> None:
        if self._linger is not None:
            self._linger.cancel()
        if not self._over:
            self._over = True
            if self.way is not None:
                self.way.gone()
        if self.way is not None:
            self.way.closed()

    # -- the way

    @property
    def over(self) -> bool:
        """Nothing comes or goes here any more."""
        return self._over

    def join(self, way: Way) -> None:
        """From now on its bytes go that way, which has room for one read."""
        self.way = way
        if self._early:
            way.data(self._early)
            self._early = b""
        if self._ended_in:
            way.eof()
        self.go_on()

    def go_on(self) -> None:
        """The way has room again."""
        if not (self._over or self._reading or self._ended_in or self.way is None) and self.way.room():
            self._read(True)

    def write(self, chunk: bytes) -> None:
        if self._over:
            return
        self._send(chunk)
        if self._behind or self.way is None:
            self._untaken += len(chunk)
        else:
            self.way.taken(len(chunk))

    def write_eof(self) -> None:
        self._ended_out = True
        if not self._over:
            if not self._waiting:
                self._last()
            self._perhaps_done()

    def _last(self) -> None:
        """All is written: the other end is told."""
        if self._over:
            self._end(None)
        elif not self._closed:
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_WR)

    def _perhaps_done(self) -> None:
        if self._ended_in and self._ended_out and not self._over:
            self._over = True
            if self._waiting:
                self._linger = self._loop.call_later(LINGER_S, self._cut)
            else:
                self._end(None)

    def reset(self) -> None:
        """The other end sees a reset. The way hears nothing of it."""
        self._over = True
        self._cut()

    def _cut(self) -> None:
        if not self._closed:
            with contextlib.suppress(OSError):
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            self._end(None)


class Direct:
    """One of two ways back to back: what a leg says goes into the other leg, without a link in between."""

    def __init__(self, other: Leg) -> None:
        self._other = other
        self.back: Direct | None = None
        self._under_way = 0  # written to the other leg and not yet out of it

    @staticmethod
    def join(one: Leg, two: Leg) -> None:
        first, second = Direct(two), Direct(one)
        first.back, second.back = second, first
        one.join(first)
        two.join(second)

    def room(self) -> int:
        return max(0, 2 * MAX_DATA - self._under_way)

    def data(self, chunk: bytes) -> None:
        self._under_way += len(chunk)
        self._other.write(chunk)

    def taken(self, amount: int) -> None:
        """This leg got rid of what the other one's way brought."""
        if self.back is not None:
            self.back.written(amount)

    def written(self, amount: int) -> None:
        before = self.room()
        self._under_way -= amount
        if not before and self.back is not None:
            self.back.go_on()

    def go_on(self) -> None:
        self._other.go_on()

    def eof(self) -> None:
        self._other.write_eof()

    def gone(self) -> None:
        self._other.reset()

    def closed(self) -> None:
        """Nothing is kept for it."""
