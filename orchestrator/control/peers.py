"""Questions to the planner and to nodes over RPC: one connection each, dialled when needed and again when it was lost."""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

import structlog
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool

from orchestrator.catalog.leases import Leases, planner_lease, shard_of
from orchestrator.catalog.nodes import Nodes, NodeView
from orchestrator.control.problems import Problem
from workers.rpc.connection import Connection, RpcError, dial
from workers.rpc.messages import Hello
from workers.rpc.transport import Address, Identity, parse_address
from workers.rpc.transport import Peer as Whom

ASK_TIMEOUT_S = 5.0
DIAL_TIMEOUT_S = 2.0
KNOWN_S = 1.0  # what the database said of members and leases counts this long

log = structlog.get_logger(__name__)


class Peer:
    """`name` is what users are told is away. Lives in one event loop. `ask` raises Problem."""

    def __init__(
        self, name: str, address: Address, hello: Hello, identity: Identity | None = None, whom: Whom | None = None
    ) -> None:
        self.name = name
        self.address = address
        self._hello = hello
        self._identity = identity
        self._whom = whom
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
                self._connection = await dial(
                    self.address, self, self._hello, timeout_s=DIAL_TIMEOUT_S, identity=self._identity, expected=self._whom
                )
            return self._connection

    # -- the connection's owner

    def on_message(self, connection: Connection, kind: int, ident: int, message: Any, body: bytes) -> None:
        """Nothing is sent to us unasked."""

    def on_lost(self, connection: Connection, why: str) -> None:
        if self._connection is connection:
            self._connection = None

    def on_open(self, connection: Connection) -> None:
        """Only the listening side hears of it."""


Make = Callable[[str, Address, Whom], Peer]


class Planner:
    """The planner that decides for a tenant: whoever holds the lease of its shard, or the one beside control before any does."""

    name = "planner"

    def __init__(self, leases: Leases, shards: int, local: Address, make: Make) -> None:
        self._leases = leases
        self._shards = shards
        self._local = local
        self._make = make
        self._peers: dict[str, Peer] = {}
        self._known: dict[str, tuple[float, Address]] = {}

    async def ask(self, what: str, timeout_s: float = ASK_TIMEOUT_S, **args: Any) -> bytes:
        """As Peer.ask. A planner that is away is looked up anew the next time."""
        lease = planner_lease(shard_of(str(args.get("tenant", "")), self._shards))
        address = await self._where(lease)
        peer = self._peers.get(lease)
        if peer is None or peer.address != address:
            if peer is not None:
                peer.close()
            peer = self._peers[lease] = self._make(self.name, address, Whom("planner", ""))
        try:
            return await peer.ask(what, timeout_s, **args)
        except Problem as error:
            if error.status_code == 503:
                self._known.pop(lease, None)
            raise

    def close(self) -> None:
        for peer in self._peers.values():
            peer.close()

    async def _where(self, lease: str) -> Address:
        at, address = self._known.get(lease, (float("-inf"), self._local))
        if time.monotonic() - at > KNOWN_S:
            try:
                row = await run_in_threadpool(self._leases.read, lease)
                address = parse_address(row.address) if row is not None else self._local
            except (SQLAlchemyError, ValueError) as error:
                log.info("planner.unknown", reason=str(error)[:200])  # the last one known, then
            self._known[lease] = (time.monotonic(), address)
        return address


class Roster:
    """The nodes there are: those that settings name, and the members."""

    def __init__(self, local: Sequence[Peer], nodes: Nodes, make: Make) -> None:
        self._local = list(local)
        self._nodes = nodes
        self._make = make
        self._members: dict[tuple[str, str, int], Peer] = {}
        self._known_at = float("-inf")

    async def peers(self) -> list[Peer]:
        """With the database away: those known last."""
        if time.monotonic() - self._known_at > KNOWN_S:
            try:
                members = await run_in_threadpool(self._nodes.list)
            except SQLAlchemyError as error:
                log.info("nodes.unknown", reason=str(error)[:200])
            else:
                self._follow([one for one in members if one.role == "node" and one.state != "left"])
                self._known_at = time.monotonic()
        return [*self._local, *self._members.values()]

    def close(self) -> None:
        for peer in (*self._local, *self._members.values()):
            peer.close()

    def _follow(self, members: Sequence[NodeView]) -> None:
        wanted = {(one.name, one.address, one.epoch) for one in members}
        for gone in self._members.keys() - wanted:
            self._members.pop(gone).close()
        for name, address, epoch in wanted - self._members.keys():
            self._members[name, address, epoch] = self._make(name, parse_address(address), Whom("node", name))
