"""The outbox: events are written with the change they tell of, and stay open until every module they are for has finished."""

from collections.abc import Collection, Mapping
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, delete, func, select, update
from sqlalchemy.orm import Session

from graph.ids import FunctionId
from orchestrator.catalog import conditions
from orchestrator.catalog.database import Database, retried
from orchestrator.catalog.errors import NotFound
from orchestrator.catalog.model import ConditionStatus, Delivery, Event, EventKind, Module, Version

MAX_TRIES = 10
RESEND_S = 300.0
"""An event that was sent and not heard of comes again after this long; longer than the longest task."""

MAX_REASON = 2000
REDRIVEN = 10_000
BACKOFF_S = (1.0, 2.0, 5.0, 10.0, 20.0, 30.0)

MODULES: Mapping[EventKind, tuple[Module, ...]] = {
    EventKind.DEPLOYED: (Module.NETWORK_DEPLOYMENT, Module.FUNCTION_MANAGEMENT, Module.SCHEDULING, Module.METADATA_SYNC),
    EventKind.REMOVED: (Module.SCHEDULING, Module.METADATA_SYNC),
    EventKind.KEY: (Module.METADATA_SYNC,),
    EventKind.TENANT: (Module.METADATA_SYNC,),
    EventKind.NODE: (Module.METADATA_SYNC,),
    EventKind.ROUTED: (Module.METADATA_SYNC,),
    EventKind.VPC: (Module.NETWORK_DEPLOYMENT, Module.METADATA_SYNC),
}


class OpenEvent(msgspec.Struct, frozen=True):
    """`subject` as in model.Event. `tries` counts this sending."""

    event: int
    kind: EventKind
    subject: str
    generation: int
    payload: dict[str, Any]
    tries: int
    created: float = 0.0


class EventView(msgspec.Struct, frozen=True):
    """One event for one module that has not finished it. `due` None: it waits for conditions of others, or is parked."""

    id: int
    kind: str
    subject: str
    module: str
    tries: int
    reason: str
    created: float
    due: float | None
    parked: float | None


class Backlog(msgspec.Struct, frozen=True):
    open: int
    parked: int


def add_event(
    session: Session,
    kind: EventKind,
    subject: str,
    generation: int,
    payload: dict[str, Any],
    now: float,
    waiting: Collection[Module] = (),
    skipped: Collection[Module] = (),
) -> None:
    """Part of the caller's transaction. `waiting`: modules for which it is due only once conditions are decided."""
    event = Event(kind=kind, subject=subject, generation=generation, payload=payload, created=now)
    session.add(event)
    session.flush()
    for module in MODULES[kind]:
        if module not in skipped:
            session.add(Delivery(event=event.id, module=module, due=None if module in waiting else now))


