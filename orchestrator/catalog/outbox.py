"""The outbox: events are written with the change they tell of, and stay open until every module they are for has finished."""

from collections.abc import Mapping
from typing import Any

import msgspec
from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from orchestrator.catalog.database import Database, retried
from orchestrator.catalog.model import Condition, ConditionStatus, Delivery, Event, EventKind, Module

MAX_TRIES = 10
RESEND_S = 300.0
"""An event that was sent and not heard of comes again after this long; longer than the longest task."""

BACKOFF_S = (1.0, 2.0, 5.0, 10.0, 20.0, 30.0)

MODULES: Mapping[EventKind, tuple[Module, ...]] = {
    EventKind.DEPLOYED: (Module.FUNCTION_MANAGEMENT, Module.METADATA_SYNC),
    EventKind.REMOVED: (Module.METADATA_SYNC,),
    EventKind.KEY: (Module.METADATA_SYNC,),
    EventKind.TENANT: (Module.METADATA_SYNC,),
    EventKind.NODE: (Module.METADATA_SYNC,),
}
WAITS_FOR_CONDITIONS = {(EventKind.DEPLOYED, Module.METADATA_SYNC)}


class OpenEvent(msgspec.Struct, frozen=True):
    """`subject`: a function id or a key's digest. `tries` counts this sending."""

    event: int
    kind: EventKind
    subject: str
    generation: int
    payload: dict[str, Any]
    tries: int


class Backlog(msgspec.Struct, frozen=True):
    open: int
    parked: int


def add_event(session: Session, kind: EventKind, subject: str, generation: int, payload: dict[str, Any], now: float) -> None:
    """Part of the caller's transaction."""
    event = Event(kind=kind, subject=subject, generation=generation, payload=payload, created=now)
    session.add(event)
    session.flush()
    for module in MODULES[kind]:
        due = None if (kind, module) in WAITS_FOR_CONDITIONS else now
        session.add(Delivery(event=event.id, module=module, due=due))


def conditions_changed(session: Session, function: int, number: int, subject: str, generation: int, now: float) -> None:
    """Part of the transaction that sets a condition: what waited for the last undecided one is due now."""
    session.flush()
    undecided = session.scalar(
        select(func.count())
        .select_from(Condition)
        .where(Condition.function == function, Condition.number == number, Condition.status == ConditionStatus.UNKNOWN)
    )
    if undecided:
        return
    events = select(Event.id).where(Event.subject == subject, Event.generation == generation)
    session.execute(
        update(Delivery)
        .where(Delivery.event.in_(events), Delivery.due.is_(None), Delivery.done.is_(None), Delivery.parked.is_(None))
        .values(due=now)
    )


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
                _park(delivery, delivery.reason or "the module never answered", now)
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
        """None when the module has finished it already: tasks may come twice."""
        with self._database.read() as session:
            row = session.execute(
                select(Event, Delivery.tries)
                .join(Delivery, Delivery.event == Event.id)
                .where(Event.id == event, Delivery.module == module, Delivery.done.is_(None), Delivery.parked.is_(None))
            ).first()
            if row is None:
                return None
            found, tries = row
            return OpenEvent(found.id, EventKind(found.kind), found.subject, found.generation, found.payload, tries)

    @retried
    def close(self, event: int, module: Module, now: float) -> None:
        """The module has finished. The event goes when all its modules have."""
        with self._database.write() as session:
            # of two modules that finish at once the second must see that the first has: the event would stay for ever
            session.execute(select(Event.id).where(Event.id == event).with_for_update())
            session.execute(
                update(Delivery).where(Delivery.event == event, Delivery.module == module).values(done=now, due=None, reason="")
            )
            still_open = session.scalar(
                select(func.count()).select_from(Delivery).where(Delivery.event == event, Delivery.done.is_(None))
            )
            if not still_open:
                session.execute(delete(Event).where(Event.id == event))

    @retried
    def retry(self, event: int, module: Module, reason: str, now: float) -> bool:
        """The module could not finish: sent again after a growing pause, parked after MAX_TRIES. False when parked."""
        with self._database.write() as session:
            delivery = session.get(Delivery, (event, module), with_for_update=True)
            if delivery is None or delivery.done is not None:
                return True
            delivery.reason = reason[:2000]
            if delivery.tries >= MAX_TRIES:
                _park(delivery, reason, now)
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

    @retried
    def redrive(self, now: float) -> int:
        """Parked events start again from the first try. Returns how many."""
        with self._database.write() as session:
            result = session.execute(
                update(Delivery)
                .where(Delivery.parked.is_not(None))
                .values(parked=None, tries=0, due=now)
                .returning(Delivery.event)
            )
            return len(result.all())

    def backlog(self) -> Backlog:
        with self._database.read() as session:
            parked = session.scalar(select(func.count()).select_from(Delivery).where(Delivery.parked.is_not(None))) or 0
            waiting = session.scalar(select(func.count()).select_from(Delivery).where(Delivery.done.is_(None))) or 0
            return Backlog(waiting - parked, parked)


def _park(delivery: Delivery, reason: str, now: float) -> None:
    delivery.parked = now
    delivery.due = None
    delivery.reason = reason[:2000]
