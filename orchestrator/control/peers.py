"""Questions to the planner and to nodes over RPC: one connection each, dialled when needed and again when it was lost."""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

import structlog
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool

from orchestrator.catalog.leases import Leases, planner_lease, shard_of
from orchestrator.catalog.nodes import Nodes
from orchestrator.catalog.routes import NodeRoute
from orchestrator.control.problems import Problem
from orchestrator.members import callers_of
from workers.rpc.connection import Connection, RpcError, dial
from workers.rpc.messages import Caller, Hello
from workers.rpc.transport import LOCAL, Address, Identity, parse_address
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
            connection = await self.connected()
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

    def set_whom(self, whom: Whom) -> None:
        """It renews its certificate: these count from now on, where it is dialled anew."""
        self._whom = whom

    async def connected(self) -> Connection:
        """Raises RpcError: it is away, or shows a certificate that does not count."""
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

    def __init__(self, leases: Leases, nodes: Nodes, shards: int, local: Address, make: Make) -> None:
        self._leases = leases
        self._nodes = nodes
        self._shards = shards
        self._here = (local, Whom("planner", ""))
        self._make = make
        self._peers: dict[str, tuple[Address, str, Peer]] = {}
        self._known: dict[str, tuple[float, tuple[Address, Whom]]] = {}

    async def ask(self, what: str, timeout_s: float = ASK_TIMEOUT_S, **args: Any) -> bytes:
        """As Peer.ask. A planner that is away is looked up anew the next time."""
        lease = planner_lease(shard_of(str(args.get("tenant", "")), self._shards))
        address, whom = await self._where(lease)
        known = self._peers.get(lease)
        if known is not None and known[:2] == (address, whom.name):
            peer = known[2]
            peer.set_whom(whom)
        else:
            if known is not None:
                known[2].close()
            peer = self._make(self.name, address, whom)
            self._peers[lease] = (address, whom.name, peer)
        try:
            return await peer.ask(what, timeout_s, **args)
        except Problem as error:
            if error.status_code == 503:
                self._known.pop(lease, None)
            raise

    def close(self) -> None:
        for _, _, peer in self._peers.values():
            peer.close()

    async def _where(self, lease: str) -> tuple[Address, Whom]:
        at, place = self._known.get(lease, (float("-inf"), self._here))
        if time.monotonic() - at > KNOWN_S:
            try:
                place = await run_in_threadpool(self._look_up, lease)
            except (SQLAlchemyError, ValueError) as error:
                log.info("planner.unknown", reason=str(error)[:200])  # the last one known, then
            self._known[lease] = (time.monotonic(), place)
        return place

    def _look_up(self, lease: str) -> tuple[Address, Whom]:
        """A holder that joined is met under its own certificate; Problem 503 when it was removed since."""
        row = self._leases.read(lease)
        if row is None:
            return self._here
        name = row.holder.partition(" ")[0]
        if LOCAL in name:
            return parse_address(row.address), Whom("planner", name)
        member = self._nodes.published_one(name)
        if member is None or member.route is None or member.route.role != "planner":
            raise Problem(503, f"planner {name} was removed; another takes its place in seconds", headers={"Retry-After": "1"})
        return parse_address(row.address), member.route.peer


class Roster:
    """The nodes there are: those that settings name, and the members, each met under the certificate that counts now."""

    def __init__(self, local: Sequence[Peer], nodes: Nodes, make: Make) -> None:
        self._local = list(local)
        self._nodes = nodes
        self._make = make
        self._members: dict[tuple[str, str, int], Peer] = {}
        self._callers: list[Caller] | None = None
        self._known_at = float("-inf")

    async def peers(self) -> list[Peer]:
        """With the database away: those known last."""
        await self._look()
        return [*self._local, *self._members.values()]

    async def members(self) -> tuple[list[Peer], list[Caller] | None]:
        """The nodes that joined, and who may speak to them; None before the database ever told."""
        await self._look()
        return list(self._members.values()), self._callers

    def close(self) -> None:
        for peer in (*self._local, *self._members.values()):
            peer.close()

    async def _look(self) -> None:
        if time.monotonic() - self._known_at <= KNOWN_S:
            return
        try:
            published = await run_in_threadpool(self._nodes.published)
        except SQLAlchemyError as error:
            log.info("nodes.unknown", reason=str(error)[:200])
        else:
            routes = [one.route for one in published if one.route is not None]
            self._follow([one for one in routes if one.role == "node"])
            self._callers = callers_of(routes)
            self._known_at = time.monotonic()

    def _follow(self, members: Sequence[NodeRoute]) -> None:
        wanted = {(one.name, one.address, one.epoch): one.peer for one in members}
        for gone in self._members.keys() - wanted.keys():
            self._members.pop(gone).close()
        for place, whom in wanted.items():
            if place in self._members:
                self._members[place].set_whom(whom)
            else:
                name, address, _ = place
                self._members[place] = self._make(name, parse_address(address), whom)
