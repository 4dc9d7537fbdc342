"""A TCP connection of this host's side, joined to whatever carries its bytes on: a stream of a link, or another leg."""

import asyncio
import contextlib
import socket
import struct
from typing import Protocol, cast

from workers.network.portable.words import MAX_DATA

WRITE_HIGH = 32 << 10  # bytes beside the window that may wait in a leg's own buffer
LINGER_S = 30.0
"""Both sides have said their last: so long may the rest wait to be read."""

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_buffer = bytearray(MAX_DATA)  # of this thread's loop: a read is copied out of it before the next one begins
_view = memoryview(_buffer)


class Way(Protocol):
    """What carries a leg's bytes on."""

    def room(self) -> int:
        """How many bytes it takes now. 0: `Leg.go_on` will be called when that has changed."""

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


class Leg(asyncio.BufferedProtocol):
    """Bounded by its way: it reads only what that has room for, and says what it has got rid of."""

    def __init__(self) -> None:
        self.way: Way | None = None
        self._transport: asyncio.Transport | None = None
        self._ended_in = self._ended_out = self._over = False
        self._reading = True
        self._writable = True
        self._untaken = 0
        self._early = b""
        self._linger: asyncio.TimerHandle | None = None

    # -- the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are none by inheritance
        self._transport.set_write_buffer_limits(high=WRITE_HIGH)
        sock = transport.get_extra_info("socket")
        with contextlib.suppress(OSError):  # asyncio sets it only for sockets that name their protocol
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.opened(self._transport)

    def opened(self, transport: asyncio.Transport) -> None:
        """For whoever accepts: called once; no more than one read is done before `join`."""

    def get_buffer(self, sizehint: int) -> memoryview:
        return _view if self.way is None else _view[: max(1, min(self.way.room(), MAX_DATA))]

    def buffer_updated(self, nbytes: int) -> None:
        way = self.way
        if self._over:
            return
        if way is None:  # loops begin to read whatever connection_made says: the first bytes wait here
            self._early = bytes(_view[:nbytes])
            self._pause()
            return
        way.data(bytes(_view[:nbytes]))
        if self._reading and not way.room():
            self._pause()

    def eof_received(self) -> bool:
        self._ended_in = True
        if self.way is not None and not self._over:
            self.way.eof()
            self._perhaps_done()
        return True

    def pause_writing(self) -> None:
        self._writable = False

    def resume_writing(self) -> None:
        self._writable = True
        if self.way is not None and self._untaken:
            amount, self._untaken = self._untaken, 0
            self.way.taken(amount)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
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
        if self._over or self._reading or self.way is None or not self.way.room():
            return
        self._reading = True
        if self._transport is not None and not self._ended_in:
            with contextlib.suppress(RuntimeError):  # it is closing
                self._transport.resume_reading()

    def _pause(self) -> None:
        self._reading = False
        if self._transport is not None and not self._ended_in:
            with contextlib.suppress(RuntimeError):
                self._transport.pause_reading()

    def write(self, chunk: bytes) -> None:
        if self._transport is None or self._over:
            return
        self._transport.write(chunk)
        if self._writable and self.way is not None:
            self.way.taken(len(chunk))
        else:
            self._untaken += len(chunk)

    def write_eof(self) -> None:
        self._ended_out = True
        if self._transport is not None and not self._over:
            with contextlib.suppress(RuntimeError, OSError):
                self._transport.write_eof()
            self._perhaps_done()

    def _perhaps_done(self) -> None:
        if self._ended_in and self._ended_out and not self._over:
            self._over = True
            if self._transport is not None:
                self._transport.close()  # once what waits is written
                self._linger = asyncio.get_running_loop().call_later(LINGER_S, self._cut)

    def reset(self) -> None:
        """The other end sees a reset. The way hears nothing of it."""
        self._over = True
        self._cut()

    def _cut(self) -> None:
        if self._transport is None:
            return
        sock = self._transport.get_extra_info("socket")
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self._transport.abort()


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
