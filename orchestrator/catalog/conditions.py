"""A version's conditions: what must hold before it serves, one word each, and which deliveries wait for them.

A condition is decided once. A task that comes twice or late changes nothing; only `reopen`, which a person asks for, or a private
network that a version waited for in vain, makes a decided one undecided again.
"""

from collections.abc import Collection, Mapping

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from graph.ids import FunctionId, name_of, tenant_of
from orchestrator.catalog.model import (
    Condition,
    ConditionName,
    ConditionStatus,
    Delivery,
    Event,
    Function,
    Module,
    Version,
    VersionState,
)

DECIDES: Mapping[Module, ConditionName] = {
    Module.NETWORK_DEPLOYMENT: ConditionName.NETWORK,
    Module.FUNCTION_MANAGEMENT: ConditionName.CODE,
    Module.SCHEDULING: ConditionName.CAPACITY,
    Module.METADATA_SYNC: ConditionName.ROUTE,
}
NEEDED = (ConditionName.CODE, ConditionName.NETWORK, ConditionName.CAPACITY)
"""What must hold before a route may say so; `route` is what follows from them."""

HOLDS = frozenset({ConditionStatus.TRUE, ConditionStatus.NOT_NEEDED})
MAX_REASON = 4000
_FIRST = {
    ConditionName.CODE: "waits to be built",
    ConditionName.NETWORK: "waits to be looked at",
    ConditionName.CAPACITY: "waits to be looked at",
    ConditionName.ROUTE: "waits for the other conditions",
}


def waits_at_first(initial_instances: int) -> frozenset[Module]:
    """The modules that begin only when conditions of others are decided: instances need code, a route needs everything."""
    return frozenset({Module.METADATA_SYNC, Module.SCHEDULING} if initial_instances else {Module.METADATA_SYNC})


def version_of(session: Session, function: FunctionId, number: int, lock: bool = True) -> Version | None:
    """None when the version or its function is gone. `lock`: its function is this transaction's until it ends."""
    query = select(Function).where(Function.tenant == tenant_of(function), Function.name == name_of(function))
    row = session.scalar(query.with_for_update() if lock else query)
    return session.get(Version, (row.id, number)) if row is not None and row.deleted is None else None


def add_conditions(session: Session, version: Version, now: float) -> None:
    """All undecided."""
    for name in ConditionName:
        row = Condition(function=version.function, number=version.number, name=name, status=ConditionStatus.UNKNOWN)
        row.reason, row.since = _FIRST[name], now
        session.add(row)
    if version.initial_instances:
        session.flush()
        _set(session, version, ConditionName.CAPACITY, ConditionStatus.UNKNOWN, "waits for the code", now)
    session.flush()


def statuses(session: Session, version: Version) -> dict[ConditionName, ConditionStatus]:
    """A condition that an older release did not know is not needed."""
    rows = session.execute(
        select(Condition.name, Condition.status).where(Condition.function == version.function, Condition.number == version.number)
    )
    known = {ConditionName(row.name): ConditionStatus(row.status) for row in rows}
    return {name: known.get(name, ConditionStatus.NOT_NEEDED) for name in ConditionName}


def decide(session: Session, version: Version, name: ConditionName, status: ConditionStatus, reason: str, now: float) -> None:
    """One module's word; the first decided one counts. `UNKNOWN` says what it is waiting for. Makes due what waited for it."""
    if statuses(session, version)[name] != ConditionStatus.UNKNOWN:
        return
    _set(session, version, name, status, reason, now)
    if status == ConditionStatus.FALSE and name in NEEDED and version.state == VersionState.PENDING:
        version.state = VersionState.FAILED
        _set(session, version, ConditionName.ROUTE, ConditionStatus.NOT_NEEDED, "the version failed", now)
    wake(session, version, now)


def announced(session: Session, version: Version, now: float) -> None:
    """The routes say so now, whatever was thought of them before."""
    version.state = VersionState.READY
    _set(session, version, ConditionName.ROUTE, ConditionStatus.TRUE, "", now)


def observed(session: Session, version: Version, name: ConditionName, status: ConditionStatus, reason: str, now: float) -> None:
    """What was true once is looked at again: the condition says how it stands, and a version that serves goes on serving."""
    if version.state in (VersionState.READY, VersionState.PUBLISHING):
        _set(session, version, name, status, reason, now)


def reopen(session: Session, version: Version, now: float) -> frozenset[Module]:
    """What did not hold is undecided again, as if nobody had looked. Returns the modules that must look again."""
    if version.state == VersionState.FAILED:
        version.state = VersionState.PENDING
    again = {name for name, status in statuses(session, version).items() if status not in HOLDS}
    if version.state != VersionState.READY:
        again.add(ConditionName.ROUTE)
    for name in again:
        _set(session, version, name, ConditionStatus.UNKNOWN, "is tried again", now)
    return frozenset(module for module, name in DECIDES.items() if name in again)


def wake(session: Session, version: Version, now: float) -> None:
    """Deliveries that wait for conditions which are decided now are due."""
    session.flush()
    known = statuses(session, version)
    ready: list[Module] = []
    if known[ConditionName.CODE] != ConditionStatus.UNKNOWN:
        ready.append(Module.SCHEDULING)
    if all(known[name] != ConditionStatus.UNKNOWN for name in NEEDED):
        ready.append(Module.METADATA_SYNC)
    if not ready:
        return
    function = session.get_one(Function, version.function)
    subject = f"{function.tenant}/{function.name}"
    events = select(Event.id).where(Event.subject == subject, Event.generation == version.generation)
    session.execute(
        update(Delivery)
        .where(
            Delivery.event.in_(events),
            Delivery.module.in_(ready),
            Delivery.due.is_(None),
            Delivery.done.is_(None),
            Delivery.parked.is_(None),
        )
        .values(due=now)
    )


def let_go(session: Session, function: FunctionId, now: float, generations: Collection[int] | None = None) -> None:
    """Versions go. What was parked for them goes too; what waits for their conditions is due: nobody decides those any more.

    `generations`: of the versions that go; None: all of the function's.
    """
    theirs = [Event.subject == function]
    if generations is not None:
        theirs.append(Event.generation.in_(generations))
    parked = select(Delivery.event).where(Delivery.parked.is_not(None))
    session.execute(delete(Event).where(*theirs, Event.id.in_(parked)))
    waiting = (Delivery.due.is_(None), Delivery.done.is_(None), Delivery.event.in_(select(Event.id).where(*theirs)))
    session.execute(update(Delivery).where(*waiting).values(due=now))


def _set(session: Session, version: Version, name: ConditionName, status: ConditionStatus, reason: str, now: float) -> None:
    row = session.get(Condition, (version.function, version.number, name))
    if row is None:
        row = Condition(function=version.function, number=version.number, name=name, status="", reason="", since=now)
        session.add(row)
    if row.status != status:
        row.since = now
    row.status, row.reason = status, reason[:MAX_REASON]
