"""The planner dials every node and every gateway: what they tell it comes in here, what it orders goes out here."""

import asyncio
import time
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any, Protocol

import msgspec
import structlog

from graph.ids import VersionId, function_of
from orchestrator.heartbeat import SILENT_S, Pulse, until_lost
from orchestrator.planner.vigil import Sight
from orchestrator.zones import DEFAULT_ZONE
from workers.networks import VpcSpec
from workers.rpc.connection import Connection, RpcError, dial
from workers.rpc.messages import (
    DecisionUpdate,
    Demand,
    Drain,
    Hello,
    Hosted,
    Keep,
    PrepareBatch,
    PrepareItem,
    Records,
    Retire,
    Revoke,
    Rpc,
    Stale,
    Triggers,
    VersionCount,
    Vpcs,
    ZoneCaches,
)
from workers.rpc.transport import LOCAL, Address, Identity, label
from workers.rpc.transport import Peer as Whom
from workers.versions import VersionSpec

RETRY_S = (0.05, 1.0)

log = structlog.get_logger(__name__)


class Listener(Protocol):
    """Who hears what peers tell. Nothing here may block."""

    def on_triggers(self, triggers: Triggers) -> None: ...
    def on_records(self, records: Records) -> None: ...
    def on_outcomes(self, node: str, updates: Sequence[DecisionUpdate]) -> None: ...
    def on_node(self, node: "NodePeer", up: bool) -> None: ...
    def on_counts(self, node: "NodePeer", counts: Sequence[VersionCount]) -> None: ...
    def on_demand(self, gateway: "GatewayPeer", demand: Demand) -> None: ...


class Peer:
    """Keeps one connection up for ever."""

    def __init__(
        self,
        address: Address,
        hello: Hello,
        identity: Identity | None = None,
        expected: Whom | None = None,
        epoch: int = 0,
    ) -> None:
        self.address = address
        self.connection: Connection | None = None
        self._hello = hello
        self._identity = identity
        self._expected = expected
        self._epoch = epoch
        self._tenants: frozenset[str] = frozenset()
        self._lost = asyncio.Event()

    def set_epoch(self, epoch: int) -> None:
        """The member counts from this epoch on; one that welcomed us with an older is told so and dropped."""
        self._epoch = epoch
        if self.connection is not None and self._stale(self.connection):
            self.connection.close()

    def set_tenants(self, tenants: Collection[str]) -> None:
        """From now on; what is there of others ends by itself."""
        self._tenants = frozenset(tenants)

    @property
    def tenants(self) -> frozenset[str]:
        """Those that may be there; none: all."""
        return self._tenants

    def hosts(self, tenant: str) -> bool:
        return not self._tenants or tenant in self._tenants

    def set_whom(self, whom: Whom) -> None:
        """It is renewing its certificate: these count from now on, where it is dialled anew."""
        self._expected = whom

    async def run(self) -> None:
        delay = RETRY_S[0]
        while True:
            try:
                connection = await dial(self.address, self, self._hello, identity=self._identity, expected=self._expected)
            except RpcError as error:
                log.debug("peer.unreachable", peer=str(self.address), error=str(error))
                await asyncio.sleep(delay)
                delay = min(delay * 2, RETRY_S[1])
                continue
            if self._stale(connection):
                connection.close()
                await asyncio.sleep(RETRY_S[1])
                continue
            delay = RETRY_S[0]
            self._lost.clear()
            self.connection = connection
            connection.send(Rpc.SUBSCRIBE, 0)
            self.connected()
            try:
                await self.until_lost(connection)
            except asyncio.CancelledError:
                connection.close()
                raise

    async def until_lost(self, connection: Connection) -> None:
        """A host that is gone is noticed by the transport."""
        await self._lost.wait()

    def _stale(self, connection: Connection) -> bool:
        return False

    def connected(self) -> None: ...

    def on_open(self, connection: Connection) -> None: ...

    def on_message(self, connection: Connection, kind: int, ident: int, message: Any, body: bytes) -> None: ...

    def on_lost(self, connection: Connection, why: str) -> None:
        if self.connection is connection:
            self.connection = None
            self._lost.set()
            self.disconnected()

    def disconnected(self) -> None: ...


