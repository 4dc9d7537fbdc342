"""What a node and the guest of one sandbox say to each other, whatever the sandbox is made of."""

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from workers.drivers.frames import FromGuest
from workers.framing import Frame
from workers.ports import DriverError, InitFailed, InitReport

MAX_EARLY = 256  # frames and outputs kept until their callback is set
MAX_EARLY_BYTES = 4 << 20  # of both together

encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder(dict[str, Any]).decode


class Conversation(ABC):
    """The part of workers.ports.Clone that is the same for every driver: callbacks, and the answer to SPECIALISE.

    What comes before a callback is set is kept, within bounds. A driver gives its guest's frames to `_on_frame`, ends the
    sandbox in `_end`, and calls `_finished` when it is gone."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._answer: asyncio.Future[dict[str, Any]] = self._loop.create_future()
        self._ended = asyncio.Event()
        self._reason = ""
        self._frame_callback: Callable[[Frame], None] | None = None
        self._output_callback: Callable[[str, bytes], None] | None = None
        self._exit_callback: Callable[[str], None] | None = None
        self._early: list[Frame] = []
        self._early_output: list[tuple[str, bytes]] = []
        self._early_bytes = 0

    @property
    def on_frame(self) -> Callable[[Frame], None]:
        return self._frame_callback or self._keep_frame

    @on_frame.setter
    def on_frame(self, callback: Callable[[Frame], None]) -> None:
        self._frame_callback = callback
        early, self._early = self._early, []
        for frame in early:
            callback(frame)

    def _keep_frame(self, frame: Frame) -> None:
        if len(self._early) < MAX_EARLY and self._fits(len(frame.meta) + len(frame.body)):
            self._early.append(frame)

    @property
    def on_output(self) -> Callable[[str, bytes], None]:
        return self._output_callback or self._keep_output

    @on_output.setter
    def on_output(self, callback: Callable[[str, bytes], None]) -> None:
        self._output_callback = callback
        early, self._early_output = self._early_output, []
        for stream, text in early:
            callback(stream, text)

    def _keep_output(self, stream: str, text: bytes) -> None:
        if len(self._early_output) < MAX_EARLY and self._fits(len(text)):
            self._early_output.append((stream, text))

    def _fits(self, size: int) -> bool:
        fits = self._early_bytes + size <= MAX_EARLY_BYTES
        self._early_bytes += size if fits else 0
        return fits

    def _writer(self, stream: str) -> Callable[[bytes], None]:
        return lambda text: self.on_output(stream, text)

    @property
    def on_exit(self) -> Callable[[str], None]:
        return self._exit_callback or (lambda _reason: None)

    @on_exit.setter
    def on_exit(self, callback: Callable[[str], None]) -> None:
        self._exit_callback = callback
        if self._ended.is_set():
            self._loop.call_soon(callback, self._reason)

    def _on_frame(self, frame: Frame) -> None:
        if frame.kind != FromGuest.READY:
            self.on_frame(frame)
        elif not self._answer.done():
            try:
                self._answer.set_result(decode(frame.meta))
            except (ValueError, RecursionError, msgspec.MsgspecError) as error:
                self._fail(f"the guest broke the protocol: {error}")
                self._end(f"the guest broke the protocol: {error}")

    @abstractmethod
    def _end(self, reason: str) -> None:
        """Begins to end the sandbox; the first reason counts."""

    async def _report(self, began: float, timeout_s: float) -> InitReport:
        """The guest's answer to the SPECIALISE sent at `began` (perf_counter). Raises InitFailed, DriverError, TimeoutError."""
        answer = await asyncio.wait_for(asyncio.shield(self._answer), timeout_s)
        elapsed_ms = (time.perf_counter() - began) * 1000
        asked = answer.get("asked")
        names = tuple(str(name)[:100] for name in asked[:20]) if isinstance(asked, list) else ()
        _refuse(answer, names)
        told = answer.get("init_ms", 0.0)
        if not isinstance(told, int | float):
            raise DriverError("the guest broke the protocol: init_ms is not a number")
        init_ms = float(min(max(0.0, told), elapsed_ms)) if told == told else 0.0  # noqa: PLR0124 (not a number)
        return InitReport(elapsed_ms - init_ms, init_ms, names)

    def _fail(self, why: str) -> None:
        if not self._answer.done():
            self._answer.set_exception(DriverError(why))
            self._answer.exception()

    def _finished(self) -> None:
        """The sandbox is gone, for `_reason`."""
        self._ended.set()
        self._fail(self._reason)
        if self._exit_callback is not None:
            self._exit_callback(self._reason)


def _refuse(answer: Mapping[str, Any], asked: tuple[str, ...]) -> None:
    """Raises DriverError or InitFailed when the guest says it is not ready."""
    error = answer.get("error")
    if error is None:
        return
    detail = {key: str(error.get(key, "")) for key in ("type", "message", "stack")} if isinstance(error, dict) else {}
    if "step" in answer:
        raise DriverError(f"{answer['step']}: {detail.get('type')}: {detail.get('message')}")
    raise InitFailed(detail, asked)
