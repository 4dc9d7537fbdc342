"""Where aliases point, as the database has it. Parts of others' transactions, which hold the function's row."""

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, or_, select
from sqlalchemy.orm import Session

from graph.ids import LATEST, function_id
from orchestrator.catalog.errors import NotFound
from orchestrator.catalog.model import Alias, EventKind, Function, Publication, Release, Version, VersionState
from orchestrator.catalog.outbox import add_event
from orchestrator.splitting import Pointer, plain, shares


def row_of(session: Session, tenant: str, name: str, lock: bool = True) -> Function | None:
    """Also of a function that was removed. `lock`: it is this transaction's until it ends."""
    query = select(Function).where(Function.tenant == tenant, Function.name == name)
    return session.scalar(query.with_for_update() if lock else query)


def alive(session: Session, tenant: str, name: str, lock: bool = False) -> Function:
    """Raises NotFound."""
    function = row_of(session, tenant, name, lock)
    if function is None or function.deleted is not None:
        raise NotFound(f"no function {name!r}")
    return function


def written(pointer: Pointer) -> dict[str, Any]:
    return dict(msgspec.to_builtins(pointer))


def read(value: Mapping[str, Any]) -> Pointer:
    return msgspec.convert(value, Pointer)


def pointer_of(session: Session, function: Function, alias: str) -> Pointer | None:
    """None: there is no such alias, or $LATEST means nothing yet."""
    return meant(function, alias, session.get(Alias, (function.id, alias)))


def meant(function: Function, alias: str, row: Alias | None) -> Pointer | None:
    """As pointer_of; `row` is the alias's, if it has one."""
    if alias == LATEST and function.serving is None:
        return None
    if row is not None and (alias != LATEST or row.version == function.serving):
        return Pointer(row.version, row.second, row.share)
    return Pointer(function.serving) if alias == LATEST and function.serving is not None else None


def move(
    session: Session,
    function: Function,
    alias: str,
    pointer: Pointer,
    now: float,
    before: Pointer | None,
    sticky: str | None = None,
) -> None:
    """Points it there, under a higher generation; its versions become invocable. Whoever calls sees to it that the routes are
    told. `sticky` None: as it was."""
    pointer = plain(pointer)
    row = session.get(Alias, (function.id, alias))
    if row is None:
        row = Alias(function=function.id, name=alias, sticky="")
        session.add(row)
    row.version, row.second, row.share, row.changed = pointer.version, pointer.second, pointer.share, now
    row.before = written(before) if before is not None else None
    if sticky is not None:
        row.sticky = sticky
    if alias == LATEST:
        function.serving = pointer.version
    announce(session, function, shares(pointer))
    bump(function)
    session.flush()


def announce(session: Session, function: Function, numbers: Iterable[int]) -> None:
    """Versions that waited for nothing but their route are in it from now on."""
    for number in numbers:
        version = session.get(Version, (function.id, number))
        if version is not None and version.state == VersionState.PENDING:
            version.state = VersionState.PUBLISHING


def bump(function: Function) -> None:
    """What gateways must know of it has changed."""
    function.generation += 1
    function.route_generation = function.generation


def tell(session: Session, function: Function, now: float) -> None:
    """The routes are written anew, by an event of this transaction."""
    session.flush()
    add_event(session, EventKind.ROUTED, function_id(function.tenant, function.name), function.generation, {}, now)


def referred(session: Session, function: Function) -> set[int]:
    """Versions that something refers to, and that stay for it: what serves or is about to, what aliases mean and would mean after
    a rollback, what was published."""
    found = {function.serving, function.published, *pointed(session, function)}
    found.update(session.scalars(select(Publication.number).where(Publication.function == function.id)))
    for alias in session.scalars(select(Alias).where(Alias.function == function.id)):
        if alias.before is not None:
            found.update(shares(read(alias.before)))
    for release in session.scalars(select(Release).where(Release.function == function.id, Release.ended.is_(None))):
        for step in (*release.steps, release.back):
            found.update(shares(read(step)))
    return {number for number in found if number is not None}


def chosen() -> ColumnElement[bool]:
    """Of a Version in a query: an alias means it now, or it was published, so it can be asked for whatever serves."""
    meant = select(Alias.function).where(
        Alias.function == Version.function, or_(Alias.version == Version.number, Alias.second == Version.number)
    )
    published = select(Publication.number).where(Publication.function == Version.function, Publication.number == Version.number)
    return or_(meant.correlate(Version).exists(), published.correlate(Version).exists())


def pointed(session: Session, function: Function) -> set[int]:
    """What its aliases mean now."""
    found: set[int] = set()
    for alias in session.scalars(select(Alias).where(Alias.function == function.id)):
        found.update(shares(Pointer(alias.version, alias.second, alias.share)))
    return found
