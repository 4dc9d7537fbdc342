"""What comes out of a sandbox and what goes in: its channel and its output pipes. Nothing a guest does can make the node
hold more than a bounded amount of bytes, or listen to one sandbox at the cost of the others."""

import asyncio
import contextlib
import os
import socket
from collections import deque
from collections.abc import Callable

from workers.framing import Frame, FrameParser, encode

READ_SIZE = 64 << 10
CLOSED = "the sandbox closed its channel"
MAX_QUEUED = 64 << 20  # bytes for a guest that does not read
FRAMES_PER_S, FRAMES_BURST = 10_000.0, 20_000.0
BYTES_PER_S, BYTES_BURST = float(64 << 20), float(64 << 20)
OUTPUT_PER_S, OUTPUT_BURST = float(1 << 20), float(4 << 20)


class Allowance:
    """A token bucket: `rate` tokens a second, at most `burst` saved. It may go into debt, which is waited off."""

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate, self._burst, self._left, self._at = rate, burst, burst, now

    def take(self, now: float, amount: float) -> float:
        """Seconds to pause before the next take; 0 when there is something left."""
        self._left = min(self._burst, self._left + (now - self._at) * self._rate) - amount
        self._at = now
        return 0.0 if self._left >= 0 else -self._left / self._rate


class Wire:
    """The node's end of a channel. `on_lost(why)` is called at most once; the owner then closes."""

    def __init__(
        self,
        sock: socket.socket,
        on_frame: Callable[[Frame], None],
        on_lost: Callable[[str], None],
        bytes_per_s: float = BYTES_PER_S,
        burst: float = BYTES_BURST,
    ) -> None:
        self._sock = sock
        self._on_frame = on_frame
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._parser = FrameParser()
        self._queue: deque[memoryview] = deque()
        self._queued = 0
        self._frames = Allowance(FRAMES_PER_S, FRAMES_BURST, self._loop.time())
        self._bytes = Allowance(bytes_per_s, burst, self._loop.time())
        self._pause: asyncio.TimerHandle | None = None
        self._broken = False
        self._closed = False
        sock.setblocking(False)
        self._loop.add_reader(sock.fileno(), self._readable)

    def send(self, kind: int, ident: int, meta: bytes = b"", body: bytes = b"") -> None:
        """Queues one frame; never blocks."""
        if self._closed or self._broken:
            return
        frame = encode(kind, ident, meta, body)
        sent = 0
        if not self._queue:
            try:
                sent = self._sock.send(frame)
            except BlockingIOError:
                sent = 0
            except OSError:
                return  # it is ending; its pidfd says so
        if sent < len(frame):
            self._enqueue(frame[sent:])

    def send_with(self, kind: int, meta: bytes, descriptors: list[int]) -> None:
        """A frame with descriptors, which leave with its first byte. For the first frame only. Raises OSError."""
        frame = encode(kind, 0, meta)
        sent = socket.send_fds(self._sock, [frame], descriptors)
        if sent < len(frame):
            self._enqueue(frame[sent:])

    def _enqueue(self, rest: bytes) -> None:
        if self._queued + len(rest) > MAX_QUEUED:
            self._lose(f"the guest does not read: more than {MAX_QUEUED >> 20} MB wait for it")
            return
        if not self._queue:
            self._loop.add_writer(self._sock.fileno(), self._writable)
        self._queue.append(memoryview(rest))
        self._queued += len(rest)

    def _writable(self) -> None:
        try:
            while self._queue:
                sent = self._sock.send(self._queue[0])
                self._queued -= sent
                if sent < len(self._queue[0]):
                    self._queue[0] = self._queue[0][sent:]
                    return
                self._queue.popleft()
        except BlockingIOError:
            return
        except OSError:
            self._queue.clear()
            self._queued = 0
        self._loop.remove_writer(self._sock.fileno())

    def _readable(self) -> None:
        try:
            chunk = self._sock.recv(READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            chunk = b""
        if not chunk:
            self._lose(CLOSED)
            return
        count = self._parse(chunk)
        now = self._loop.time()
        pause = max(self._frames.take(now, count), self._bytes.take(now, len(chunk)))
        if pause > 0 and not self._closed and not self._broken:
            self._loop.remove_reader(self._sock.fileno())
            self._pause = self._loop.call_later(pause, self._resume)

    def _parse(self, chunk: bytes) -> int:
        count = 0
        try:
            for frame in self._parser.feed(chunk):
                count += 1
                self._on_frame(frame)
                if self._closed:
                    break
        except Exception as error:  # FrameError, or whatever else a guest can provoke: its own end, never the node's
            self._lose(f"the guest broke the protocol: {type(error).__name__}: {error}"[:500])
        return count

    def _resume(self) -> None:
        self._pause = None
        self._loop.add_reader(self._sock.fileno(), self._readable)

    def _lose(self, why: str) -> None:
        if not self._broken:
            self._broken = True
            self._loop.remove_reader(self._sock.fileno())
            self._on_lost(why)

    def drain(self) -> None:
        """The frames a dead guest left in the socket, up to one read."""
        if not self._broken and not self._closed:
            with contextlib.suppress(OSError):
                self._parse(self._sock.recv(READ_SIZE))

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._sock.fileno())
        self._loop.remove_writer(self._sock.fileno())
        self._queue.clear()
        self._sock.close()


class OutputPipe:
    """What a sandbox wrote to descriptor 1 or 2 past its runtime. A flood is slowed down, at the writer's cost."""

    def __init__(self, descriptor: int, on_text: Callable[[bytes], None]) -> None:
        self._descriptor = descriptor
        self._on_text = on_text
        self._loop = asyncio.get_running_loop()
        self._allowance = Allowance(OUTPUT_PER_S, OUTPUT_BURST, self._loop.time())
        self._pause: asyncio.TimerHandle | None = None
        os.set_blocking(descriptor, False)
        self._loop.add_reader(descriptor, self._readable)

    def _readable(self) -> None:
        text = self._read()
        if text is None:
            return
        if not text:
            self._loop.remove_reader(self._descriptor)
            return
        pause = self._allowance.take(self._loop.time(), len(text))
        if pause > 0:
            self._loop.remove_reader(self._descriptor)
            self._pause = self._loop.call_later(pause, self._resume)
        self._on_text(text)

    def _read(self) -> bytes | None:
        try:
            return os.read(self._descriptor, READ_SIZE)
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def _resume(self) -> None:
        self._pause = None
        self._loop.add_reader(self._descriptor, self._readable)

    def close(self) -> None:
        """Hands on what is left of one read, and closes."""
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._descriptor)
        text = self._read()
        os.close(self._descriptor)
        if text:
            self._on_text(text)
