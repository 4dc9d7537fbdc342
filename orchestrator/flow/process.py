"""The flow process: the relay in one thread, a Celery worker with the modules in the main one."""

import contextlib
import logging
import os
import signal
import socket
import threading
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Protocol

import structlog
from celery.app import trace
from celery.bootsteps import RUN
from celery.exceptions import CPendingDeprecationWarning
from celery.worker import WorkController, state
from sqlalchemy.exc import SQLAlchemyError

from orchestrator.catalog.database import SchemaMissing
from orchestrator.catalog.leases import planner_lease, shard_of
from orchestrator.catalog.model import Module
from orchestrator.catalog.nudge import Nudge
from orchestrator.catalog.outbox import OpenEvent
from orchestrator.catalog.publish import Publisher
from orchestrator.catalog.store import Store
from orchestrator.flow.app import add_module, build_app
from orchestrator.flow.building import BUILDS, Builder
from orchestrator.flow.collecting import Collector
from orchestrator.flow.dependencies import Busy
from orchestrator.flow.filling import FILLS, Filling
from orchestrator.flow.function_management import FunctionManagement
from orchestrator.flow.links import Place
from orchestrator.flow.metadata_sync import MetadataSync
from orchestrator.flow.metrics import FlowMetrics, Swept, flow_checks, flow_tasks
from orchestrator.flow.network_deployment import NetworkDeployment
from orchestrator.flow.reaching import Reaching
from orchestrator.flow.relay import Relay
from orchestrator.flow.scheduling import STARTS, Scheduling
from orchestrator.flow.source_builds import SLOTS, SourceBuilder
from orchestrator.flow.starting import Starter
from orchestrator.members import LOCAL
from orchestrator.membership import Self
from orchestrator.ops.listener import Operations, OperationsThread
from orchestrator.renewal import keep_certified
from orchestrator.settings import Settings, rpc_secret
from orchestrator.zones import caches_by_zone
from workers.code.origin import Origin
from workers.drivers.process.confining import Confines
from workers.drivers.process.interpreter import find_interpreter
from workers.rpc.messages import Hello
from workers.rpc.transport import Peer, parse_address
from workers.sealing import load_key

CONCURRENCY = BUILDS + SLOTS + FILLS + STARTS + 2
"""Threads: whatever builds, fills and starts, two are left for the routes."""

SCHEMA_POLL_S = 0.1
RELAY_STOP_S = 5.0
GATE_SLACK_S = 60.0
PLANNER_AWAY_S = 5.0  # of a lease that ran out: a planner that is started again takes it within that
QUIET = ("celery.worker.strategy", "celery.app.trace")

log = structlog.get_logger(__name__)


class FlowModule(Protocol):
    """A control-flow module."""

    module: Module

    def apply(self, event: OpenEvent) -> None:
        """Does what the event asks for; raises when it must be tried again."""

    def give_up(self, event: OpenEvent) -> None:
        """It was tried too often, and is parked. Undoes what cannot be left; a condition of the version says so already."""


def guarded(module: FlowModule, store: Store, nudge: Nudge) -> Callable[[int], None]:
    """The module as a task: loads the event, closes it when done, asks for another try when not."""

    def apply(number: int) -> None:
        event = store.outbox.load(number, module.module)
        if event is None:
            return
        try:
            module.apply(event)
        except Busy as busy:
            store.outbox.unclaim(number, module.module, time.time() + busy.again_s)
            return
        except Exception as error:  # whatever it was, it is written down and tried again, and at last parked
            reason = f"{type(error).__name__}: {error}"
            log.warning("event.failed", module=module.module, event_number=number, tries=event.tries, reason=reason[:500])
            if not store.outbox.retry(number, module.module, reason, time.time(), event.tries):
                log.error("event.parked", module=module.module, event_number=number, subject=event.subject, reason=reason[:500])
                module.give_up(event)
        else:
            store.outbox.close(number, module.module, time.time(), event.tries)
        nudge.give()

    return apply


def build_confines(settings: Settings) -> Confines:
    """What one source build may use."""
    return Confines(settings.build_seconds, settings.build_memory_mb, settings.build_disk_mb)


def _node_places(settings: Settings, store: Store, tenant: str | None) -> list[Place]:
    """What settings name, and the members that are up, each to be met under its own name and certificate; for a tenant those that
    may host it."""
    members = [one.route for one in store.nodes.published() if one.route is not None]
    there = [
        (parse_address(one.address), one.peer)
        for one in members
        if one.role == "node" and one.up and (tenant is None or one.hosts(tenant))
    ]
    return [*((address, Peer("node", "")) for address in settings.node_addresses), *there]


def _planned(settings: Settings, store: Store, tenant: str) -> bool:
    """A planner decides for this tenant now."""
    lease = store.leases.read(planner_lease(shard_of(tenant, settings.planner_shards)))
    return lease is not None and lease.expires > time.time() - PLANNER_AWAY_S


def _zones(settings: Settings, store: Store) -> dict[str, list[str]]:
    """The caches that settings name, in the zone of this process, and those that joined."""
    members = [one.route for one in store.nodes.published() if one.route is not None]
    return caches_by_zone(members, settings.zone, [str(one) for one in settings.zone_cache_addresses])


