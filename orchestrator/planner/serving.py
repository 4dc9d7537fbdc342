"""The planner process: peers, routes, the OTLP listener, snapshots, and the questions of control, in one event loop."""

import asyncio
import contextlib
import hashlib
import os
import socket
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import structlog
import uvicorn
import uvloop
from sqlalchemy.exc import SQLAlchemyError

from graph.callgraph import CallGraph
from graph.ids import FunctionId, TenantId, VersionId, tenant_of
from graph.plans import Budget
from graph.snapshot import SnapshotError
from graph.snapshot import dump as dump_graph
from graph.snapshot import load as load_graph
from orchestrator.catalog.leases import planner_lease
from orchestrator.catalog.nudge import Nudge
from orchestrator.catalog.releases import Releases
from orchestrator.catalog.routes import NodeRoute, Route, TenantRoute
from orchestrator.catalog.store import Store
from orchestrator.catalog.watch import RouteTable, RouteWatcher
from orchestrator.heads import bounded_by_address
from orchestrator.members import LOCAL, Members, admit
from orchestrator.membership import Self
from orchestrator.ops.listener import Operations
from orchestrator.ops.routes import RouteMetrics
from orchestrator.planner.activity import Activity
from orchestrator.planner.caches import CacheNews
from orchestrator.planner.homes import Homes
from orchestrator.planner.insight import Insight
from orchestrator.planner.leadership import Leadership
from orchestrator.planner.learning import Learner
from orchestrator.planner.log import DecisionLog
from orchestrator.planner.loop import PlannerLoop
from orchestrator.planner.metrics import PlannerMetrics, planner_checks
from orchestrator.planner.naming import Names
from orchestrator.planner.peers import Fleet, GatewayPeer, NodePeer
from orchestrator.planner.releasing import Releasing
from orchestrator.planner.runs import RunBook
from orchestrator.planner.scaling import Scaling
from orchestrator.planner.state import FORMAT, PlannerState, load, lock, save, set_aside
from orchestrator.planner.teaching import Teaching
from orchestrator.planner.vigil import SEEN_EVERY_S, heard, overdue, unheard
from orchestrator.planner.vpcs import Reached, VpcNews
from orchestrator.planner.watching import Watching
from orchestrator.renewal import keep_certified
from orchestrator.scaling.reconciling import Allowance
from orchestrator.settings import Settings, rpc_secret
from orchestrator.zones import DEFAULT_ZONE, zone_of
from tracing.assembly import Assembler
from tracing.export import Exporter
from tracing.incoming import SETTLED_AT_ONCE
from tracing.receiver import receiver_app
from tracing.spans import Span
from workers.rpc.connection import Connection, Listening, listen
from workers.rpc.messages import DecisionUpdate, Hello, Records, Triggers, VersionCount
from workers.rpc.messages import Demand as DemandTold
from workers.rpc.transport import Address, Identity, Peer
from workers.sealing import load_key
from workers.versions import VersionSpec

AWAY_S = 1.0
SAVE_EVERY_S = 5.0
TICK_S = 0.1
LOOK_AT_TUNNELS_S = 2.0
STOP_S = 2.0
OTLP_CONNECTIONS, OTLP_PER_ADDRESS = 500, 100
OTLP_HEAD_S = 10.0
"""Whoever has no key can open connections all the same: an address has its part of them, and each must say who it is soon."""

_EPOCH = time.time() - time.monotonic()

log = structlog.get_logger(__name__)


def steady() -> float:
    """Seconds since the Unix epoch, as the clock stood when this process began: they go on evenly when it is set. What waits for
    a moment waits by these; an hour back, and nothing would be learned for an hour."""
    return _EPOCH + time.monotonic()


