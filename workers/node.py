"""The node: serves its RPC socket, routes messages to the request path and to decisions, tells subscribers what changes."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import structlog

from graph.ids import function_id
from graph.plans import Outcome
from workers.admission import CoreGate, MemoryLedger
from workers.callers import CallerList
from workers.decisions import DecisionBook
from workers.execution import START_BUSY_S, Execution
from workers.function_templates import Rules
from workers.held_standbys import HeldStandbys
from workers.init_order import InitOrder
from workers.logs import LogStore
from workers.network.none import NoPlane
from workers.networks import VpcSpec
from workers.ports import CodeTier, CodeUnavailable, Driver, IsolationReport
from workers.preparation import Preparer
from workers.rpc.connection import Connection, Listening, listen
from workers.rpc.messages import (
    Caller,
    DecisionUpdate,
    Drain,
    Hosted,
    InvokeRequest,
    InvokeResult,
    Keep,
    Outcomes,
    PrepareBatch,
    PrepareItem,
    Revoke,
    Rpc,
)
from workers.rpc.messages import Inventory as InventoryMessage
from workers.rpc.transport import Address, Identity
from workers.sealing import Sealer
from workers.standbys import StandbyPool
from workers.standing import Standing
from workers.templating import FunctionTemplates
from workers.tunnelling import Tunnels
from workers.versions import VersionSpec

SPECS = 10_000
TELL_EVERY_S = 0.002
HEARTBEAT_S = 1.0
PREFETCHES = 2
ONCE_A_SECOND = 1  # the id of a SUBSCRIBE whose sender wants no more than the heartbeat
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
        self.decisions = DecisionBook(self._tell_decision)
        self.held = HeldStandbys(self._standbys, self.decisions, self._start_began)
        preparer = Preparer(driver, self._standbys, self.held, self._gate, order, code, sealer, self.templates, self.tunnels)
        self.execution = Execution(preparer, memory, self._logs, self._counts_moved, self._start_began)
        self.execution.decisions = self.decisions
        self._specs: OrderedDict[str, VersionSpec] = OrderedDict()
        self._connections: set[Connection] = set()
        self._subscribers: set[Connection] = set()
        self._vpcs_told: dict[Connection, list[VpcSpec]] = {}
        """Of a planner that has not said all of them yet."""
        self._watchers: set[Connection] = set()  # hear the heartbeat only
        self._updates: list[DecisionUpdate] = []
        self._tell_handle: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._planned: dict[str, VersionSpec] = {}  # by open decision: code that a plan keeps
        self._prefetching = asyncio.Semaphore(PREFETCHES)
        self.standing = Standing(self._void)
        self.on_caches: Callable[[Sequence[str]], None] = lambda addresses: None  # of tier 2, whenever a planner tells them
        self.callers = CallerList()
        self.on_callers: Callable[[Sequence[Caller]], None] = lambda callers: None  # whenever control told them
        self._serving = False
        self._retired: set[str] = set()  # tenants; a name is never given again, so this is for good
        self._loop = asyncio.get_running_loop()
        self._orders: dict[int, Callable[[Connection, Any], None]] = {
            Rpc.DEFINE: lambda _, message: self._define(message),
            Rpc.PREPARE: self._prepare,
            Rpc.REVOKE: self._revoke,
            Rpc.HOSTED: self._host,
            Rpc.KEEP: self._keep_for,
            Rpc.DRAIN: lambda _, message: self._drain(message),
            Rpc.RETIRE: lambda _, message: self._keep(self._retire(message.tenant)),
        }
        self._answers = {
            "logs": self._answer_logs,
            "isolation": self._answer_isolation,
            "state": self._answer_state,
            "cool": self._answer_cool,
            "counts": self._answer_counts,
            "templates": self._answer_templates,
            "code": self._answer_code,
            "tunnels": self._answer_tunnels,
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
        servers = [await listen(one, self, secret, told, self._answers, identity) for one in addresses]
        self._serving = True
        self.tunnels.start()
        try:
            while True:
                await asyncio.sleep(HEARTBEAT_S)
                self.execution.sweep_idle(self._idle_s)
                self._tell_whole()
        finally:
            for server in servers:
                server.close()
            await self.standing.stop()
            for task in self._tasks:
                task.cancel()
            await self.held.end("the node stops")
            await self._standbys.stop()
            await self.templates.stop()
            await self.execution.stop()
            await self.tunnels.stop()
            for spec in self._planned.values():
                self._code.unpin(spec)
            self._planned.clear()
            for connection in list(self._connections):
                connection.close()
            for address in addresses:
                if isinstance(address, Path):
                    address.unlink(missing_ok=True)

    async def _void(self) -> None:
        """Nothing this node holds counts any more."""
        why = "the cluster counts without this node: it joins again"
        await self.held.end(why)
        await self.execution.end_all(why)
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
        self._watchers.discard(connection)
        self.execution.connection_lost(connection)
        log.info("peer.lost", role=connection.peer.role, peer=connection.peer.name, why=why)

    def on_message(self, connection: Connection, kind: int, ident: int, message: Any, body: bytes) -> None:
        if kind == Rpc.INVOKE:
            self._invoke(connection, ident, message, body)
        elif kind == Rpc.CALL_RESULT:
            self.execution.call_result(connection, ident, message, body)
        elif kind == Rpc.CANCEL:
            self.execution.cancel(connection, ident)
        elif (order := self._orders.get(kind)) is not None:
            order(connection, message)
        elif kind == Rpc.SUBSCRIBE:
            self._subscribe(connection, ident)
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

    def _subscribe(self, connection: Connection, how: int) -> None:
        wanted, other = self._subscribers, self._watchers
        if how == ONCE_A_SECOND:
            wanted, other = other, wanted
        wanted.add(connection)
        other.discard(connection)
        self._tell_whole()

    def _define(self, spec: VersionSpec) -> None:
        if spec.tenant in self._retired:
            return
        self._specs[spec.version] = spec
        self.execution.draining.discard(spec.version)
        self._specs.move_to_end(spec.version)
        if len(self._specs) > SPECS:
            forgotten, _ = self._specs.popitem(last=False)
            self.execution.draining.discard(forgotten)
        self._standbys.want(spec.tenant, spec.memory_mb)

    def _invoke(self, connection: Connection, stream: int, request: InvokeRequest, body: bytes) -> None:
        spec = self._specs.get(request.version)
        if spec is None:
            connection.send(Rpc.RESULT, stream, InvokeResult("unknown-version"))
        elif request.version in self.execution.draining:
            connection.send(Rpc.RESULT, stream, InvokeResult("draining"))
        else:
            self.execution.invoke(connection, stream, request, body, spec)

    def _obeys(self, connection: Connection, lease: str, epoch: int) -> bool:
        """Leases are the planner's; what the control flow orders for a new version holds whoever plans."""
        return connection.peer.role == "flow" or self.standing.obeys(lease, epoch)

    def _prepare(self, connection: Connection, batch: PrepareBatch) -> None:
        obeyed = self._obeys(connection, batch.lease, batch.epoch)
        if obeyed:
            self.decisions.void(batch.lease, batch.epoch)
            self._expect_standbys(batch)
        for item in batch.items:
            if not obeyed:
                self._tell_decision(DecisionUpdate(item.decision_id, "cancelled", time.time(), detail="older epoch"))
            elif item.level == "code":
                self._fetch_only(item)
            elif item.decision_id not in self.decisions:  # the same order again: it stands, and ends once
                self._expect_code(item)
                if not self.decisions.accept(item, self._begin_decision, (batch.lease, batch.epoch)):
                    why = "too many open decisions"
                    self._tell_decision(DecisionUpdate(item.decision_id, "cancelled", time.time(), detail=why))

    def _begin_decision(self, item: PrepareItem) -> None:
        spec, needed_at = self._specs.get(item.version), time.monotonic() + item.needed_in_s
        if spec is None or item.version in self.execution.draining:
            self.decisions.lost(item.decision_id, "the node does not know this version" if spec is None else "draining")
        elif item.level == "standby":
            self.held.hold(item.decision_id, spec.tenant, spec.memory_mb, item.trace_id, needed_at)
        elif self.execution.begin(spec, needed_at, item.decision_id, trace_id=item.trace_id, probe=item.probe) is None:
            self.decisions.lost(item.decision_id, "no memory left on the node")

    def _expect_standbys(self, batch: PrepareBatch) -> None:
        """As many as the plan draws are kept while it lives: where one is dear, the next plan must find as many."""
        shapes = {
            item.decision_id: (spec.tenant, spec.memory_mb)
            for item in batch.items
            if item.level != "code" and (spec := self._specs.get(item.version)) is not None
        }
        self._standbys.plan(shapes)

    def _expect_code(self, item: PrepareItem) -> None:
        """What a plan wants keeps its place in tier 1 until the plan is over, and comes now when the instance is for later."""
        spec = self._specs.get(item.version)
        if spec is None or item.level == "standby":
            return
        self._planned[item.decision_id] = spec
        self._code.pin(spec)
        if item.delay_s > 0 and not self._code.held(spec):
            self._keep(self._fetch(spec))

    def _host(self, connection: Connection, message: Hosted) -> None:
        if message.tenant in self._retired or not self._obeys(connection, message.lease, message.epoch):
            return
        known = [spec for version in message.versions if (spec := self._specs.get(version)) is not None]
        self._code.bring(message.tenant, [spec for spec in known if spec.tenant == message.tenant])

    def _keep_for(self, connection: Connection, message: Keep) -> None:
        """Only a planner knows what is worth keeping."""
        if connection.peer.role != "planner" or message.tenant in self._retired:
            return
        if self.standing.obeys(message.lease, message.epoch):
            now = time.monotonic()
            if message.keep_s is not None:
                self.execution.keeps.tell(message.tenant, message.keep_s, now)
            self.execution.keeps.need(message.tenant, message.needed_s, now)
            if message.floor is not None:
                self.execution.keeps.hold(message.tenant, message.floor, message.only, now)

    def _fetch_only(self, item: PrepareItem) -> None:
        spec = self._specs.get(item.version)
        if spec is None or self._code.held(spec):
            return
        self._keep(self._fetch(spec))

    async def _fetch(self, spec: VersionSpec) -> None:
        """A few at a time: a planner that connects asks for everything at once. No turn at the cores: that is for starts."""
        try:
            async with self._prefetching:
                await self._code.bring_ahead(spec)
        except CodeUnavailable as error:
            log.warning("code.prefetch_failed", version=spec.version, error=str(error))

    def _revoke(self, connection: Connection, message: Revoke) -> None:
        """What is not ready yet is given up. A ready one costs nothing more than to keep it for its lifetime, and goes only when
        the order says so."""
        if not self._obeys(connection, message.lease, message.epoch):
            return
        for decision_id in message.decision_ids:
            if decision_id in self.decisions and (message.release or not self.decisions.is_ready(decision_id)):
                self.held.give_up(decision_id)
                self.execution.give_up(decision_id, message.why)
                self.decisions.lost(decision_id, message.why)

    def _drain(self, message: Drain) -> None:
        """None is made any more, idle ones go now, busy ones when they are done. Forgotten with the spec."""
        if message.version in self._specs:
            self.execution.draining.add(message.version)
            self.execution.keeps.forget_version(message.version)
        self.templates.drop(message.version, "draining")
        for instance in self.execution.table.of(message.version):
            if not instance.live and not instance.waiting:
                self.execution.kill(instance, "draining")

    async def _retire(self, tenant: str) -> None:
        """Told again by each planner that connects: what is done already costs nothing."""
        self._retired.add(tenant)
        for version in [name for name, spec in self._specs.items() if spec.tenant == tenant]:
            del self._specs[version]
            self.execution.draining.discard(version)
        self.execution.keeps.forget_tenant(tenant)
        await self.execution.end_tenant(tenant)
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

    # -- telling

    def _start_began(self) -> None:
        self._standbys.busy_until = self.templates.busy_until = time.monotonic() + START_BUSY_S

    def _counts_moved(self) -> None:
        if self._subscribers and self._tell_handle is None:
            self._tell_handle = self._loop.call_later(TELL_EVERY_S, self._tell)

    def _tell_decision(self, update: DecisionUpdate) -> None:
        if update.outcome in ENDS:
            self._standbys.over(update.decision_id)
        if update.outcome in ENDS and (spec := self._planned.pop(update.decision_id, None)) is not None:
            self._code.unpin(spec)  # its instance, if there is one, has a pin of its own
        self._updates.append(update)
        del self._updates[:-SPECS]
        self._counts_moved()

    def _tell(self) -> None:
        self._tell_handle = None
        execution = self.execution
        if self._updates:
            outcomes = Outcomes(self._updates)
            self._updates = []
            for subscriber in self._subscribers:
                subscriber.send(Rpc.OUTCOMES, 0, outcomes)
        if execution.table.changed:
            changed = [execution.table.count(version) for version in execution.table.changed]
            execution.table.changed.clear()
            message = InventoryMessage(changed, execution.memory.free_mb, self.standbys, driver=self.report.driver)
            for subscriber in self._subscribers:
                if not subscriber.congested:
                    subscriber.send(Rpc.INVENTORY, 0, message)

    def _tell_whole(self) -> None:
        execution = self.execution
        execution.table.changed.clear()
        counts = execution.table.counts()
        free, driver = self._standbys.counts(), self.report.driver
        message = InventoryMessage(
            counts,
            execution.memory.free_mb,
            self.standbys,
            whole=True,
            driver=driver,
            free=free,
            tunnels=self.tunnels.reached(),
        )
        for subscriber in (*self._subscribers, *self._watchers):
            if not subscriber.congested:
                subscriber.send(Rpc.INVENTORY, 0, message)

    # -- questions

    async def _answer_logs(self, args: Mapping[str, Any]) -> object:
        function = function_id(args["tenant"], args["function"])
        return self._logs.read(function, args.get("invocation", ""), int(args.get("limit", 100)), time.time())

    async def _answer_isolation(self, args: Mapping[str, Any]) -> object:
        return msgspec.to_builtins(self.report)

    async def _answer_counts(self, args: Mapping[str, Any]) -> object:
        tenant, now = f"{args['tenant']}/", time.monotonic()
        return [
            {**msgspec.structs.asdict(count), "keep_s": self._kept_s(count.version, now)}
            for count in self.execution.table.counts()
            if count.version.startswith(tenant)
        ]

    def _kept_s(self, version: str, now: float) -> float:
        worth_s = self.execution.keeps.of(version, now)
        return self._idle_s if worth_s is None else min(worth_s, self._idle_s)

    async def _answer_templates(self, args: Mapping[str, Any]) -> object:
        return [
            {
                "version": one.version,
                "standing": one.standing.value,
                "reason": one.reason,
                "init_ms": round(one.init_ms, 1),
                "memory_mb": one.memory_mb,
                "clones": one.made,
            }
            for one in self.templates.of(args["tenant"])
        ]

    async def _answer_code(self, args: Mapping[str, Any]) -> object:
        return {name: msgspec.to_builtins(one) for name, one in self._code.report_of(str(args["tenant"])).items()}

    async def _answer_tunnels(self, args: Mapping[str, Any]) -> object:
        await self.tunnels.settled()
        return {"node": self.name, **self.tunnels.told_to(str(args["tenant"])), "reached": self.tunnels.reached()}

    async def _answer_cool(self, args: Mapping[str, Any]) -> object:
        functions = {str(function_id(args["tenant"], name)) for name in args["names"]}
        return {"cooled": self.execution.cool(functions)}

    async def _answer_state(self, args: Mapping[str, Any]) -> object:
        memory = self.execution.memory
        return {
            "name": self.name,
            "isolation": msgspec.to_builtins(self.report),
            "instances": len(self.execution.table),
            "standbys": self.standbys,
            "memory_mb": {"total": memory.total_mb, "promised": memory.used_mb},
            "open_decisions": len(self.decisions),
            "code": msgspec.to_builtins(self._code.report()),
            "templates": {**self.templates.standings, "memory_mb": self.templates.held_mb},
            "tunnels": {"backend": self.tunnels.plane.backend, "reason": self.tunnels.plane.reason, **self.tunnels.counts()},
        }
