"""Releases: an alias on its way to another pointer, step by step. Each change is one transaction that says which step it is
about: of two runners that want the same one does it, and nothing is flipped twice or backwards.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from sqlalchemy import select, tuple_
from sqlalchemy.orm import Session

from graph.ids import FunctionId, function_id
from orchestrator.catalog import conditions, pointers
from orchestrator.catalog.database import Database, retried
from orchestrator.catalog.errors import Conflict, NotFound
from orchestrator.catalog.model import (
    Alias,
    ConditionName,
    ConditionStatus,
    Function,
    Release,
    ReleasePhase,
    Version,
    VersionState,
)
from orchestrator.catalog.views import view_spec
from orchestrator.splitting import Pointer, growing, shares, steps_of
from workers.versions import VersionSpec

OPEN_AT_ONCE = 500
SHOWN = 50


class Plan(msgspec.Struct, frozen=True):
    """How a release goes: the growing shares of a ramp, above 0 and at most 1 (empty: at once), and how long each step below 1 is
    watched."""

    ramp: tuple[float, ...] = ()
    hold_s: float = 60.0


class OpenRelease(msgspec.Struct, frozen=True):
    """What a runner must know. `now` is the pointer in force, `specs` and `calls` (declared callees) are by version; a version
    that is gone meanwhile is in neither."""

    id: int
    function: FunctionId
    alias: str
    target: int
    steps: tuple[Pointer, ...]
    step: int
    phase: ReleasePhase
    back: Pointer
    now: Pointer
    hold_s: float
    since: float
    specs: Mapping[int, VersionSpec]
    calls: Mapping[int, Sequence[str]]

    @property
    def next(self) -> Pointer:
        """The pointer that is being prepared, or in force while it holds."""
        return self.steps[self.step]


class ReleaseView(msgspec.Struct, frozen=True):
    """As seen last: `gate` is {version (name:number), wanted, ready, limit} of what the step needs, `watch` {version, requests,
    errors, p95_ms} of a step in force."""

    id: int
    function: str
    alias: str
    target: int
    phase: str
    step: int
    flipped: int
    steps: list[Pointer]
    back: Pointer
    hold_s: float
    reason: str
    gate: list[dict[str, Any]]
    watch: list[dict[str, Any]]
    created_at: float
    since: float
    ended_at: float | None


# -- parts of others' transactions


def open_release(session: Session, function: Function, alias: str) -> Release | None:
    return session.scalar(select(Release).where(Release.function == function.id, Release.alias == alias, Release.ended.is_(None)))


def settled(session: Session, function: Function, alias: str) -> Pointer | None:
    """Where the alias points, or pointed before the release that is under way: what a rollback of the next change brings back."""
    release = open_release(session, function, alias)
    return pointers.read(release.back) if release is not None else pointers.pointer_of(session, function, alias)


def begin(
    session: Session, function: Function, alias: str, target: Pointer, plan: Plan, now: float, sticky: str | None = None
) -> Release:
    """Supersedes what is open. `sticky` None: as it is. Raises ValueError for a ramp that leads nowhere, as splitting.steps_of
    says."""
    current = pointers.pointer_of(session, function, alias)
    assert current is not None
    steps = steps_of(current, target, plan.ramp)
    grows = growing(current, steps[-1])
    back = settled(session, function, alias) or current
    supersede(session, function, alias, now)
    if sticky is None:
        row = session.get(Alias, (function.id, alias))
        sticky = row.sticky if row is not None else ""
    release = Release(
        function=function.id,
        alias=alias,
        target=max(grows, key=lambda one: grows[one], default=target.version),
        steps=[pointers.written(one) for one in steps],
        back=pointers.written(back),
        sticky=sticky,
        hold_s=plan.hold_s,
        phase=ReleasePhase.PREPARING,
        reason="waits to be looked at",
        gate=[],
        created=now,
        since=now,
        step=0,
        flipped=0,
    )
    session.add(release)
    session.flush()
    return release


def supersede(session: Session, function: Function, alias: str, now: float, reason: str = "a newer one took its place") -> None:
    """What is open of the alias is over, where it stands. A version that waited for it is invocable by its number."""
    release = open_release(session, function, alias)
    if release is None:
        return
    end(release, ReleasePhase.SUPERSEDED, reason, now)
    if not release.flipped:
        pointers.announce(session, function, [release.target])
        pointers.bump(function)
        pointers.tell(session, function, now)
    session.flush()


def end(release: Release, phase: ReleasePhase, reason: str, now: float) -> None:
    """It is over; where the alias points is for whoever calls."""
    release.phase, release.reason, release.since, release.ended = phase, reason[: conditions.MAX_REASON], now, now


class Releases:
    def __init__(self, database: Database) -> None:
        self._database = database

    # -- for the runner

    def open(self) -> list[OpenRelease]:
        """The oldest OPEN_AT_ONCE; three queries however many there are, since whoever runs them asks all the time."""
        with self._database.read() as session:
            query = select(Release, Function).join(Function, Function.id == Release.function).where(Release.ended.is_(None))
            rows = session.execute(query.order_by(Release.id).limit(OPEN_AT_ONCE)).all()
            return _opened(session, [(release, function) for release, function in rows])

    @retried
    def progress(self, number: int, step: int, seen: Sequence[Mapping[str, Any]], reason: str, now: float) -> None:
        """What the step in preparation, or in force, waits for; `seen` as ReleaseView has `gate`, or `watch`. Whoever deployed
        the version sees the reason in its conditions."""
        with self._database.write() as session:
            release, function = _held(session, number, step)
            if release is None or function is None:
                return
            release.gate, release.reason = [dict(one) for one in seen], reason[: conditions.MAX_REASON]
            version = session.get(Version, (function.id, release.target))
            if version is not None and version.state == VersionState.PENDING:
                conditions.decide(session, version, ConditionName.ROUTE, ConditionStatus.UNKNOWN, reason, now)

    @retried
    def flip(self, number: int, step: int, now: float) -> bool:
        """The step is in force: pointer, generation and the event that tells the routes, at once. False: it was already, or the
        release is over."""
        with self._database.write() as session:
            release, function = _held(session, number, step)
            if release is None or function is None or release.phase != ReleasePhase.PREPARING:
                return False
            pointers.move(
                session,
                function,
                release.alias,
                pointers.read(release.steps[step]),
                now,
                pointers.read(release.back),
                release.sticky,
            )
            release.flipped, release.since = step + 1, now
            if step + 1 == len(release.steps):
                end(release, ReleasePhase.DONE, "", now)
            else:
                release.phase, release.reason = ReleasePhase.HOLDING, "has just begun"
            pointers.tell(session, function, now)
            return True

    @retried
    def advance(self, number: int, step: int, now: float) -> bool:
        """The step held: the next one is prepared."""
        with self._database.write() as session:
            release, _ = _held(session, number, step)
            if release is None or release.phase != ReleasePhase.HOLDING:
                return False
            release.step, release.phase, release.since, release.gate = step + 1, ReleasePhase.PREPARING, now, []
            release.reason = "waits to be looked at"
            return True

    @retried
    def stop(self, number: int, step: int, reason: str, now: float) -> bool:
        """Back to where it came from, at once; a version that never had traffic has failed."""
        with self._database.write() as session:
            release, function = _held(session, number, step)
            if release is None or function is None:
                return False
            _give_up(session, release, function, ReleasePhase.STOPPED, reason, now)
            return True

    @retried
    def expire(self, before: float, now: float) -> list[int]:
        """Ends what has waited since before then and changed nothing yet: nobody opens its gate. Returns the numbers."""
        with self._database.write() as session:
            late = (
                Release.ended.is_(None), Release.phase == ReleasePhase.PREPARING, Release.flipped == 0, Release.since < before
            )  # fmt: skip
            ended = []
            for release in session.scalars(select(Release).where(*late).limit(OPEN_AT_ONCE)).all():
                found, function = _held(session, release.id, release.step)
                if found is not None and function is not None and found.since < before:
                    _give_up(session, found, function, ReleasePhase.STOPPED, "no planner opened its gate in time", now)
                    ended.append(found.id)
            return ended

    # -- for the API

    @retried
    def abort(self, tenant: str, number: int, now: float) -> ReleaseView:
        """Raises NotFound; Conflict when it is over."""
        with self._database.write() as session:
            release, function = _of_tenant(session, tenant, number)
            session.refresh(function, with_for_update=True)
            session.refresh(release)
            if release.ended is not None:
                raise Conflict(f"release {number} is over: {release.phase}")
            _give_up(session, release, function, ReleasePhase.ABORTED, "it was aborted", now)
            return view_release(release, function)

    def describe(self, tenant: str, number: int) -> ReleaseView:
        """Raises NotFound."""
        with self._database.read() as session:
            return view_release(*_of_tenant(session, tenant, number))

    def list(self, tenant: str, function: str = "", limit: int = SHOWN) -> list[ReleaseView]:
        """Newest first."""
        query = select(Release, Function).join(Function, Function.id == Release.function).where(Function.tenant == tenant)
        if function:
            query = query.where(Function.name == function)
        with self._database.read() as session:
            return [view_release(one, of) for one, of in session.execute(query.order_by(Release.id.desc()).limit(limit)).all()]


def _held(session: Session, number: int, step: int) -> tuple[Release | None, Function | None]:
    """The release while it is open and at this step, and its function, both of this transaction."""
    owner = session.scalar(select(Release.function).where(Release.id == number))
    function = session.get(Function, owner, with_for_update=True) if owner is not None else None
    release = session.get(Release, number, with_for_update=True, populate_existing=True)
    if release is None or function is None or function.deleted is not None or release.ended is not None or release.step != step:
        return None, None
    return release, function


def _of_tenant(session: Session, tenant: str, number: int) -> tuple[Release, Function]:
    release = session.get(Release, number)
    function = session.get(Function, release.function) if release is not None else None
    if release is None or function is None or function.tenant != tenant:
        raise NotFound(f"no release {number}")
    return release, function


def _give_up(session: Session, release: Release, function: Function, phase: ReleasePhase, reason: str, now: float) -> None:
    back, current = pointers.read(release.back), pointers.pointer_of(session, function, release.alias)
    end(release, phase, reason, now)
    version = session.get(Version, (function.id, release.target))
    if version is not None and version.state == VersionState.PENDING:
        conditions.decide(session, version, ConditionName.ROUTE, ConditionStatus.FALSE, reason, now)
        version.state = VersionState.FAILED
    if current is not None and current != back:
        pointers.move(session, function, release.alias, back, now, current)
        pointers.tell(session, function, now)
    session.flush()


def _opened(session: Session, rows: Sequence[tuple[Release, Function]]) -> list[OpenRelease]:
    if not rows:
        return []
    owned = Alias.function.in_({function.id for _, function in rows})
    aliases = {(one.function, one.name): one for one in session.scalars(select(Alias).where(owned))}
    bare = [_bare(release, function, aliases.get((function.id, release.alias))) for release, function in rows]
    named = [{number for pointer in (*one.steps, one.back, one.now) for number in shares(pointer)} for one in bare]
    pairs = {(function.id, number) for (_, function), numbers in zip(rows, named, strict=True) for number in numbers}
    query = select(Version).where(tuple_(Version.function, Version.number).in_(pairs))
    versions = {(one.function, one.number): one for one in session.scalars(query)}
    found = []
    for one, (_, function), numbers in zip(bare, rows, named, strict=True):
        there = [version for number in sorted(numbers) if (version := versions.get((function.id, number))) is not None]
        specs = {version.number: view_spec(function, version) for version in there}
        calls = {version.number: tuple(version.calls) for version in there}
        found.append(msgspec.structs.replace(one, specs=specs, calls=calls))
    return found


def _bare(release: Release, function: Function, alias: Alias | None) -> OpenRelease:
    """Without its versions."""
    back = pointers.read(release.back)
    return OpenRelease(
        id=release.id,
        function=function_id(function.tenant, function.name),
        alias=release.alias,
        target=release.target,
        steps=tuple(pointers.read(one) for one in release.steps),
        step=release.step,
        phase=ReleasePhase(release.phase),
        back=back,
        now=pointers.meant(function, release.alias, alias) or back,
        hold_s=release.hold_s,
        since=release.since,
        specs={},
        calls={},
    )


def view_release(release: Release, function: Function) -> ReleaseView:
    return ReleaseView(
        id=release.id,
        function=function.name,
        alias=release.alias,
        target=release.target,
        phase=release.phase,
        step=release.step,
        flipped=release.flipped,
        steps=[pointers.read(one) for one in release.steps],
        back=pointers.read(release.back),
        hold_s=release.hold_s,
        reason=release.reason,
        gate=[one for one in release.gate if "wanted" in one],
        watch=[one for one in release.gate if "requests" in one],
        created_at=release.created,
        since=release.since,
        ended_at=release.ended,
    )
