"""uvicorn's fast HTTP protocol, with a bound on what a request's head may cost: for listeners that many ask."""

import asyncio
import contextlib
from collections import Counter
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD = 64 << 10  # bytes of request line and headers
HEAD_S = 30.0  # a head must have come whole by then; a new connection's from its start on

_WHY = b"too many connections come from one address"
_TOO_MANY = (
    b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\ncontent-type: text/plain\r\n"
    b"content-length: %d\r\nconnection: close\r\n\r\n%b" % (len(_WHY), _WHY)
)
_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class BoundedHttp(HttpToolsProtocol):
    """The parser keeps an unfinished head whole in memory and sets no limit, so the limit is here."""

    head_s = HEAD_S

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._head_bytes = 0
        self._in_head = True
        self._head_timer: asyncio.TimerHandle | None = None
        self._await_head()
        super().connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_done()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._head_bytes += len(data)
        super().data_received(data)
        if self._in_head:
            if self._head_bytes > MAX_HEAD:
                self._refuse()
            elif self._head_timer is None:  # a later one, of which only a part came
                self._await_head()

    def on_message_begin(self) -> None:
        self._in_head = True
        self._head_bytes = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._head_done()
        super().on_headers_complete()

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(self.head_s, self._head_late)

    def _head_done(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _refuse(self) -> None:
        transport: Any = self.transport
        if not transport.is_closing():
            with contextlib.suppress(OSError):
                transport.write(_TOO_LARGE)
            transport.close()

    def _head_late(self) -> None:
        if self._in_head and not self.transport.is_closing():
            self.transport.close()


class _ByAddress(BoundedHttp):
    most: int
    held: Counter[str]

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._address = self.client[0] if self.client else ""
        self.held[self._address] += 1
        if self.held[self._address] > self.most:
            transport.write(_TOO_MANY)
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.held[self._address] -= 1
        if not self.held[self._address]:
            del self.held[self._address]
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if not self.transport.is_closing():
            super().data_received(data)


def bounded_by_address(most: int, head_s: float) -> type[BoundedHttp]:
    """The protocol of one listener: at most so many connections from an address at once, further ones are answered 503; a head
    that takes longer than `head_s` ends its connection."""
    return type("BoundedByAddress", (_ByAddress,), {"most": most, "held": Counter(), "head_s": head_s})