class Planner:
    """Everything of one planner process, wired. Hears peers; `tick` and `save` are called by the loop in `serve`."""

    def __init__(self, settings: Settings, secret: str, name: str, identity: Identity | None = None) -> None:
        self.zone = settings.zone or DEFAULT_ZONE
        self.path = settings.planner_folder / "state"
        stored = load(self.path)
        self.graph = _restore(stored.graph, self.path) if stored is not None else CallGraph()
        self.table = RouteTable(
            self._route_changed,
            self._version_gone,
            self._tenant_changed,
            self._member_changed,
            lambda name, spec: self.vpcs.changed(),
        )
        self.caches = CacheNews(self.table.nodes, settings.zone)
        self.decisions = DecisionLog(stored.decisions if stored is not None else None)
        self.runs = RunBook(stored.runs if stored is not None else None)
        self.learner = Learner(self.graph, self.runs)
        self.leadership: Leadership | None = None  # None: nobody else is there to decide
        self.activity = Activity()
        for records in self.runs.all().values():
            self.activity.add(records)
        hello = Hello("planner", name, secret)

        def node(address: Address, whom: Peer, epoch: int) -> NodePeer:
            return NodePeer(address, hello, self, identity, whom, epoch)

        def gateway(address: Address, whom: Peer, epoch: int) -> GatewayPeer:
            return GatewayPeer(address, hello, self, identity, whom)

        self.fleet = Fleet([])
        self.vpcs = VpcNews(self.table.vpcs, lambda: self.fleet.nodes)
        self.homes = Homes(self.fleet, self._current, self.right, lambda: self.activity.calls(time.time()), self._home)
        self.nodes = Members("node", node, self._nodes_changed, partial(_died, self))
        self.gateways = Members("gateway", gateway, lambda peers: None, partial(_died, self))
        self._local_nodes = [node(at, Peer("node", ""), 0) for at in settings.node_addresses]
        self._local_gateways = [gateway(at, Peer("gateway", ""), 0) for at in settings.gateway_addresses]
        budget = Budget(
            settings.prewarm_instances, settings.prewarm_memory_mb, settings.prewarm_unused_s, settings.prewarm_idle_s_per_busy_s
        )
        self.loop = PlannerLoop(
            self.graph,
            self.table,
            self.fleet,
            self.decisions,
            budget,
            settings.prewarm,
            dict(stored.policies) if stored is not None else {},
            self.right,
            stored.learned if stored is not None else None,
            settings.keep_price,
        )
        self.scaling = Scaling(
            settings.scaling,
            self.graph,
            self.table,
            self.fleet,
            self.decisions,
            self.loop.dispatch,
            self.right,
            lambda tenant: self.loop.policy_of(tenant) != "off",
            lambda tenant: Allowance(settings.scaling_instances or None, settings.scaling_memory_mb or None),
            lambda version: self.loop.accounts.setbacks.resting(version, time.monotonic()),
        )
        self.watching = Watching()
        self.releasing: Releasing | None = None  # None: nobody reads the catalog here
        self.rules = settings.release_rules
        self.names = Names(stored.names if stored is not None else None)
        self.assembler = Assembler(names=self.names.of)
        self.exporter = Exporter(settings.otel_endpoint)
        self._removed: set[str] = set()  # tenants; what still comes of them is nobody's
        self._saved_revision: tuple[object, ...] = ()

    def connect(self) -> None:
        """Dials everybody, from now on."""
        self.nodes.start(self._local_nodes)
        self.gateways.start(self._local_gateways)

    async def disconnect(self) -> None:
        await asyncio.gather(self.nodes.stop(), self.gateways.stop())

    def right(self, tenant: str) -> tuple[str, int] | None:
        """The lease and epoch under which orders for this tenant go out now; None while another planner decides for it."""
        return self.leadership.epoch(tenant) if self.leadership is not None else ("", 0)

    def release(self, releases: Releases, nudge: Nudge) -> Releasing:
        """Releases are run here, from the catalog."""
        releasing = Releasing(
            releases,
            nudge,
            self.fleet,
            self.loop.forecasts,
            self.decisions,
            self.scaling,
            self.watching,
            self.right,
            self.rules,
            lambda: self.gateways.peers,
        )
        self.loop.released = lambda: releasing.held
        self.releasing = releasing
        return releasing

    def took_over(self, lease: str, epoch: int) -> None:
        """First every node hears of it, so that none obeys the one before any more; then it is ours to bring code."""
        for node in self.fleet.up():
            node.fence(lease, epoch)
        self.homes.took_over()
        self.loop.keeping.took_over()
        self.scaling.took_over()

    def _nodes_changed(self, nodes: list[NodePeer]) -> None:
        for node in nodes:
            route = self.table.nodes.get(node.member)
            node.zone = zone_of(route) if route is not None else self.zone
        self.fleet.nodes = nodes

    def _member_changed(self, name: str, route: NodeRoute | None) -> None:
        self.nodes.on_node(name, route)
        self.gateways.on_node(name, route)
        self.caches.on_member(name, route, self.fleet.nodes)
        if route is not None and route.role == "node":
            self.vpcs.changed()  # it may host others now

    # -- what peers and routes tell

    def on_triggers(self, triggers: Triggers) -> None:
        for event in triggers.events:
            if not self._removed or tenant_of(VersionId(event.version)) not in self._removed:
                self.loop.on_event(event)
                self.scaling.called(event)

    def on_records(self, records: Records) -> None:
        known = records.records
        if self._removed:
            known = [one for one in known if one.tenant not in self._removed]
        self.learner.add(known, records.dropped, steady())
        self.activity.add(known)
        self.loop.accounts.records(known)
        self.loop.keeping.observe(known, records.dropped)
        self.scaling.records(known)
        self.watching.observe(known)
        self.exporter.submit(known)

    def on_outcomes(self, node: str, updates: Sequence[DecisionUpdate]) -> None:
        self.loop.on_outcomes(updates, node)

    def on_node(self, node: NodePeer, up: bool) -> None:
        if not up:
            lost = self.decisions.lost_node(node.name, time.time())
            # in the next turn: until then the node still counts as up
            asyncio.get_running_loop().call_soon(self.loop.decide_again, lost, node.name)
            return
        if self.table.loaded.is_set():  # else it would hear that there are none
            self.caches.tell(node)
            self.vpcs.tell(node)
        for lease, epoch in self.leadership.held() if self.leadership is not None else ():
            node.fence(lease, epoch)
        for tenant in self.table.tenants.values():
            if tenant.removed:
                node.retire(tenant.tenant)
        self.homes.node_came(node)
        self.loop.keeping.node_came(node)
        self.scaling.node_came(node)

    def on_demand(self, gateway: GatewayPeer, demand: DemandTold) -> None:
        self.scaling.demand(gateway, demand)

    def on_counts(self, node: NodePeer, counts: Sequence[VersionCount]) -> None:
        self.homes.seen(node, counts)

    def _route_changed(self, function: FunctionId, route: Route | None) -> None:
        self.homes.function_changed(function, route is not None)
        self.scaling.route_changed(function, self._current(function))
        if route is None:
            self.graph.forget(function)
            return
        tenant, now = function.partition("/")[0], time.time()
        spec = self.table.version(route, "")
        callees = [FunctionId(f"{tenant}/{name}") for name in route.calls]
        self.graph.declare(function, callees, spec.memory_mb if spec is not None else 128, now)

    def _tenant_changed(self, name: str, route: TenantRoute | None) -> None:
        """A removed tenant stays in the routes, so that a planner that was away forgets it too."""
        if route is None or not route.removed:
            return
        tenant = TenantId(name)
        self._removed.add(name)
        self.graph.forget_tenant(tenant)
        self.assembler.forget_tenant(tenant)
        self.names.forget_tenant(tenant)
        self.decisions.forget_tenant(tenant)
        self.runs.forget_tenant(tenant)
        self.activity.forget_tenant(tenant)
        self.homes.forget(tenant)
        self.loop.forget_tenant(tenant)
        self.scaling.forget_tenant(tenant)
        for node in self.fleet.up():
            node.retire(name)

    def _version_gone(self, version: str) -> None:
        for node in self.fleet.up():
            node.drain(version)

    def _home(self, spec: VersionSpec) -> NodePeer | None:
        return self.loop.dispatch.places.choose(spec, takes_memory=False)

    def _current(self, function: FunctionId) -> VersionSpec | None:
        route = self.table.routes.get(function)
        return self.table.version(route, "") if route is not None else None

    # -- traces from outside

    def authenticate(self, token: str) -> TenantId | None:
        key = self.table.keys.get(hashlib.sha256(token.encode()).hexdigest())
        return TenantId(key.tenant) if key is not None else None

    def accept_spans(self, tenant: TenantId, spans: list[Span]) -> int:
        """Returns how many were taken; the rest is counted by the assembler.

        What completes meanwhile is learned here, about as much as came: else a machine that is short of CPU would take spans
        faster than it learns from them, until there is no room.
        """
        if tenant in self._removed:  # its key was good when they began to come
            return 0
        now = steady()
        kept = self.assembler.add(tenant, spans, now)
        for _ in range(1 + len(spans) // SETTLED_AT_ONCE):
            if not self._learn_settled(now):
                break
        return kept

    def spans_refused(self, tenant: TenantId, count: int) -> None:
        self.assembler.intake(tenant).left_out["invalid id"] += count

    # -- time

    def tick(self, now: float) -> bool:
        """`now` is of `steady`. True when there may be more to learn at once."""
        self.learner.settle(now)
        return self._learn_settled(now)

    def _learn_settled(self, now: float) -> bool:
        traces = self.assembler.settled(now)
        self.learner.observe(traces, now)
        return bool(traces)

    async def catch_up(self) -> None:
        """All that is due, in small steps: whatever else there is has its turn between them."""
        self.loop.ahead.tick(time.time())
        self.loop.keeping.tick(time.time())
        for _ in self.scaling.steps(time.monotonic()):
            await asyncio.sleep(0)
        more = self.tick(steady())
        while more:
            await asyncio.sleep(0)
            more = self._learn_settled(steady())

    async def save(self) -> None:
        learned = self.learner.counters.observed + self.learner.counters.records
        policies = tuple(self.loop.policies.items())
        revision = (self.decisions.revision, learned, policies, len(self._removed), self.names.revision)
        if revision == self._saved_revision:
            return
        state = PlannerState(
            FORMAT,
            dump_graph(self.graph),
            self.decisions.entries(),
            self.runs.all(),
            dict(self.loop.policies),
            {str(tenant): names for tenant, names in self.names.of.items()},
            self.loop.learned(),
        )
        try:
            await asyncio.to_thread(save, self.path, state)
        except OSError as error:
            log.error("planner.save_failed", error=str(error))
        else:
            self._saved_revision = revision


class _Callers:
    """Control's connections: they only ask."""

    def on_open(self, connection: Connection) -> None: ...

    def on_message(self, connection: Connection, kind: int, ident: int, message: object, body: bytes) -> None: ...

    def on_lost(self, connection: Connection, why: str) -> None: ...


def _restore(snapshot: bytes, path: Path) -> CallGraph:
    try:
        return load_graph(snapshot)
    except SnapshotError as error:
        log.error("planner.graph_unreadable", error=str(error), kept=set_aside(path))
        return CallGraph()


async def _ticking(planner: Planner) -> None:
    saved = time.monotonic()
    while True:
        await asyncio.sleep(TICK_S)
        await planner.catch_up()
        if time.monotonic() - saved >= SAVE_EVERY_S:
            await planner.save()
            saved = time.monotonic()


async def _watching(planner: Planner, store: Store, nudge: Nudge) -> None:
    """Tells the database which members are silent, and when the others were heard of. Its absence delays that, nothing else."""
    seen_at, known, silent = 0.0, dict[str, int](), set[tuple[str, int]]()
    reached, looked_at, moved = Reached(), 0.0, set[str]()
    while True:
        await asyncio.sleep(TICK_S)
        if planner.leadership is None or planner_lease(0) not in {lease for lease, _ in planner.leadership.held()}:
            continue
        now = time.monotonic()
        sights = [node.sight() for node in planner.nodes.peers]
        try:
            for name, epoch in overdue(sights, now):
                if await asyncio.to_thread(store.nodes.declare_silent, name, epoch, time.time()):
                    log.warning("node.declared_silent", node=name, epoch=epoch)
                    await asyncio.to_thread(nudge.give)
            for name, epoch in unheard(sights, now) - silent:
                if await asyncio.to_thread(store.nodes.unheard, name, epoch, time.time()):
                    log.warning("node.unheard", node=name, epoch=epoch)
                    await asyncio.to_thread(nudge.give)
            silent = unheard(sights, now)
            if now - looked_at >= LOOK_AT_TUNNELS_S:
                looked_at = now
                moved |= reached.moved([(node.name, node.tunnels) for node in planner.fleet.up()])
                while moved:
                    vpc = next(iter(moved))
                    await asyncio.to_thread(store.vpcs.moved, vpc, time.time())
                    moved.discard(vpc)
            if now - seen_at >= SEEN_EVERY_S or heard(sights) != known:
                seen_at, known = now, heard(sights)
                back = bool(known) and await asyncio.to_thread(store.nodes.seen, known, time.time())
                if back:
                    await asyncio.to_thread(nudge.give)
        except SQLAlchemyError as error:
            log.info("planner.database_away", reason=str(error)[:200])
            await asyncio.sleep(AWAY_S)


async def serve(settings: Settings) -> None:
    """Runs until SIGTERM; the last state is saved on the way out. Raises NotJoined, AlreadyRuns."""
    secret = rpc_secret(load_key(settings.key_file))
    own = Self(settings, "planner", f"planner{LOCAL}{socket.gethostname()}")
    with lock(settings.planner_folder / "lock"):
        await _serve(settings, secret, own)


async def _serve(settings: Settings, secret: str, own: Self) -> None:
    name = own.name
    planner = Planner(settings, secret, name, own.identity)
    store, nudge = Store(settings.effective_database_url), Nudge(settings.effective_redis_url)
    addresses = own.listens(settings.socket("planner"))
    holder = f"{name} {hashlib.sha256(os.fsencode(settings.state)).hexdigest()[:8]}"
    leadership = Leadership(store.leases, holder, str(addresses[-1]), settings.planner_shards, planner.took_over)
    planner.leadership = leadership
    insight = Insight(
        planner.graph,
        planner.table,
        planner.fleet,
        planner.loop,
        planner.decisions,
        planner.runs,
        planner.learner,
        planner.activity,
        planner.assembler,
        planner.scaling,
    )
    teaching = Teaching(planner.graph, planner.table, planner.learner, planner.assembler, planner.names)
    told = Listening(name, "planner", admits=admit(("control",), planner.table.nodes))
    servers = [
        await listen(at, _Callers(), secret, told, {**insight.answers(), **teaching.answers()}, own.identity) for at in addresses
    ]
    planner.connect()
    background = [
        asyncio.create_task(RouteWatcher(settings.effective_redis_url, planner.table).run()),
        asyncio.create_task(leadership.run()),
        asyncio.create_task(_watching(planner, store, nudge)),
        asyncio.create_task(_ticking(planner)),
        asyncio.create_task(planner.release(store.releases, nudge).run()),
    ]
    for task in background:
        task.add_done_callback(partial(_died, planner))
    http = uvicorn.Server(
        uvicorn.Config(
            receiver_app(planner.authenticate, planner.accept_spans, planner.spans_refused),
            host=settings.host,
            port=settings.otlp_port,
            lifespan="off",
            http=bounded_by_address(OTLP_PER_ADDRESS, OTLP_HEAD_S),
            limit_concurrency=OTLP_CONNECTIONS,
            ws="none",
            access_log=False,
            log_level="warning",
            server_header=False,
            proxy_headers=False,  # nobody in front is trusted to say who the client is
            timeout_graceful_shutdown=3,
        )
    )
    operations = Operations(
        "planner", lambda: http.started, lambda: planner_checks(planner), PlannerMetrics(planner), RouteMetrics(planner.table)
    )
    done = keep_certified(own)
    try:
        await operations.start(settings)
        await http.serve()
    finally:
        done()
        await operations.stop()
        for server in servers:
            server.close()
        for task in background:
            task.cancel()
        await asyncio.wait(background, timeout=STOP_S)  # a client library may swallow the first cancellation
        await leadership.resign()
        await planner.disconnect()
        for closing in (nudge, store):
            closing.close()
        await planner.save()
        planner.exporter.close()
        with contextlib.suppress(FileNotFoundError):
            settings.socket("planner").unlink()


def _died(planner: Planner, task: "asyncio.Task[None]") -> None:
    if not task.cancelled() and task.exception() is not None:
        log.critical("planner.task_died", error=repr(task.exception()))
        raise SystemExit(1)


def run(settings: Settings) -> None:
    uvloop.run(serve(settings))
