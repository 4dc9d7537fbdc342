"""One sandbox seen from the node: its channel, its output, its end."""

import asyncio
import contextlib
import os
import secrets
import socket
import time
from collections.abc import Callable

import msgspec

from workers.drivers.frames import FromGuest, ToGuest
from workers.drivers.process import syscalls
from workers.drivers.process.isolation import LAYERS_AT
from workers.drivers.process.layers import LayerSource
from workers.drivers.process.limits import Cell
from workers.framing import Frame, FrameError, FrameParser, encode
from workers.ports import DriverError, InitFailed, InitReport, Specialisation, Usage

READ_SIZE = 256 << 10
OUTPUT_READ = 64 << 10
MAX_QUEUED = 64 << 20
MAX_EARLY = 256
KILL_TIMEOUT_S = 10.0
STATUS_WAIT_S = 0.05

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(dict).decode


class ProcessClone:
    """Implements workers.ports.Clone. `freed` is called once, after the last process has gone."""

    def __init__(
        self,
        clone_id: str,
        pid: int,
        pidfd: int,
        channel: socket.socket,
        outputs: dict[str, int],
        cell: Cell | None,
        layers: LayerSource | None,
        freed: Callable[["ProcessClone"], None],
    ) -> None:
        self.clone_id = clone_id
        self.pid = pid
        self.cell = cell
        self._pidfd = pidfd
        self._channel = channel
        self._outputs = outputs
        self._layers = layers
        self._freed = freed
        self._loop = asyncio.get_running_loop()
        self._parser = FrameParser()
        self._queue: list[bytes] = []
        self._queued = 0
        self._ready: asyncio.Future[Frame] = self._loop.create_future()
        self._ended = asyncio.Event()
        self._gone = False
        self._reason = ""
        self._status = ""
        self._on_frame: Callable[[Frame], None] | None = None
        self._on_output: Callable[[str, bytes], None] | None = None
        self._on_exit: Callable[[str], None] | None = None
        self._early: list[Frame] = []
        self._early_output: list[tuple[str, bytes]] = []
        self._loop.add_reader(channel.fileno(), self._readable)
        self._loop.add_reader(pidfd, self._exited)
        for stream, descriptor in outputs.items():
            self._loop.add_reader(descriptor, self._output, stream, descriptor)

    # -- callbacks; what came before they were set is kept, within bounds

    @property
    def on_frame(self) -> Callable[[Frame], None]:
        return self._on_frame or self._keep_frame

    @on_frame.setter
    def on_frame(self, callback: Callable[[Frame], None]) -> None:
        self._on_frame = callback
        early, self._early = self._early, []
        for frame in early:
            callback(frame)

    def _keep_frame(self, frame: Frame) -> None:
        if len(self._early) < MAX_EARLY:
            self._early.append(frame)

    @property
    def on_output(self) -> Callable[[str, bytes], None]:
        return self._on_output or self._keep_output

    @on_output.setter
    def on_output(self, callback: Callable[[str, bytes], None]) -> None:
        self._on_output = callback
        early, self._early_output = self._early_output, []
        for stream, text in early:
            callback(stream, text)

    def _keep_output(self, stream: str, text: bytes) -> None:
        if len(self._early_output) < MAX_EARLY:
            self._early_output.append((stream, text))

    @property
    def on_exit(self) -> Callable[[str], None]:
        return self._on_exit or (lambda _reason: None)

    @on_exit.setter
    def on_exit(self, callback: Callable[[str], None]) -> None:
        self._on_exit = callback
        if self._ended.is_set():
            self._loop.call_soon(callback, self._reason)

    # -- becoming an instance

    async def specialise(self, work: Specialisation, timeout_s: float) -> InitReport:
        if self._gone:
            raise DriverError(f"the sandbox has gone: {self._reason}")
        began = time.perf_counter()
        sandboxed = self._layers is not None
        meta = _encode(
            {
                "version": work.version,
                "handler": work.handler,
                "kind": work.kind,
                "concurrency": work.concurrency,
                "memory_mb": work.memory_mb,
                "environment": dict(work.environment),
                "paths": list(LAYERS_AT[: len(work.layers)]) if sandboxed else [str(layer) for layer in work.layers],
                "entropy": secrets.token_hex(32),
                "now": time.time(),
            }
        )
        trees: list[int] = []
        try:
            if self._layers is not None:
                trees = [self._layers.detach(layer) for layer in work.layers]
            self._send_with(encode(ToGuest.SPECIALISE, 0, meta), trees)
        except OSError as error:
            raise DriverError(f"attaching the code: {error}") from error
        finally:
            for tree in trees:
                os.close(tree)
        frame = await asyncio.wait_for(asyncio.shield(self._ready), timeout_s)
        elapsed_ms = (time.perf_counter() - began) * 1000
        answer = _decode(frame.meta)
        init_ms = float(answer.get("init_ms", 0.0))
        error = answer.get("error")
        if error is not None and "step" in answer:
            raise DriverError(f"{answer['step']}: {error.get('type')}: {error.get('message')}")
        if error is not None:
            raise InitFailed({key: str(error.get(key, "")) for key in ("type", "message", "stack")})
        return InitReport(max(0.0, elapsed_ms - init_ms), init_ms)

    def _send_with(self, data: bytes, descriptors: list[int]) -> None:
        """The first message: the socket's buffer is empty, so the descriptors leave with its first bytes."""
        sent = socket.send_fds(self._channel, [data], descriptors)
        if sent < len(data):
            self._enqueue(data[sent:])

    # -- frames

    def send(self, kind: int, ident: int, meta: bytes = b"", body: bytes = b"") -> None:
        if self._gone:
            return
        data = encode(kind, ident, meta, body)
        if not self._queue:
            try:
                sent = self._channel.send(data)
            except BlockingIOError:
                sent = 0
            except OSError:
                return  # it is ending; on_exit says so
            if sent == len(data):
                return
            data = data[sent:]
        self._enqueue(data)

    def _enqueue(self, data: bytes) -> None:
        if not self._queue:
            self._loop.add_writer(self._channel.fileno(), self._writable)
        self._queue.append(data)
        self._queued += len(data)
        if self._queued > MAX_QUEUED:
            self._end(f"more than {MAX_QUEUED} bytes wait for a guest that does not read")

    def _writable(self) -> None:
        try:
            while self._queue:
                sent = self._channel.send(self._queue[0])
                self._queued -= sent
                if sent < len(self._queue[0]):
                    self._queue[0] = self._queue[0][sent:]
                    return
                self._queue.pop(0)
        except BlockingIOError:
            return
        except OSError:
            self._queue.clear()
        self._loop.remove_writer(self._channel.fileno())

    def _readable(self) -> None:
        try:
            chunk = self._channel.recv(READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            chunk = b""
        if not chunk:
            self._end("the sandbox closed its channel")
            return
        try:
            for frame in self._parser.feed(chunk):
                if frame.kind != FromGuest.READY:
                    self.on_frame(frame)
                elif not self._ready.done():
                    self._ready.set_result(frame)
                if self._gone:
                    return
        except FrameError as error:
            self._end(f"the guest broke the protocol: {error}")

    def _output(self, stream: str, descriptor: int) -> None:
        try:
            text = os.read(descriptor, OUTPUT_READ)
        except BlockingIOError:
            return
        if text:
            self.on_output(stream, text)
        else:
            self._loop.remove_reader(descriptor)

    # -- the end

    def speculative(self, on: bool) -> None:
        if self.cell is not None and not self._gone:
            with contextlib.suppress(OSError):
                self.cell.speculative(on)

    def usage(self) -> Usage | None:
        if self._gone or self.cell is None:
            return None
        with contextlib.suppress(OSError, ValueError):
            memory, processes = self.cell.memory_bytes(), self.cell.processes()
            if memory is not None and processes is not None:
                return Usage(memory, processes)
        return None

    async def kill(self, reason: str) -> None:
        self._end(reason)
        try:
            await asyncio.wait_for(self._ended.wait(), KILL_TIMEOUT_S)
        except TimeoutError as error:
            raise DriverError(f"sandbox {self.clone_id} (process {self.pid}) did not die in {KILL_TIMEOUT_S:g} s") from error

    def exit_status(self, how: str) -> None:
        """The template says how it ended; comes before or shortly after the pidfd tells that it did."""
        self._status = how
        if self._gone:
            self._finish()

    def _end(self, reason: str) -> None:
        if not self._reason:
            self._reason = reason
        if not self._gone:
            with contextlib.suppress(OSError):
                syscalls.pidfd_send_signal(self._pidfd, syscalls.SIGKILL)

    def _exited(self) -> None:
        """Every process of the sandbox is gone: this was the first of its namespace."""
        self._gone = True
        self._loop.remove_reader(self._pidfd)
        if self._status or self._reason:
            self._finish()
        else:
            self._loop.call_later(STATUS_WAIT_S, self._finish)

    def _finish(self) -> None:
        if self._ended.is_set():
            return
        self._drain()
        if self.cell is not None and self.cell.ran_out_of_memory():
            self._reason = f"out of memory: the sandbox needed more than {self.cell.memory_mb} MB"
        elif not self._reason or self._reason == "the sandbox closed its channel":
            self._reason = f"the sandbox ended by itself ({self._status or 'status unknown'})"
        self._ended.set()
        for descriptor in [self._channel.fileno(), *self._outputs.values()]:
            self._loop.remove_reader(descriptor)
        self._loop.remove_writer(self._channel.fileno())
        self._channel.close()
        os.close(self._pidfd)
        for descriptor in self._outputs.values():
            os.close(descriptor)
        self._queue.clear()
        if not self._ready.done():
            self._ready.set_exception(DriverError(self._reason))
            self._ready.exception()
        self._freed(self)
        if self._on_exit is not None:
            self._on_exit(self._reason)

    def _drain(self) -> None:
        """What it wrote last is still in the pipes and the channel."""
        self._readable_rest()
        for stream, descriptor in self._outputs.items():
            with contextlib.suppress(OSError):
                text = os.read(descriptor, OUTPUT_READ)
                if text:
                    self.on_output(stream, text)

    def _readable_rest(self) -> None:
        with contextlib.suppress(OSError, FrameError):
            chunk = self._channel.recv(READ_SIZE)
            for frame in self._parser.feed(chunk):
                if frame.kind != FromGuest.READY:
                    self.on_frame(frame)
                elif not self._ready.done():
                    self._ready.set_result(frame)
