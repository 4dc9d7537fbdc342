"""Versions that are published, and the aliases that point at versions: set, removed, rolled back."""

import msgspec
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from graph.ids import LATEST
from orchestrator.catalog import pointers, releases
from orchestrator.catalog.database import Database, retried
from orchestrator.catalog.errors import Conflict, NotFound, Refused
from orchestrator.catalog.model import Alias, Function, Publication, ReleasePhase, Version
from orchestrator.catalog.releases import Plan, ReleaseView, open_release, view_release
from orchestrator.catalog.views import INVOCABLE
from orchestrator.splitting import Pointer, shares

MAX_ALIASES = 20
MAX_PUBLISHED = 50
"""Of a function: each is in its route, and its code is kept."""


class AliasView(msgspec.Struct, frozen=True):
    """`before`: what a rollback brings back. `release`: the one that is on its way, None when none is."""

    name: str
    version: int
    second: int | None
    share: float
    sticky: str
    before: Pointer | None
    changed_at: float
    release: ReleaseView | None


class Aliases:
    """Every method raises NotFound for what is not there, or is another tenant's."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # -- publishing

    @retried
    def publish(self, tenant: str, name: str, number: int | None, label: str, now: float) -> int:
        """Keeps a version, None: the one that $LATEST means; returns its number. Publishing it again changes its label.

        Raises Conflict for one that is not ready, or when too many are published.
        """
        with self._database.write() as session:
            function = pointers.alive(session, tenant, name, lock=True)
            number = function.serving if number is None else number
            if number is None:
                raise Conflict("the function serves no version yet; name one that is ready")
            _check(session, function, number, "version")
            row = session.get(Publication, (function.id, number))
            if row is None:
                count = session.scalar(select(func.count()).where(Publication.function == function.id)) or 0
                if count >= MAX_PUBLISHED:
                    raise Conflict(f"{count} versions of {name!r} are published; unpublish one first")
                row = Publication(function=function.id, number=number, published=now)
                session.add(row)
            row.label = label
            pointers.bump(function)
            pointers.tell(session, function, now)
            return number

    @retried
    def unpublish(self, tenant: str, name: str, number: int, now: float) -> None:
        """It is kept no longer than others are."""
        with self._database.write() as session:
            function = pointers.alive(session, tenant, name, lock=True)
            row = session.get(Publication, (function.id, number))
            if row is None:
                raise NotFound(f"version {number} of {name!r} is not published")
            session.delete(row)
            pointers.bump(function)
            pointers.tell(session, function, now)

    # -- aliases

    def list(self, tenant: str, name: str) -> list[AliasView]:
        """By name; $LATEST among them once it means something."""
        with self._database.read() as session:
            function = pointers.alive(session, tenant, name)
            names = set(session.scalars(select(Alias.name).where(Alias.function == function.id)))
            if function.serving is not None:
                names.add(LATEST)
            return [_view(session, function, one) for one in sorted(names)]

    @retried
    def set(
        self, tenant: str, name: str, alias: str, target: Pointer, sticky: str | None, plan: Plan | None, now: float
    ) -> AliasView:
        """Points it there: a release does, as `plan` says; at once when it is new, or for None. `sticky` None: as it is.

        Raises Conflict for a version that is not ready or when there are too many aliases, Refused for a ramp that leads nowhere.
        """
        with self._database.write() as session:
            function = pointers.alive(session, tenant, name, lock=True)
            _check(session, function, target.version, "version")
            if target.second is not None:
                _check(session, function, target.second, "second")
            current = pointers.pointer_of(session, function, alias)
            if current is None:
                _check_room(session, function, alias)
                pointers.move(session, function, alias, target, now, None, sticky)
                pointers.tell(session, function, now)
            elif plan is None or shares(current) == shares(target):
                before = releases.settled(session, function, alias)
                releases.supersede(session, function, alias, now)
                pointers.move(session, function, alias, target, now, before, sticky)
                pointers.tell(session, function, now)
            else:
                try:
                    releases.begin(session, function, alias, target, plan, now, sticky)
                except ValueError as error:
                    raise Refused(str(error), "ramp") from None
            return _view(session, function, alias)

    @retried
    def remove(self, tenant: str, name: str, alias: str, now: float) -> None:
        """Raises Conflict for $LATEST, which goes with its function."""
        with self._database.write() as session:
            function = pointers.alive(session, tenant, name, lock=True)
            if alias == LATEST:
                raise Conflict("$LATEST goes with its function; `foreglow remove` removes both")
            row = session.get(Alias, (function.id, alias))
            if row is None:
                raise NotFound(f"function {name!r} has no alias {alias!r}")
            releases.supersede(session, function, alias, now, "the alias was removed")
            session.delete(row)
            pointers.bump(function)
            pointers.tell(session, function, now)

    @retried
    def rollback(self, tenant: str, name: str, alias: str, now: float) -> AliasView:
        """Where it pointed before its last change, in one step and at once; a release that is under way ends. Asked again, it
        comes back. Raises Conflict when there is nothing to roll back to."""
        with self._database.write() as session:
            function = pointers.alive(session, tenant, name, lock=True)
            row = session.get(Alias, (function.id, alias))
            current = pointers.pointer_of(session, function, alias)
            if current is None:
                raise NotFound(f"function {name!r} has no alias {alias!r}")
            release = open_release(session, function, alias)
            if release is not None and not release.flipped:
                raise Conflict(
                    f"release {release.id} of {alias} is being prepared and has changed nothing yet; "
                    f"`foreglow release abort {release.id}` ends it"
                )
            if row is None or row.before is None:
                raise Conflict(f"{alias} of {name!r} was never changed: there is nothing to roll back to")
            before = pointers.read(row.before)
            gone = [number for number in shares(before) if _version(session, function, number) is None]
            if gone:
                raise Conflict(f"version {gone[0]} of {name!r} is not there any more")
            if release is not None:
                releases.end(release, ReleasePhase.ABORTED, "it was rolled back", now)
            pointers.move(session, function, alias, before, now, current)
            pointers.tell(session, function, now)
            return _view(session, function, alias)


def _version(session: Session, function: Function, number: int) -> Version | None:
    version = session.get(Version, (function.id, number))
    return version if version is not None and version.state in INVOCABLE else None


def _check(session: Session, function: Function, number: int, field: str) -> None:
    if _version(session, function, number) is None:
        raise Conflict(f"version {number} of {function.name!r} is not there, or not ready", field)


def _check_room(session: Session, function: Function, alias: str) -> None:
    if alias == LATEST:
        raise Conflict(f"{function.name!r} serves nothing yet; deploy it first")
    count = session.scalar(select(func.count()).where(Alias.function == function.id, Alias.name != LATEST)) or 0
    if count >= MAX_ALIASES:
        raise Conflict(f"{function.name!r} has {count} aliases; remove one first")


def _view(session: Session, function: Function, alias: str) -> AliasView:
    pointer = pointers.pointer_of(session, function, alias)
    assert pointer is not None
    row = session.get(Alias, (function.id, alias))
    release = open_release(session, function, alias)
    return AliasView(
        alias,
        pointer.version,
        pointer.second,
        pointer.share,
        row.sticky if row is not None else "",
        pointers.read(row.before) if row is not None and row.before is not None else None,
        row.changed if row is not None else function.created,
        view_release(release, function) if release is not None else None,
    )
