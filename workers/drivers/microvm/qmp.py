"""Speaks to QEMU's monitor (QMP): JSON lines over a socket pair, commands answered by id, events.

An own speaker of a hundred lines: a clone on its way to a request sends three commands in one write and waits for one event,
which the PyPI package's reader and writer tasks, one set per clone, make three times as long (docs/decisions/0025).
What a QEMU says may be a guest's that broke out of its devices: lines are bounded, and nonsense ends the machine.
"""

import asyncio
import contextlib
import itertools
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from workers.ports import DriverError

READ_SIZE = 64 << 10
MAX_LINE = 1 << 20
MAX_UNASKED = 4 << 20  # bytes of events between two commands: QEMU lets a guest cause few of them a second
GONE = "QEMU closed its monitor"

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(dict[str, Any]).decode

Command = tuple[str, Mapping[str, Any]]


class QmpError(DriverError):
    """QEMU refused a command, or is gone; the message has its words."""


class Qmp:
    """The node's end of one monitor. `on_lost(why)` is called at most once; the owner then closes."""

    def __init__(self, sock: socket.socket, on_lost: Callable[[str], None]) -> None:
        self._sock = sock
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray()
        self._numbers = itertools.count(1)
        self._waiting: dict[int, tuple[str, asyncio.Future[Any], bool]] = {}  # by id; True: its value is the answer
        self._unasked = 0  # bytes since the last command
        self._events: dict[str, list[asyncio.Future[Mapping[str, Any]]]] = {}
        self._closed = False
        sock.setblocking(False)
        self._loop.add_reader(sock.fileno(), self._readable)

    def post(self, *commands: Command, descriptors: Sequence[int] = ()) -> "asyncio.Future[Any]":
        """Sends all in one write, with `descriptors` (for the first, which takes them); the answer to the last. That of an
        earlier one that fails is the answer as well. Raises QmpError when QEMU is gone."""
        answer: asyncio.Future[Any] = self._loop.create_future()
        answer.add_done_callback(_seen)
        lines = []
        for number, (name, arguments) in enumerate(commands):
            ident = next(self._numbers)
            self._waiting[ident] = (name, answer, number == len(commands) - 1)
            lines.append(_encode({"execute": name, "arguments": arguments, "id": ident}) + b"\n")
        text, self._unasked = b"".join(lines), 0
        try:
            if self._closed:
                raise BrokenPipeError(GONE)
            sent = socket.send_fds(self._sock, [text], list(descriptors)) if descriptors else self._sock.send(text)
        except OSError as error:
            raise QmpError(f"{commands[0][0]}: {error.strerror or GONE}") from error
        if sent < len(text):  # a monitor reads at once; one that lets its socket fill is broken
            self._lose("QEMU does not read its monitor")
        return answer

    async def run(self, name: str, timeout_s: float, /, *, descriptors: Sequence[int] = (), **arguments: Any) -> Any:
        """One command's `return`. Underscores in argument names are dashes. Raises QmpError, TimeoutError."""
        plain = {key.replace("_", "-"): value for key, value in arguments.items()}
        return await asyncio.wait_for(self.post((name, plain), descriptors=descriptors), timeout_s)

    def event(self, name: str) -> "asyncio.Future[Mapping[str, Any]]":
        """The next one of that name. Fails with QmpError when QEMU goes first."""
        future: asyncio.Future[Mapping[str, Any]] = self._loop.create_future()
        future.add_done_callback(_seen)
        if self._closed:
            future.set_exception(QmpError(GONE))
        else:
            self._events.setdefault(name, []).append(future)
        return future

    def _readable(self) -> None:
        try:
            chunk = self._sock.recv(READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            chunk = b""
        if not chunk:
            self._lose(GONE)
            return
        self._buffer += chunk
        self._unasked += len(chunk)
        if self._unasked > MAX_UNASKED:
            self._lose("QEMU's monitor does not stop talking")
            return
        try:
            while (end := self._buffer.find(b"\n")) >= 0:
                line = bytes(self._buffer[:end])
                del self._buffer[: end + 1]
                self._take(_decode(line))
        except (ValueError, TypeError, RecursionError, msgspec.MsgspecError) as error:
            self._lose(f"QEMU's monitor says nonsense: {error}"[:300])
            return
        if len(self._buffer) > MAX_LINE:
            self._lose("QEMU's monitor says a line without an end")

    def _take(self, message: dict[str, Any]) -> None:
        if "event" in message:
            data: Mapping[str, Any] = message.get("data") or {}
            for waiter in self._events.pop(str(message["event"]), ()):
                if not waiter.done():
                    waiter.set_result(data)
            return
        found = self._waiting.pop(message.get("id", 0), None)
        if found is None or found[1].done():
            return
        name, future, last = found
        if "error" in message:
            error = message["error"]
            words = error.get("desc", "") if isinstance(error, dict) else ""
            future.set_exception(QmpError(f"{name}: {str(words)[:500]}"))
        elif last:
            future.set_result(message.get("return"))

    def _lose(self, why: str) -> None:
        if not self._closed:
            self.close(why)
            self._on_lost(why)

    def close(self, why: str = GONE) -> None:
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._sock.fileno())
        with contextlib.suppress(OSError):
            self._sock.close()
        events = [future for futures in self._events.values() for future in futures]
        for future in [*(future for _, future, _ in self._waiting.values()), *events]:
            if not future.done():
                future.set_exception(QmpError(why))
        self._waiting.clear()
        self._events.clear()


def _seen(future: "asyncio.Future[Any]") -> None:
    """Nobody may be waiting for it any more."""
    if not future.cancelled():
        future.exception()
