"""Functions and their versions: every change writes state, a higher generation and one event in one transaction."""

import msgspec
from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from graph.ids import FunctionId, VersionId, function_id, name_of, number_of, tenant_of
from orchestrator.catalog.database import Database
from orchestrator.catalog.errors import NotFound, Refused
from orchestrator.catalog.model import (
    Condition,
    ConditionName,
    ConditionStatus,
    EventKind,
    Function,
    Package,
    Version,
    VersionState,
)
from orchestrator.catalog.outbox import add_event, conditions_changed
from orchestrator.catalog.quotas import Quotas
from orchestrator.catalog.routes import Route
from orchestrator.catalog.tenants import check_quota, living, remove_function
from orchestrator.catalog.views import FunctionView, VersionView, view_functions, view_route, view_version

VERSIONS_KEPT = 100
"""Per function; older ones that do not serve go when a new one comes."""


class VersionSettings(msgspec.Struct, frozen=True):
    """What a deploy fixes for good. `environment` is sealed, its names are kept beside it to be shown."""

    package: str
    handler: str
    kind: str
    runtime: str
    memory_mb: int
    timeout_s: float
    concurrency: int
    environment: bytes = b""
    environment_names: tuple[str, ...] = ()
    calls: tuple[str, ...] = ()
    egress: str = "none"


class PendingVersion(msgspec.Struct, frozen=True):
    """What function management needs to build a version."""

    tenant: str
    number: int
    handler: str
    runtime: str
    package: str


class Functions:
    def __init__(self, database: Database, quotas: Quotas) -> None:
        self._database = database
        self._quotas = quotas

    def put(self, tenant: str, name: str, settings: VersionSettings, now: float) -> FunctionView:
        """A new immutable version, waiting for its conditions.

        Raises Refused for a package that was never uploaded, OverQuota for a function too many.
        """
        with self._database.write() as session:
            living(session, tenant, lock=True)
            if session.get(Package, (tenant, settings.package)) is None:
                raise Refused(f"no package {settings.package[:80]!r}; upload it to /v1/packages first", "package")
            function = _row(session, tenant, name)
            if function is None or function.deleted is not None:
                check_quota(session, tenant, "functions", 1, self._quotas)
            if function is None:
                function = Function(tenant=tenant, name=name, kind=settings.kind, generation=0, latest=0, created=now)
                session.add(function)
            function.deleted = None
            function.kind = settings.kind
            function.generation += 1
            function.latest += 1
            session.flush()
            _add_version(session, function, settings, now)
            payload = {"number": function.latest}
            add_event(session, EventKind.DEPLOYED, function_id(tenant, name), function.generation, payload, now)
            _forget_old(session, function)
            return view_functions(session, [function])[0]

    def remove(self, tenant: str, name: str, now: float) -> None:
        """Versions go, the row and its generation stay. Raises NotFound."""
        with self._database.write() as session:
            remove_function(session, _alive(session, tenant, name, lock=True), now)

    def list(self, tenant: str, after: str = "", limit: int = 1000) -> list[FunctionView]:
        """By name, the first `limit` whose name comes behind `after`."""
        with self._database.read() as session:
            query = select(Function).where(Function.tenant == tenant, Function.deleted.is_(None), Function.name > after)
            return view_functions(session, session.scalars(query.order_by(Function.name).limit(limit)).all())

    def describe(self, tenant: str, name: str) -> FunctionView:
        """Raises NotFound."""
        with self._database.read() as session:
            return view_functions(session, [_alive(session, tenant, name)])[0]

    def describe_version(self, tenant: str, name: str, number: int) -> VersionView:
        """Raises NotFound."""
        with self._database.read() as session:
            version = session.get(Version, (_alive(session, tenant, name).id, number))
            if version is None:
                raise NotFound(f"function {name!r} has no version {number}")
            conditions = select(Condition).where(Condition.function == version.function, Condition.number == number)
            return view_version(version, session.scalars(conditions.order_by(Condition.name)))

    # -- for the control-flow modules

    def pending(self, function: FunctionId, number: int) -> PendingVersion | None:
        """None when the version or its function is gone meanwhile."""
        with self._database.read() as session:
            version = _version(session, function, number, lock=False)
            if version is None:
                return None
            return PendingVersion(version.tenant, number, version.handler, version.runtime, version.package)

    def set_layers(self, function: FunctionId, number: int, code: str, dependencies: str, size: int) -> None:
        """`size`: bytes unpacked, both layers. Does nothing when the version is gone."""
        with self._database.write() as session:
            version = _version(session, function, number)
            if version is not None:
                version.code_layer, version.dependency_layer, version.layers_size = code, dependencies, size

    def set_condition(
        self, function: FunctionId, number: int, name: ConditionName, status: ConditionStatus, reason: str, now: float
    ) -> None:
        """One module's word. The last undecided one makes what waits for it due. Does nothing when the version is gone."""
        with self._database.write() as session:
            version = _version(session, function, number)
            if version is None:
                return
            condition = session.get(Condition, (version.function, number, name))
            if condition is None:
                condition = Condition(function=version.function, number=number, name=name, status=status, reason=reason)
                session.add(condition)
            condition.status, condition.reason = status, reason[:4000]
            if status == ConditionStatus.FALSE and version.state == VersionState.PENDING:
                version.state = VersionState.FAILED
            conditions_changed(session, version.function, number, function, version.generation, now)

    def mark_serving(self, function: FunctionId, number: int) -> Route | None:
        """Makes the version invocable when all its conditions hold, and the serving one unless one with a higher generation is.

        Returns the route to publish, to be followed by `mark_published`; None when there is nothing to publish. Asking again
        changes nothing.
        """
        with self._database.write() as session:
            version = _version(session, function, number)
            row = _row(session, tenant_of(function), name_of(function))
            if version is None or row is None:
                return None
            statuses = session.scalars(select(Condition.status).where(Condition.function == row.id, Condition.number == number))
            if not set(statuses) <= {ConditionStatus.TRUE, ConditionStatus.NOT_NEEDED}:
                return None
            if version.state not in (VersionState.READY, VersionState.PUBLISHING):
                version.state = VersionState.PUBLISHING
                serving = session.get(Version, (row.id, row.serving)) if row.serving is not None else None
                if serving is None or serving.generation < version.generation:
                    row.serving = number
                row.generation += 1
                row.route_generation = row.generation
            session.flush()
            return view_route(session, row)

    def mark_published(self, route: Route) -> None:
        """The routes say so now: users may be told. A route that was overtaken changes nothing."""
        with self._database.write() as session:
            row = _row(session, tenant_of(route.function), name_of(route.function))
            if row is not None and row.deleted is None and row.route_generation == route.generation:
                row.published = route.latest
                ready = [number_of(VersionId(spec.version)) for spec in route.versions]
                told = update(Version).where(Version.function == row.id, Version.number.in_(ready))
                session.execute(told.values(state=VersionState.READY))

    def route(self, function: FunctionId) -> Route | None:
        """What gateways should know of the function now."""
        with self._database.read() as session:
            row = _row(session, tenant_of(function), name_of(function), lock=False)
            return view_route(session, row) if row is not None else None


