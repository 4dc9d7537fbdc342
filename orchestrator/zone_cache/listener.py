"""The listeners of a zone cache: uvicorn's HTTP on the cluster's own transports, so that callers are who they show to be."""

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Any

import structlog
import uvicorn
from starlette.responses import PlainTextResponse
from uvicorn.server import ServerState

from orchestrator.heads import BoundedHttp
from workers.rpc.transport import Address, Identity, NotTrusted, prepare, serve

CONNECTIONS = 4096
"""A node keeps up to sixteen that are idle most of the time."""

REQUESTS = 256
"""Answered at once: this bounds the memory."""

KEEP_ALIVE_S = 60
"""Longer than a client keeps an idle connection: it is the client that ends it, and none breaks under a request."""

STOP_S = 2.0

log = structlog.get_logger(__name__)


class MemberHttp(BoundedHttp):
    """Puts who is calling into the scope's state."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        try:
            self.app_state = {"peer": prepare(transport)}
        except NotTrusted as error:
            log.warning("zone.not_trusted", reason=str(error))
            transport.abort()


class Bounded:
    """`app`, for REQUESTS at once; who comes then is told so."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._answering = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if self._answering >= REQUESTS:
            await PlainTextResponse("this cache has too much to do", 503)(scope, receive, send)
            return
        self._answering += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._answering -= 1


class MemberListener:
    """Serves `app` on all addresses until `close`."""

    def __init__(self, app: Any) -> None:
        self._config = uvicorn.Config(
            Bounded(app),
            http=MemberHttp,
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            log_level="warning",
            server_header=False,
            date_header=False,
            proxy_headers=False,  # nobody in front is trusted to say who the caller is
            limit_concurrency=CONNECTIONS,
            timeout_keep_alive=KEEP_ALIVE_S,
        )
        self._config.load()
        self._state = ServerState()
        self._servers: list[asyncio.AbstractServer] = []

    async def start(self, addresses: Sequence[Address], identity: Identity | None) -> None:
        """Raises OSError, NotTrusted."""
        make = partial(MemberHttp, config=self._config, server_state=self._state, app_state={})
        for address in addresses:
            self._servers.append(await serve(make, address, identity))

    @property
    def serving(self) -> bool:
        return bool(self._servers)

    @property
    def servers(self) -> Sequence[asyncio.AbstractServer]:
        return self._servers

    async def close(self) -> None:
        """What is being answered gets STOP_S."""
        for server in self._servers:
            server.close()
        for connection in list(self._state.connections):
            connection.shutdown()
        if self._state.tasks:
            await asyncio.wait(self._state.tasks, timeout=STOP_S)
        for connection in list(self._state.connections):
            if connection.transport is not None:
                connection.transport.abort()
        self._servers.clear()
