"""Connections to nodes for the time of one task: what each said of itself last, and what became of orders."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection, Sequence
from typing import Any

import structlog

from workers.rpc.connection import Connection, RpcError, dial
from workers.rpc.messages import DecisionUpdate, Hello, PrepareBatch, PrepareItem, Rpc, VersionCount
from workers.rpc.transport import Address, Identity, Peer, label
from workers.versions import VersionSpec

DIAL_TIMEOUT_S = 2.0
HEARD_TIMEOUT_S = 3.0

Place = tuple[Address, Peer]
"""Where a node is, and whom to expect there."""

log = structlog.get_logger(__name__)


class NodeLink:
    """One node. `changed` is set whenever it said something, or went away."""

    def __init__(self, place: Place, changed: asyncio.Event, identity: Identity | None = None) -> None:
        self._identity = identity
        self.address, self._whom = place
        self.free_mb = 0
        self.tunnels: Collection[str] = ()
        self.updates: list[DecisionUpdate] = []
        self.lost = ""
        self.heard = asyncio.Event()
        self._changed = changed
        self._counts: dict[str, VersionCount] = {}
        self._connection: Connection | None = None

    async def open(self, hello: Hello) -> None:
        """Returns once the node has said what it holds. Raises RpcError, TimeoutError."""
        self._connection = await dial(
            self.address, self, hello, timeout_s=DIAL_TIMEOUT_S, identity=self._identity, expected=self._whom
        )
        self._connection.send(Rpc.SUBSCRIBE, 0)
        async with asyncio.timeout(HEARD_TIMEOUT_S):
            await self.heard.wait()
        if self.lost:
            raise RpcError(self.lost)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()

    @property
    def name(self) -> str:
        welcome = self._connection.welcome if self._connection is not None else None
        return welcome.name if welcome is not None else label(self.address)

    def idle(self, version: str) -> int:
        """Instances there or on their way, as placement counts them."""
        count = self._counts.get(version)
        return count.idle + count.busy + count.preparing if count is not None else 0

    def hosts(self, tenant: str) -> bool:
        """A node that may not host it was not dialled for it."""
        return True

    def ready(self, version: str) -> int:
        count = self._counts.get(version)
        return count.idle + count.busy if count is not None else 0

    def order(self, spec: VersionSpec, items: Sequence[PrepareItem]) -> None:
        assert self._connection is not None
        self._connection.send(Rpc.DEFINE, 0, spec)
        self._connection.send(Rpc.PREPARE, 0, PrepareBatch(list(items)))

    async def ask(self, what: str, **args: object) -> Any:
        """What was sent before has been taken in by the node when it answers. Raises RpcError, TimeoutError."""
        assert self._connection is not None
        return await self._connection.ask(what, DIAL_TIMEOUT_S, **args)

    def send(self, kind: int, message: object) -> None:
        assert self._connection is not None
        self._connection.send(kind, 0, message)

    # -- the connection's owner

    def on_open(self, connection: Connection) -> None:
        """Only the listening side hears of it."""

    def on_message(self, connection: Connection, kind: int, ident: int, message: Any, body: bytes) -> None:
        if kind == Rpc.OUTCOMES:
            self.updates += message.updates
        elif kind == Rpc.INVENTORY:
            self.free_mb = message.free_mb
            if message.whole:
                self._counts.clear()
                self.tunnels = frozenset(message.tunnels)
                self.heard.set()
            self._counts.update((count.version, count) for count in message.versions)
        self._changed.set()

    def on_lost(self, connection: Connection, why: str) -> None:
        self.lost = why or "the connection was lost"
        self._counts.clear()
        self.heard.set()
        self._changed.set()


@contextlib.asynccontextmanager
async def linked(
    places: Sequence[Place], hello: Hello, changed: asyncio.Event, identity: Identity | None = None
) -> AsyncIterator[tuple[list[NodeLink], list[str]]]:
    """Links to the nodes that answer, and why the others do not. All are closed at the end of the block."""
    links = [NodeLink(place, changed, identity) for place in places]
    try:
        opened = await asyncio.gather(*(link.open(hello) for link in links), return_exceptions=True)
        away = []
        for link, result in zip(links, opened, strict=True):
            if isinstance(result, RpcError | TimeoutError):
                away.append(f"{link.name}: {result or 'silent'}")
            elif isinstance(result, BaseException):
                raise result
        up = [link for link, result in zip(links, opened, strict=True) if result is None and not link.lost]
        if away:
            log.info("nodes.away", reasons=away)
        yield up, away
    finally:
        for link in links:
            link.close()
