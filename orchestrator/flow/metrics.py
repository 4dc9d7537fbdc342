"""The control flow's numbers as metrics, and what it needs to be ready. Asked in a thread: database and Redis may be slow."""

import time
from collections.abc import Callable, Iterable, Sequence

import redis
import structlog
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from sqlalchemy.exc import SQLAlchemyError

from orchestrator.catalog.database import SchemaMissing
from orchestrator.catalog.depths import EventDepth, Tasks, event_depths
from orchestrator.catalog.model import Module
from orchestrator.catalog.store import Store
from orchestrator.flow.app import KEY_PREFIX
from orchestrator.ops.catalogue import family, one
from orchestrator.ops.health import Check
from orchestrator.settings import Settings

log = structlog.get_logger(__name__)


class Swept:
    """Since the process started: objects and bytes taken out of the origin by kind, and sweeps of a tenant by how they ended."""

    def __init__(self) -> None:
        self.objects: dict[str, int] = dict.fromkeys(("layers", "packages", "chunks"), 0)
        self.bytes: dict[str, int] = dict.fromkeys(("layers", "packages", "chunks"), 0)
        self.sweeps: dict[str, int] = dict.fromkeys(("done", "busy", "failed"), 0)


class FlowMetrics(Collector):
    def __init__(self, store: Store, tasks: Tasks, swept: Swept) -> None:
        self._store = store
        self._tasks = tasks
        self._swept = swept

    def collect(self) -> Iterable[Metric]:
        yield from self._events()
        yield from self._queues()
        swept = self._swept
        yield family("foreglow_origin_sweeps", [((result,), count) for result, count in swept.sweeps.items()])
        yield family("foreglow_origin_freed_objects", [((kind,), count) for kind, count in swept.objects.items()])
        yield family("foreglow_origin_freed_bytes", [((kind,), count) for kind, count in swept.bytes.items()])

    def _events(self) -> Iterable[Metric]:
        depths: dict[Module, EventDepth] = {}
        try:
            depths = event_depths(self._store.database)
        except SQLAlchemyError as error:
            log.warning("metrics.database_away", error=type(error).__name__)
        now = time.time()
        yield one("foreglow_database_up", float(bool(depths)))
        yield family(
            "foreglow_events",
            [
                ((module, state), count)
                for module, depth in depths.items()
                for state, count in (("open", depth.open), ("parked", depth.parked))
            ],
        )
        yield family(
            "foreglow_event_age_seconds",
            [((module,), max(0.0, now - depth.oldest) if depth.oldest else 0.0) for module, depth in depths.items()],
        )

    def _queues(self) -> Iterable[Metric]:
        try:
            depth = self._tasks.depth()
        except redis.RedisError as error:
            log.warning("metrics.redis_away", error=type(error).__name__)
            depth = None
        yield one("foreglow_redis_up", float(depth is not None))
        yield family("foreglow_queue_length", [((queue,), count) for queue, count in depth.queues.items()] if depth else [])
        yield family("foreglow_queue_unacknowledged", [((), depth.unacknowledged)] if depth else [])
        yield family("foreglow_route_sequence_published", [((), depth.sequence)] if depth else [])


def flow_tasks(settings: Settings) -> Tasks:
    return Tasks(settings.effective_redis_url, KEY_PREFIX, [module.value for module in Module])


def flow_checks(store: Store, tasks: Tasks, relaying: Callable[[], bool], consuming: Callable[[], bool]) -> Sequence[Check]:
    schema, broker = "", ""
    try:
        store.database.check_schema()
    except SchemaMissing as error:
        schema = str(error)
    except SQLAlchemyError as error:
        schema = f"the database does not answer: {type(error).__name__}"
    try:
        tasks.depth()
    except redis.RedisError as error:
        broker = f"Redis does not answer: {type(error).__name__}"
    return [
        Check("database", not schema, schema),
        Check("redis", not broker, broker),
        Check("relay", relaying(), "the relay does not run"),
        Check("consuming", consuming(), "the worker does not take tasks yet"),
    ]
