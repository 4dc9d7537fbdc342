"""uvicorn's fast HTTP protocol, with a bound on what a request's head may cost: for listeners that many ask."""

import asyncio
import contextlib
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD = 64 << 10  # bytes of request line and headers
HEAD_S = 30.0  # a new connection must have sent its first head by then

_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class BoundedHttp(HttpToolsProtocol):
    """The parser keeps an unfinished head whole in memory and sets no limit, so the limit is here."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._head_bytes = 0
        self._in_head = True
        self._head_timer = self.loop.call_later(HEAD_S, self._head_late)
        super().connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._head_bytes += len(data)
        super().data_received(data)
        if self._in_head and self._head_bytes > MAX_HEAD:
            self._refuse()

    def on_message_begin(self) -> None:
        self._in_head = True
        self._head_bytes = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._head_timer.cancel()
        super().on_headers_complete()

    def _refuse(self) -> None:
        transport: Any = self.transport
        if not transport.is_closing():
            with contextlib.suppress(OSError):
                transport.write(_TOO_LARGE)
            transport.close()

    def _head_late(self) -> None:
        if self._in_head and not self.transport.is_closing():
            self.transport.close()