class GatewayPeer(Peer):
    def __init__(
        self,
        address: Address,
        hello: Hello,
        listener: Listener,
        identity: Identity | None = None,
        expected: Whom | None = None,
    ) -> None:
        super().__init__(address, hello, identity, expected)
        self._listener = listener

    @property
    def who(self) -> object:
        """What tells it from other gateways: the name it joined under; one that is no member is known by how it is reached."""
        welcome = self.connection.welcome if self.connection is not None else None
        return welcome.name if welcome is not None and welcome.name and LOCAL not in welcome.name else self

    def on_message(self, connection: Connection, kind: int, ident: int, message: Any, body: bytes) -> None:
        if kind == Rpc.TRIGGERS:
            self._listener.on_triggers(message)
        elif kind == Rpc.RECORDS:
            self._listener.on_records(message)
        elif kind == Rpc.DEMAND:
            self._listener.on_demand(self, message)


class NodePeer(Peer):
    """A node with what it last said of itself; the view placement goes by."""

    def __init__(
        self,
        address: Address,
        hello: Hello,
        listener: Listener,
        identity: Identity | None = None,
        expected: Whom | None = None,
        epoch: int = 0,
    ) -> None:
        super().__init__(address, hello, identity, expected, epoch)
        self.free_mb = 0
        self.inventories = 0  # heard so far
        self.zone = DEFAULT_ZONE
        self.standbys = 0
        self.tunnels: Collection[str] = frozenset()
        self.driver = ""
        self.free_standbys: dict[tuple[str, int], int] = {}  # by tenant and shape
        self.counts: dict[str, VersionCount] = {}
        self._listener = listener
        self._pulse = Pulse()
        self._down_since = time.monotonic()
        self._silent = False
        self._heard_epoch = -1  # the last in which it welcomed us

    @property
    def name(self) -> str:
        welcome = self.connection.welcome if self.connection is not None else None
        if welcome is not None:
            return welcome.name
        return self._expected.name if self._expected is not None and self._expected.name else label(self.address)

    def idle(self, version: str) -> int:
        count = self.counts.get(version)
        return count.idle + count.preparing if count is not None else 0

    def set_epoch(self, epoch: int) -> None:
        if epoch > self._epoch and self._down_since:
            self._down_since, self._silent = time.monotonic(), False  # it has joined again: it gets the time to be reached
        super().set_epoch(epoch)

    def sight(self) -> Sight:
        """How it looks now, for who declares members silent. One that was not reached since it joined is not ours to declare:
        others may reach it, and would lose what runs there each time it joins again."""
        member = self._expected.name if self._expected is not None else ""
        reached = member if self._heard_epoch >= self._epoch else ""
        return Sight(reached, self._epoch, self._down_since, self._silent, member)

    async def until_lost(self, connection: Connection) -> None:
        if await until_lost(self._lost, self._pulse):
            self._silent = True
            log.warning("node.silent", node=self.name)
            connection.drop(f"nothing was heard of the node for {SILENT_S} s")

    def _stale(self, connection: Connection) -> bool:
        welcome = connection.welcome
        if welcome is None or welcome.epoch >= self._epoch:
            return False
        connection.send(Rpc.STALE, 0, Stale(self._epoch))
        return True

    def connected(self) -> None:
        welcome = self.connection.welcome if self.connection is not None else None
        self._heard_epoch = welcome.epoch if welcome is not None else -1
        self._down_since, self._silent = 0.0, False
        self._listener.on_node(self, True)

    def on_lost(self, connection: Connection, why: str) -> None:
        if self.connection is connection:
            self._listener.on_node(self, False)
        super().on_lost(connection, why)

    def disconnected(self) -> None:
        self._down_since = time.monotonic()
        self.tunnels = frozenset()
        self.counts.clear()

    def on_message(self, connection: Connection, kind: int, ident: int, message: Any, body: bytes) -> None:
        self._pulse.beat()
        if kind == Rpc.OUTCOMES:
            self._listener.on_outcomes(self.name, message.updates)
        elif kind == Rpc.INVENTORY:
            self.inventories += 1
            self.free_mb, self.standbys, self.driver = message.free_mb, message.standbys, message.driver
            if message.whole:
                self.tunnels = frozenset(message.tunnels)
                self.counts.clear()
                self.free_standbys = {(one.tenant, one.memory_mb): one.count for one in message.free}
            for count in message.versions:
                self.counts[count.version] = count
            self._listener.on_counts(self, message.versions)

    @property
    def member(self) -> str:
        """Its name in the routes; empty for one that settings name."""
        return self._expected.name if self._expected is not None else ""

    def tell_caches(self, zone: str, addresses: list[str]) -> None:
        if self.connection is not None:
            self.connection.send(Rpc.CACHES, 0, ZoneCaches(zone, addresses))

    def tell_vpcs(self, vpcs: list[VpcSpec]) -> None:
        if self.connection is not None:
            for part in Vpcs.parts(vpcs):
                self.connection.send(Rpc.VPCS, 0, part)

    def define(self, spec: VersionSpec) -> None:
        connection = self.connection
        if connection is not None and spec.version not in connection.defined:
            connection.defined.add(spec.version)
            connection.send(Rpc.DEFINE, 0, spec)

    def host(self, tenant: str, specs: Sequence[VersionSpec], lease: str = "", epoch: int = 0) -> None:
        """The tenant may start here: its template and standbys are made, its code comes in the order of `specs`."""
        for spec in specs:
            self.define(spec)
        if self.connection is not None:
            self.connection.send(Rpc.HOSTED, 0, Hosted(tenant, [spec.version for spec in specs], epoch, lease))

    def fence(self, lease: str, epoch: int) -> None:
        """An order of nothing: from now on the node obeys no older epoch of this lease."""
        if self.connection is not None:
            self.connection.send(Rpc.PREPARE, 0, PrepareBatch([], epoch, lease))

    def prepare(self, items: list[PrepareItem], lease: str = "", epoch: int = 0) -> None:
        """Orders, and counts them as on their way until the node's own inventory says better: the next trigger may come first."""
        for item in items:
            if item.level == "ready" and item.delay_s <= 0:
                seen = self.counts.get(item.version) or VersionCount(item.version, 0, 0, 0)
                self.counts[item.version] = msgspec.structs.replace(seen, preparing=seen.preparing + 1)
        if self.connection is not None:
            self.connection.send(Rpc.PREPARE, 0, PrepareBatch(items, epoch, lease))

    def revoke(self, decision_ids: list[str], why: str, lease: str = "", epoch: int = 0, release: bool = False) -> None:
        """`release`: ready ones, too."""
        if self.connection is not None:
            self.connection.send(Rpc.REVOKE, 0, Revoke(decision_ids, why, epoch, lease, release))

    def keep(
        self,
        tenant: str,
        keep_s: dict[str, float] | None,
        needed_s: dict[str, float],
        lease: str = "",
        epoch: int = 0,
        more_s: dict[str, list[float]] | None = None,
    ) -> None:
        """By version, how long what is idle is worth keeping (None: as said before), and how long a live plan counts on it.
        `more_s`: how long the second instance there, the third, ... is."""
        if self.connection is not None:
            self.connection.send(Rpc.KEEP, 0, Keep(tenant, keep_s, needed_s, epoch, lease, more_s=more_s or {}))

    def hold(self, tenant: str, floor: dict[str, int], only: bool, lease: str = "", epoch: int = 0) -> None:
        """So many instances stay there; `only`: and what is idle above that goes."""
        if self.connection is not None:
            self.connection.send(Rpc.KEEP, 0, Keep(tenant, None, {}, epoch, lease, floor, only))

    def retire(self, tenant: str) -> None:
        if self.connection is not None:
            self.connection.send(Rpc.RETIRE, 0, Retire(tenant))

    def drain(self, version: str) -> None:
        if self.connection is not None:
            self.connection.send(Rpc.DRAIN, 0, Drain(version))


