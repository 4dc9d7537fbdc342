"""The node: its parts put together, its RPC sockets, and each message to the part it is for."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import structlog

from graph.plans import Outcome
from workers.admission import CoreGate, MemoryLedger
from workers.callers import CallerList
from workers.decisions import DecisionBook
from workers.execution import Execution
from workers.function_templates import Rules
from workers.held_standbys import HeldStandbys
from workers.init_order import InitOrder
from workers.logs import LogStore
from workers.network.none import NoPlane
from workers.networks import VpcSpec
from workers.orders import Orders
from workers.planned_code import PlannedCode
from workers.ports import CodeTier, Driver, IsolationReport
from workers.preparation import Preparer
from workers.questions import Questions
from workers.rpc.connection import Connection, Listening, listen
from workers.rpc.messages import Caller, DecisionUpdate, Inventory, InvokeRequest, InvokeResult, Rpc
from workers.rpc.transport import Address, Identity
from workers.sealing import Sealer
from workers.standbys import StandbyPool
from workers.standing import Standing
from workers.subscribers import Subscribers
from workers.templating import FunctionTemplates
from workers.tunnelling import Tunnels

HEARTBEAT_S = 1.0
START_BUSY_S = 0.2  # standbys are not refilled this long after a start began
NO_TEMPLATES = Rules(0, 0)
ENDS = (Outcome.HIT, Outcome.LATE, Outcome.WASTED, Outcome.CANCELLED)

log = structlog.get_logger(__name__)


class Node:
    """One host's instances. Made by workers.bootstrap; `serve` runs until cancelled."""

    def __init__(
        self,
        name: str,
        driver: Driver,
        code: CodeTier,
        sealer: Sealer,
        report: IsolationReport,
        memory_mb: int,
        cores: int,
        standbys: int,
        idle_s: float,
        templates: Rules = NO_TEMPLATES,
        tunnels: Tunnels | None = None,
    ) -> None:
        self.name = name
        self._driver = driver
        self._code = code
        self.report = report
        self._idle_s = idle_s
        self._gate = CoreGate(cores)
        self.tunnels = tunnels if tunnels is not None else Tunnels(NoPlane())
        self._standbys = StandbyPool(driver, self._gate, standbys, self.tunnels)
        self._logs = LogStore()
        memory, order = MemoryLedger(memory_mb, driver.traits.beside_mb), InitOrder(cores)
        self.templates = FunctionTemplates(driver, code, sealer, memory, order, templates)
        self.decisions = DecisionBook(self._decided)
        self.held = HeldStandbys(self._standbys, self.decisions, self._start_began)
        preparer = Preparer(driver, self._standbys, self.held, self._gate, order, code, sealer, self.templates, self.tunnels)
        self._subscribers = Subscribers(self._changes, self._whole)
        self.execution = Execution(preparer, memory, self.decisions, self._logs, self._subscribers.moved, self._start_began)
        self.instances, self.idling = self.execution.instances, self.execution.idling
        self.standing = Standing(self._void)
        self._planned = PlannedCode(code, self._keep)
        self._orders = Orders(
            self.execution,
            self.decisions,
            self._standbys,
            self.held,
            self.templates,
            code,
            self._planned,
            self.standing,
            self._decided,
        )
        self._specs = self._orders.specs
        self._questions = Questions(
            name,
            report,
            idle_s,
            self.execution,
            self.decisions,
            self.templates,
            code,
            self.tunnels,
            self._logs,
            lambda: self.standbys,
        )
        self._connections: set[Connection] = set()
        self._vpcs_told: dict[Connection, list[VpcSpec]] = {}
        """Of a planner that has not said all of them yet."""
        self._tasks: set[asyncio.Task[None]] = set()
        self.on_caches: Callable[[Sequence[str]], None] = lambda addresses: None  # of tier 2, whenever a planner tells them
        self.callers = CallerList()
        self.on_callers: Callable[[Sequence[Caller]], None] = lambda callers: None  # whenever control told them
        self._serving = False
        self._loop = asyncio.get_running_loop()
        self._handlers: dict[int, Callable[[Connection, Any], None]] = {
            **self._orders.handlers,
            Rpc.RETIRE: lambda _, message: self._keep(self._retire(message.tenant)),
        }

    @property
    def serving(self) -> bool:
        return self._serving

    @property
    def peers(self) -> list[str]:
        """The roles of those connected now."""
        return [connection.peer.role for connection in self._connections]

    @property
    def standbys(self) -> int:
        """Waiting for anybody, and held for decisions."""
        return len(self._standbys) + len(self.held)

    @property
    def steps_waiting(self) -> int:
        return self._gate.waiting

    async def serve(self, where: Path | Sequence[Address], secret: str, identity: Identity | None = None) -> None:
        """Listens until cancelled, then ends every instance and standby. Raises OSError, NotTrusted before it listens."""
        addresses = [where] if isinstance(where, Path) else where
        self._standbys.start()
        self.templates.start()
        told = Listening(self.name, "node", lambda: self.standing.epoch, self.callers.admits)
        servers = [await listen(one, self, secret, told, self._questions.answers, identity) for one in addresses]
        self._serving = True
        self.tunnels.start()
        try:
            while True:
                await asyncio.sleep(HEARTBEAT_S)
                self.idling.sweep(self._idle_s)
                self._subscribers.heartbeat()
        finally:
            for server in servers:
                server.close()
            await self.standing.stop()
            for task in self._tasks:
                task.cancel()
            await self.held.end("the node stops")
            await self._standbys.stop()
            await self.templates.stop()
            await self.instances.stop()
            await self.tunnels.stop()
            self._planned.close()
            for connection in list(self._connections):
                connection.close()
            for address in addresses:
                if isinstance(address, Path):
                    address.unlink(missing_ok=True)

    async def _void(self) -> None:
        """Nothing this node holds counts any more."""
        why = "the cluster counts without this node: it joins again"
        await self.held.end(why)
        await self.instances.end_all(why)
        for connection in list(self._connections):
            connection.close()

    # -- Owner of connections

    def on_open(self, connection: Connection) -> None:
        self._connections.add(connection)
        self.standing.obeys("", connection.peer.epoch)

    def on_lost(self, connection: Connection, why: str) -> None:
        self._connections.discard(connection)
        self._subscribers.discard(connection)
        self._vpcs_told.pop(connection, None)
        self.execution.connection_lost(connection)
        log.info("peer.lost", role=connection.peer.role, peer=connection.peer.name, why=why)

    def on_message(self, connection: Connection, kind: int, ident: int, message: Any, body: bytes) -> None:
        if kind == Rpc.INVOKE:
            self._invoke(connection, ident, message, body)
        elif kind == Rpc.CALL_RESULT:
            self.execution.calls.answered(connection, ident, message, body)
        elif kind == Rpc.CANCEL:
            self.execution.cancel(connection, ident)
        elif (handler := self._handlers.get(kind)) is not None:
            handler(connection, message)
        elif kind == Rpc.SUBSCRIBE:
            self._subscribers.add(connection, ident)
        else:
            self._of_the_cluster(connection, kind, message)

    # -- messages

    def _of_the_cluster(self, connection: Connection, kind: int, message: Any) -> None:
        """What a node does not ask the catalog for: each from who is to tell it."""
        if kind == Rpc.STALE:
            self.standing.told_stale(message.epoch)
        elif kind == Rpc.CACHES and connection.peer.role == "planner":
            self.on_caches(message.addresses)
        elif kind == Rpc.VPCS and connection.peer.role == "planner":
            told = [*self._vpcs_told.pop(connection, ()), *message.vpcs]
            if message.more:
                self._vpcs_told[connection] = told
            else:
                self._keep(self.tunnels.use(told))
        elif kind == Rpc.CALLERS and connection.peer.role == "control":
            self._take_callers(message.callers)

    def _take_callers(self, callers: Sequence[Caller]) -> None:
        connected = {one: one.certified for one in self._connections if one.certified is not None}
        gone = set(self.callers.tell(callers, connected.values()))
        for connection, peer in connected.items():
            if peer in gone:
                log.warning("peer.gone", role=peer.role, peer=peer.name)
                connection.drop("it is no member of this cluster any more")
        self.on_callers(callers)

    def _invoke(self, connection: Connection, stream: int, request: InvokeRequest, body: bytes) -> None:
        spec = self._specs.get(request.version)
        if spec is None:
            connection.send(Rpc.RESULT, stream, InvokeResult("unknown-version"))
        elif request.version in self.execution.draining:
            connection.send(Rpc.RESULT, stream, InvokeResult("draining"))
        else:
            self.execution.invoke(connection, stream, request, body, spec)

    async def _retire(self, tenant: str) -> None:
        """Told again by each planner that connects: what is done already costs nothing."""
        self._orders.retire(tenant)
        await self.instances.end_tenant(tenant)
        await self.templates.forget(tenant)
        await self.held.end("its tenant is gone", tenant)
        await self._standbys.forget(tenant)
        await self.tunnels.forget(tenant)
        await self._code.forget(tenant)
        await self._driver.retire(tenant)
        self._logs.forget_tenant(tenant)
        log.info("tenant.retired", tenant=tenant)

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- what its parts tell

    def _start_began(self) -> None:
        self._standbys.busy_until = self.templates.busy_until = time.monotonic() + START_BUSY_S

    def _decided(self, update: DecisionUpdate) -> None:
        if update.outcome in ENDS:
            self._standbys.over(update.decision_id)
            self._planned.over(update.decision_id)
        self._subscribers.decided(update)

    def _changes(self) -> Inventory | None:
        """Of versions whose counts have moved since this was asked last."""
        table = self.instances.table
        if not table.changed:
            return None
        changed = [table.count(version) for version in table.changed]
        table.changed.clear()
        return Inventory(changed, self.instances.memory.free_mb, self.standbys, driver=self.report.driver)

    def _whole(self) -> Inventory:
        table = self.instances.table
        table.changed.clear()
        return Inventory(
            table.counts(),
            self.instances.memory.free_mb,
            self.standbys,
            whole=True,
            driver=self.report.driver,
            free=self._standbys.counts(),
            tunnels=self.tunnels.reached(),
        )