class Outbox:
    def __init__(self, database: Database) -> None:
        self._database = database

    def due(self, now: float, limit: int = 100) -> list[tuple[int, Module]]:
        """What is to be sent now, oldest first."""
        with self._database.read() as session:
            rows = session.execute(
                select(Delivery.event, Delivery.module).where(Delivery.due <= now).order_by(Delivery.event).limit(limit)
            )
            return [(row.event, Module(row.module)) for row in rows]

    @retried
    def claim(self, event: int, module: Module, now: float) -> bool:
        """True for the one relay that may send it now. Parks what was sent too often."""
        with self._database.write() as session:
            delivery = session.get(Delivery, (event, module), with_for_update=True)
            if delivery is None or delivery.due is None or delivery.due > now:
                return False
            if delivery.tries >= MAX_TRIES:
                _park(session, delivery, delivery.reason or "the module never answered", now)
                return False
            delivery.tries += 1
            delivery.due = now + RESEND_S
            return True

    @retried
    def unclaim(self, event: int, module: Module, now: float) -> None:
        """It could not be sent or taken up after all (the broker is away, builders are busy): no try was used up."""
        with self._database.write() as session:
            delivery = session.get(Delivery, (event, module), with_for_update=True)
            if delivery is not None and delivery.due is not None:
                delivery.tries = max(0, delivery.tries - 1)
                delivery.due = now

    def load(self, event: int, module: Module) -> OpenEvent | None:
        """None when the module has finished it, or must wait (again): tasks may come twice or late."""
        with self._database.read() as session:
            row = session.execute(
                select(Event, Delivery.tries)
                .join(Delivery, Delivery.event == Event.id)
                .where(Event.id == event, Delivery.module == module, Delivery.due.is_not(None))
            ).first()
            if row is None:
                return None
            found, tries = row
            kind = EventKind(found.kind)
            return OpenEvent(found.id, kind, found.subject, found.generation, found.payload, tries, found.created)

    @retried
    def close(self, event: int, module: Module, now: float, tries: int | None = None) -> None:
        """The module has finished. The event goes when all its modules have.

        `tries`: which sending it was. One that was overtaken closes nothing: the later one still runs.
        """
        with self._database.write() as session:
            # of two modules that finish at once the second must see that the first has: the event would stay for ever
            session.execute(select(Event.id).where(Event.id == event).with_for_update())
            finished = update(Delivery).where(Delivery.event == event, Delivery.module == module)
            if tries is not None:
                finished = finished.where(Delivery.tries == tries, Delivery.due.is_not(None))
            session.execute(finished.values(done=now, due=None, reason=""))
            still_open = session.scalar(
                select(func.count()).select_from(Delivery).where(Delivery.event == event, Delivery.done.is_(None))
            )
            if not still_open:
                session.execute(delete(Event).where(Event.id == event))

    @retried
    def retry(self, event: int, module: Module, reason: str, now: float, tries: int | None = None) -> bool:
        """The module could not finish: sent again after a growing pause, parked after MAX_TRIES. False when parked.

        `tries` as in `close`.
        """
        with self._database.write() as session:
            delivery = session.get(Delivery, (event, module), with_for_update=True)
            if delivery is None or delivery.done is not None or (tries is not None and delivery.tries != tries):
                return True
            delivery.reason = reason[:MAX_REASON]
            if delivery.tries >= MAX_TRIES:
                _park(session, delivery, reason, now)
                return False
            delivery.due = now + BACKOFF_S[min(max(delivery.tries - 1, 0), len(BACKOFF_S) - 1)]
            return True

    @retried
    def resend_open(self, now: float) -> int:
        """At the start of a relay: what a dead predecessor had sent is sent again at once. Returns how many."""
        with self._database.write() as session:
            # a sent event lies at most RESEND_S ahead; one that backs off is brought forward with it, which does no harm
            result = session.execute(update(Delivery).where(Delivery.due > now).values(due=now).returning(Delivery.event))
            return len(result.all())

    def unfinished(self, tenant: str | None, parked: bool, after: int = 0, limit: int = 1000) -> list[EventView]:
        """What modules have not finished, oldest first: of the first `limit` events behind `after`.

        `tenant`: only of its functions. `parked`: only what was given up.
        """
        chosen: list[ColumnElement[bool]] = [Delivery.parked.is_not(None) if parked else Delivery.done.is_(None)]
        ids = select(Event.id).join(Delivery).where(Event.id > after, *_visible(tenant), *chosen)
        with self._database.read() as session:
            events = session.scalars(ids.distinct().order_by(Event.id).limit(limit)).all()
            rows = session.execute(
                select(Event, Delivery).join(Delivery).where(Event.id.in_(events), *chosen).order_by(Event.id, Delivery.module)
            )
            return [
                EventView(
                    id=event.id,
                    kind=event.kind,
                    subject=event.subject,
                    module=delivery.module,
                    tries=delivery.tries,
                    reason=delivery.reason,
                    created=event.created,
                    due=delivery.due,
                    parked=delivery.parked,
                )
                for event, delivery in rows
            ]

    @retried
    def redrive(self, now: float, tenant: str | None = None, event: int | None = None) -> list[int]:
        """Parked events start again from the first try: this one, or all of the tenant's functions, or all there are.

        Returns their numbers. Raises NotFound for an event that is not parked, or another tenant's.
        """
        parked = select(Delivery.event).where(Delivery.parked.is_not(None))
        query = select(Event).where(Event.id.in_(parked), *_visible(tenant)).order_by(Event.id)
        if event is not None:
            query = query.where(Event.id == event)
        with self._database.write() as session:
            found = session.scalars(query.limit(REDRIVEN).with_for_update()).all()
            if event is not None and not found:
                raise NotFound(f"no parked event {event}")
            for one in found:
                _reopen(session, one, now)
            return [one.id for one in found]

    def backlog(self) -> Backlog:
        with self._database.read() as session:
            parked = session.scalar(select(func.count()).select_from(Delivery).where(Delivery.parked.is_not(None))) or 0
            waiting = session.scalar(select(func.count()).select_from(Delivery).where(Delivery.done.is_(None))) or 0
            return Backlog(waiting - parked, parked)


def _visible(tenant: str | None) -> list[ColumnElement[bool]]:
    """Events of a tenant's functions and private networks; keys and nodes are the operator's."""
    if tenant is None:
        return []
    return [
        Event.kind.in_((EventKind.DEPLOYED, EventKind.REMOVED, EventKind.ROUTED, EventKind.VPC)),
        Event.subject.startswith(f"{tenant}/", autoescape=True),
    ]


def _park(session: Session, delivery: Delivery, reason: str, now: float) -> None:
    """Whoever deployed the version is told by its condition, in the same transaction."""
    delivery.parked = now
    delivery.due = None
    delivery.reason = reason[:MAX_REASON]
    version = _version_of(session, session.get_one(Event, delivery.event))
    if version is not None:
        told = f"given up after {delivery.tries} tries: {reason}; `foreglow events retry {delivery.event}` tries again"
        conditions.decide(session, version, conditions.DECIDES[Module(delivery.module)], ConditionStatus.FALSE, told, now)


def _reopen(session: Session, event: Event, now: float) -> None:
    """Of a deploy, also the modules begin anew that saw one condition fail and so decided theirs."""
    deliveries = session.scalars(select(Delivery).where(Delivery.event == event.id)).all()
    version = _version_of(session, event)
    failed = conditions.reopen(session, version, now) if version is not None else frozenset()
    for delivery in deliveries:
        if delivery.parked is None and Module(delivery.module) not in failed:
            continue
        waits = version is not None and delivery.module in conditions.waits_at_first(version.initial_instances)
        # the others go on counting: a task of theirs that still runs is not taken for the new one
        delivery.tries = 0 if delivery.parked is not None else delivery.tries + 1
        delivery.parked = delivery.done = None
        delivery.due = None if waits else now
    if version is not None:
        conditions.wake(session, version, now)


def _version_of(session: Session, event: Event) -> Version | None:
    if event.kind != EventKind.DEPLOYED:
        return None
    return conditions.version_of(session, FunctionId(event.subject), int(event.payload["number"]))
