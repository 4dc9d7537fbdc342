"""Questions to the planner and to nodes over RPC: one connection each, dialled when needed and again when it was lost."""

import asyncio
from pathlib import Path
from typing import Any

from orchestrator.control.problems import Problem
from workers.rpc.connection import Connection, RpcError, dial
from workers.rpc.messages import Hello

ASK_TIMEOUT_S = 5.0
DIAL_TIMEOUT_S = 2.0


class Peer:
    """`name` is what users are told is away. Lives in one event loop. `ask` raises Problem."""

    def __init__(self, name: str, path: Path, hello: Hello) -> None:
        self.name = name
        self._path = path
        self._hello = hello
        self._connection: Connection | None = None
        self._dialling = asyncio.Lock()

    async def ask(self, what: str, timeout_s: float = ASK_TIMEOUT_S, **args: Any) -> bytes:
        """The answer as JSON bytes. Problem 503 when the peer is away or silent, its own status when it refuses."""
        try:
            connection = await self._connected()
            return await connection.ask_raw(what, timeout_s, **args)
        except RpcError as error:
            if error.status >= 500:
                raise Problem(503, f"{self.name} is away: {error}", headers={"Retry-After": "1"}) from error
            raise Problem(error.status, str(error)) from error
        except TimeoutError as error:
            raise Problem(503, f"{self.name} did not answer within {timeout_s:g} s", headers={"Retry-After": "1"}) from error

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()

    async def _connected(self) -> Connection:
        async with self._dialling:
            if self._connection is None or self._connection.closed:
                self._connection = await dial(self._path, self, self._hello, timeout_s=DIAL_TIMEOUT_S)
            return self._connection

    # -- the connection's owner

    def on_message(self, connection: Connection, kind: int, ident: int, message: Any, body: bytes) -> None:
        """Nothing is sent to us unasked."""

    def on_lost(self, connection: Connection, why: str) -> None:
        if self._connection is connection:
            self._connection = None

    def on_open(self, connection: Connection) -> None:
        """Only the listening side hears of it."""