def _row(session: Session, tenant: str, name: str, lock: bool = True) -> Function | None:
    query = select(Function).where(Function.tenant == tenant, Function.name == name)
    return session.scalar(query.with_for_update() if lock else query)


def _alive(session: Session, tenant: str, name: str, lock: bool = False) -> Function:
    function = _row(session, tenant, name, lock)
    if function is None or function.deleted is not None:
        raise NotFound(f"no function {name!r}")
    return function


def _version(session: Session, function: FunctionId, number: int, lock: bool = True) -> Version | None:
    row = _row(session, tenant_of(function), name_of(function), lock)
    return session.get(Version, (row.id, number)) if row is not None and row.deleted is None else None


def _add_version(session: Session, function: Function, settings: VersionSettings, now: float) -> None:
    version = Version(
        function=function.id,
        number=function.latest,
        generation=function.generation,
        tenant=function.tenant,
        kind=settings.kind,
        handler=settings.handler,
        runtime=settings.runtime,
        memory_mb=settings.memory_mb,
        timeout_s=settings.timeout_s,
        concurrency=settings.concurrency,
        environment=settings.environment,
        environment_names=sorted(settings.environment_names),
        calls=list(settings.calls),
        egress=settings.egress,
        package=settings.package,
        state=VersionState.PENDING,
        created=now,
    )
    session.add(version)
    session.flush()
    for name in ConditionName:
        known = name == ConditionName.CODE
        status = ConditionStatus.UNKNOWN if known else ConditionStatus.NOT_NEEDED
        reason = "waiting to be built" if known else ""
        session.add(Condition(function=function.id, number=function.latest, name=name, status=status, reason=reason))
    session.flush()


def _forget_old(session: Session, function: Function) -> None:
    old = delete(Version).where(Version.function == function.id, Version.number <= function.latest - VERSIONS_KEPT)
    keep = {number for number in (function.serving, function.published) if number is not None}
    session.execute(old.where(Version.number.not_in(keep)))
