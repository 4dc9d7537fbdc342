"""How deep the control flow's queues are: what the database knows of events, and what Redis knows of tasks."""

from collections.abc import Sequence

import msgspec
import redis
from sqlalchemy import func, select

from orchestrator.catalog.database import Database
from orchestrator.catalog.model import Delivery, Event, Module
from orchestrator.catalog.routes import SEQUENCE_KEY

TIMEOUT_S = 2.0


class EventDepth(msgspec.Struct, frozen=True):
    """Of one module; `oldest` is when its oldest open event was written, in seconds since the epoch, 0 without one."""

    open: int = 0
    parked: int = 0
    oldest: float = 0.0


class TaskDepth(msgspec.Struct, frozen=True):
    """`sequence` is the number of the last change of routes, 0 while Redis has none."""

    queues: dict[str, int]
    unacknowledged: int
    sequence: int


def event_depths(database: Database) -> dict[Module, EventDepth]:
    """By module. Raises sqlalchemy's errors when the database is away."""
    found = dict.fromkeys(Module, EventDepth())
    with database.read() as session:
        rows = session.execute(
            select(
                Delivery.module,
                func.count().filter(Delivery.parked.is_(None)),
                func.count(Delivery.parked),
                func.min(Event.created).filter(Delivery.parked.is_(None)),
            )
            .join(Event, Event.id == Delivery.event)
            .where(Delivery.done.is_(None))
            .group_by(Delivery.module)
        )
        for module, waiting, parked, oldest in rows:
            found[Module(module)] = EventDepth(waiting, parked, oldest or 0.0)
    return found


class Tasks:
    """Celery's queues as they lie in Redis. Thread-safe."""

    def __init__(self, url: str, prefix: str, queues: Sequence[str]) -> None:
        self._redis = redis.Redis.from_url(url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S)
        self._prefix = prefix
        self._queues = queues

    def depth(self) -> TaskDepth:
        """Raises redis.RedisError while Redis is away."""
        pipe = self._redis.pipeline(transaction=False)
        for queue in self._queues:
            pipe.llen(self._prefix + queue)
        pipe.hlen(f"{self._prefix}unacked")
        pipe.get(SEQUENCE_KEY)
        *lengths, unacknowledged, sequence = pipe.execute()
        return TaskDepth(dict(zip(self._queues, lengths, strict=True)), unacknowledged, int(sequence or 0))

    def close(self) -> None:
        self._redis.close()