class Fleet:
    """All nodes there are now, as one thing to order from."""

    def __init__(self, nodes: Sequence[NodePeer]) -> None:
        self.nodes: Sequence[NodePeer] = nodes

    def up(self) -> list[NodePeer]:
        return [node for node in self.nodes if node.connection is not None]

    def idle(self, version: str) -> int:
        """Idle or on its way, nobody's yet, on all nodes together."""
        return sum(node.idle(version) for node in self.nodes)

    def free_standbys(self, tenant: str) -> Counter[int]:
        """By memory shape, on all nodes together: those that nobody spoke for, as they were a second ago at most."""
        found: Counter[int] = Counter()
        for node in self.up():
            for (owner, memory_mb), count in node.free_standbys.items():
                if owner in (tenant, ""):  # empty: they are shared
                    found[memory_mb] += count
        return found

    def driver_of(self, node: str) -> str:
        """Empty while nothing is known of it."""
        return next((one.driver for one in self.nodes if one.name == node), "")

    def forget_idle(self, functions: set[str]) -> None:
        """Their idle instances were just given up: do not count on them until the next inventory says what there is."""
        for node in self.nodes:
            for version, count in node.counts.items():
                if function_of(VersionId(version)) in functions:
                    node.counts[version] = msgspec.structs.replace(count, idle=0, preparing=0)

    async def ask_all(self, what: str, **args: object) -> list[Any]:
        """The answers of all nodes that are up. Raises RpcError when one refuses or none is up."""
        nodes = [node.connection for node in self.up() if node.connection is not None]
        if not nodes:
            raise RpcError("no node is reachable")
        return list(await asyncio.gather(*(node.ask(what, 5.0, **args) for node in nodes)))
