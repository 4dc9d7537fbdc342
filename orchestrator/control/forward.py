"""Hands the page's requests and websockets on to the page process, which only this process can reach."""

import asyncio
import contextlib
from http.cookiejar import CookieJar, DefaultCookiePolicy
from pathlib import Path
from urllib.parse import quote

import httpx
import structlog
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send
from websockets.asyncio.client import ClientConnection, unix_connect
from websockets.exceptions import ConnectionClosed, WebSocketException

from orchestrator.control import notices

PREFIX = "/page"
SESSION_HEADER = "x-foreglow-session"
CONNECT_S = 5.0
ANSWER_S = 15.0
WHOLE_S = 60.0  # a browser that does not read gives its connection back
CONNECTIONS = 50
SOCKETS = 60
MAX_FROM_BROWSER = 1 << 20
MAX_FROM_PAGE = 16 << 20
ASKED = ("accept", "accept-encoding", "if-modified-since", "if-none-match")
ANSWERED = ("cache-control", "content-encoding", "content-length", "content-type", "etag", "last-modified", "vary")
HEADERS = {
    # the page's library compiles its templates in the browser, hence unsafe-eval; nothing is fetched from anywhere else
    "Content-Security-Policy": "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data:; font-src 'self' data:; connect-src 'self'; object-src 'none'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "Referrer-Policy": "same-origin",  # with none at all, a browser says `Origin: null` when it signs out
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}

log = structlog.get_logger(__name__)


class Forward:
    """An ASGI application at PREFIX, behind the guard. Only what is named here crosses, in either direction: no cookie, no key.

    Reads only: GET and HEAD, and the websocket on which the page hears of clicks.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._open = 0
        self._http = httpx.AsyncClient(
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),  # none is kept: all who watch share these connections
            transport=httpx.AsyncHTTPTransport(uds=str(path), limits=httpx.Limits(max_connections=CONNECTIONS)),
            base_url="http://page",
            timeout=httpx.Timeout(ANSWER_S, connect=CONNECT_S, pool=CONNECT_S),
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await self._websocket(scope, receive, send)
        elif scope["method"] not in ("GET", "HEAD"):
            await notices.refused(405, "Method not allowed", "The page is only read.")(scope, receive, send)
        else:
            await self._request(scope, receive, send)

    async def close(self) -> None:
        await self._http.aclose()

    # -- requests

    async def _request(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = Headers(scope=scope)
        headers = {name: asked[name] for name in ASKED if name in asked} | self._own_headers(scope)
        begun = False
        try:
            async with (
                asyncio.timeout(WHOLE_S),
                self._http.stream(scope["method"], _target(scope), headers=headers) as answer,
            ):
                begun = True
                crossing = {name: answer.headers[name] for name in ANSWERED if name in answer.headers}
                await StreamingResponse(answer.aiter_raw(), answer.status_code, crossing | HEADERS)(scope, receive, send)
        except ClientDisconnect:
            return
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
            log.info("page.away", reason=type(error).__name__)
            if not begun:
                await notices.away()(scope, receive, send)

    def _own_headers(self, scope: Scope) -> dict[str, str]:
        return {"x-forwarded-prefix": PREFIX, SESSION_HEADER: str(scope["state"]["session"])}

    # -- websockets

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()  # websocket.connect
        if self._open >= SOCKETS:
            await send({"type": "websocket.close", "code": 1013})
            return
        self._open += 1
        try:
            await self._relay(scope, receive, send)
        finally:
            self._open -= 1

    async def _relay(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            page = await unix_connect(
                str(self._path),
                f"ws://page{_target(scope)}",
                additional_headers=self._own_headers(scope),
                open_timeout=CONNECT_S,
                close_timeout=CONNECT_S,
                max_size=MAX_FROM_PAGE,
                compression=None,
            )
        except (OSError, TimeoutError, WebSocketException) as error:
            log.info("page.away", reason=type(error).__name__)
            await send({"type": "websocket.close", "code": 1013})
            return
        async with page:
            await send({"type": "websocket.accept"})
            tasks = [asyncio.create_task(_to_page(receive, page)), asyncio.create_task(_to_browser(page, send))]
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)


def _target(scope: Scope) -> str:
    path = quote(scope["path"].removeprefix(PREFIX) or "/", safe="/:@!$&'()*+,;=~-._")
    query = scope["query_string"].decode("latin-1")
    return f"{path}?{query}" if query else path


async def _to_page(receive: Receive, page: ClientConnection) -> None:
    with contextlib.suppress(ConnectionClosed):
        while True:
            message = await receive()
            if message["type"] != "websocket.receive":
                return
            text = message.get("text")
            await page.send(text if text is not None else message["bytes"])


async def _to_browser(page: ClientConnection, send: Send) -> None:
    async for message in page:
        await send({"type": "websocket.send", "text" if isinstance(message, str) else "bytes": message})
    await send({"type": "websocket.close", "code": 1001})