class _Worker(WorkController):  # type: ignore[misc]  # celery has no types
    """Celery's worker without its command line, which takes the signals and loses those that come while it starts."""

    def on_init_blueprint(self) -> None:
        """As the command line does it: tasks find this application in every thread of the pool."""
        trace.setup_worker_optimizations(self.app, self.hostname)

    @property
    def consuming(self) -> bool:
        """True while it takes tasks from the broker."""
        return getattr(getattr(self, "consumer", None), "task_consumer", None) is not None


def run(settings: Settings) -> None:
    """Blocks until SIGTERM or SIGINT; a task that runs then is finished first."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _tell_to_stop)
    store = Store(settings.effective_database_url)
    workers: list[_Worker] = []
    threads: list[threading.Thread] = []
    swept = Swept()
    tasks = flow_tasks(settings)
    operations = OperationsThread(
        lambda: Operations(
            "flow",
            lambda: bool(workers) and workers[0].blueprint.state == RUN,
            lambda: flow_checks(
                store, tasks, lambda: any(thread.is_alive() for thread in threads), lambda: bool(workers) and workers[0].consuming
            ),
            FlowMetrics(store, tasks, swept),
            alive=lambda: "" if all(thread.is_alive() for thread in threads) else "the relay has ended",
            blocking=True,
        ),
        settings,
    )
    operations.start()
    try:
        _serve(settings, store, workers, threads, swept)
    finally:
        operations.stop()
        for closing in (tasks, store):
            closing.close()


def _serve(settings: Settings, store: Store, workers: "list[_Worker]", threads: list[threading.Thread], swept: Swept) -> None:
    if not _wait_for_schema(store):
        return
    _quiet_libraries()
    interpreter = find_interpreter(settings.python)
    publisher = Publisher(settings.effective_redis_url)
    nudge = Nudge(settings.effective_redis_url)
    cluster_key = load_key(settings.key_file)
    sources = SourceBuilder(
        interpreter, settings.state / "flow", build_confines(settings), settings.build_hosts.split(","), os.environ, _told_to_stop
    )
    origin = Origin(settings.effective_origin_url)
    builder = Builder(store.packages, origin, cluster_key, interpreter.executable, settings.state / "flow", sources)
    app = build_app(settings.effective_redis_url)
    own = Self(settings, "flow", f"flow{LOCAL}{socket.gethostname()}")
    hello = Hello("flow", own.name, rpc_secret(cluster_key))
    places = partial(_node_places, settings, store)
    starter = Starter(places, hello, _told_to_stop, own.identity)
    filling = Filling(origin, partial(_zones, settings, store), _told_to_stop, own.identity)
    modules: list[FlowModule] = [
        NetworkDeployment(store, Reaching(places, hello, own.identity)),
        FunctionManagement(store, builder, filling),
        Scheduling(store, starter),
        MetadataSync(store, publisher, partial(_planned, settings, store)),
    ]
    for module in modules:
        add_module(app, module.module, guarded(module, store, nudge))
    relay = Relay(app, store, publisher, nudge, settings.release_timeout_s + GATE_SLACK_S)
    collector = Collector(store.packages, origin, swept)
    thread = threading.Thread(target=relay.run, name="relay", daemon=True)
    thread.start()
    threads.append(thread)
    sweeping = threading.Thread(target=collector.run, args=(store, own.name), name="collector", daemon=True)
    sweeping.start()
    done = keep_certified(own)
    try:
        worker = _Worker(
            app=app,
            pool="threads",
            concurrency=CONCURRENCY,
            queues=[module.module.value for module in modules],
            without_gossip=True,
            without_mingle=True,
            without_heartbeat=True,
        )
        workers.append(worker)
        worker.start()  # blocks
    finally:
        done()
        relay.stop()
        collector.stop()
        for ending in (thread, sweeping):
            ending.join(RELAY_STOP_S)
        with contextlib.suppress(OSError):
            app.close()
        for closing in (filling, publisher, nudge, sources):
            closing.close()
    if worker.exitcode:
        raise SystemExit(worker.exitcode)


def _tell_to_stop(*_: object) -> None:
    """A plain flag: whatever takes a lock could find it taken by the very code that the signal interrupts."""
    state.should_stop = 0  # the worker looks at it in every round, from its first one on


def _told_to_stop() -> bool:
    return state.should_stop is not None


def _quiet_libraries() -> None:
    """What Celery says of itself: every task by name, and what another release of it will do."""
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=CPendingDeprecationWarning)


def _wait_for_schema(store: Store) -> bool:
    """Control migrates; until it has, there is nothing to do. False when told to stop."""
    told = ""
    while not _told_to_stop():
        try:
            store.database.check_schema()
        except (SchemaMissing, SQLAlchemyError) as error:
            if str(error) != told:
                told = str(error)
                log.info("flow.waiting", reason=told[:300])
            time.sleep(SCHEMA_POLL_S)
        else:
            return True
    return False
