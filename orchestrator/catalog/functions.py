"""Functions and their versions: every change writes state, a higher generation and one event in one transaction."""

from typing import Any

import msgspec
from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from graph.ids import LATEST, FunctionId, VersionId, function_id, name_of, number_of, tenant_of
from orchestrator.catalog import conditions
from orchestrator.catalog.database import Database, retried
from orchestrator.catalog.errors import NotFound, Refused
from orchestrator.catalog.model import (
    Condition,
    ConditionName,
    ConditionStatus,
    EventKind,
    Function,
    Layer,
    LayerRole,
    Package,
    Publication,
    Version,
    VersionState,
)
from orchestrator.catalog.outbox import add_event
from orchestrator.catalog.packages import requirements_source
from orchestrator.catalog.pointers import alive, bump, move, referred, row_of
from orchestrator.catalog.releases import Plan, begin, open_release, settled, supersede
from orchestrator.catalog.routes import Route
from orchestrator.catalog.tenants import check_quota, living, remove_function
from orchestrator.catalog.views import INVOCABLE, FunctionView, VersionView, view_functions, view_route, view_spec, view_version
from orchestrator.catalog.vpc_rows import check_there
from orchestrator.quotas import Quotas
from orchestrator.splitting import Pointer
from workers.versions import Scaling, VersionSpec

VERSIONS_KEPT = 100
"""Per function; older ones that nothing refers to go when a new one comes."""


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
    initial_instances: int = 0
    build: bool = False
    vpc: str = ""
    scaling: Scaling = Scaling()


class PendingVersion(msgspec.Struct, frozen=True):
    """What control-flow modules need of a version. `spec` has its layers once the code holds.

    `superseded`: a version with a higher generation serves already.
    """

    tenant: str
    number: int
    handler: str
    runtime: str
    package: str
    egress: str
    initial_instances: int
    build: bool
    superseded: bool
    created: float
    conditions: dict[ConditionName, ConditionStatus]
    spec: VersionSpec


class Functions:
    def __init__(self, database: Database, quotas: Quotas) -> None:
        self._database = database
        self._quotas = quotas

    @retried
    def put(self, tenant: str, name: str, settings: VersionSettings, now: float, plan: Plan | None = Plan()) -> FunctionView:  # noqa: B008
        """A new immutable version, waiting for its conditions. `plan`: how $LATEST comes to it then; None: at once, unprepared.

        Raises Refused for a package that was never uploaded or a private network that is not there, OverQuota for a function too
        many.
        """
        with self._database.write() as session:
            living(session, tenant, lock=True)
            if session.get(Package, (tenant, settings.package)) is None:
                raise Refused(f"no package {settings.package[:80]!r}; upload it to /v1/packages first", "package")
            if settings.vpc:
                check_there(session, tenant, settings.vpc)
            function = row_of(session, tenant, name)
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
            payload: dict[str, Any] = {"number": function.latest, "instances": settings.initial_instances}
            payload["release"] = msgspec.to_builtins(plan) if plan is not None else None
            waiting = conditions.waits_at_first(settings.initial_instances)
            add_event(session, EventKind.DEPLOYED, function_id(tenant, name), function.generation, payload, now, waiting)
            _forget_old(session, function, now)
            return view_functions(session, [function])[0]

    @retried
    def remove(self, tenant: str, name: str, now: float) -> None:
        """Versions go, the row and its generation stay. Raises NotFound."""
        with self._database.write() as session:
            remove_function(session, alive(session, tenant, name, lock=True), now)

    def list(self, tenant: str, after: str = "", limit: int = 1000) -> list[FunctionView]:
        """By name, the first `limit` whose name comes behind `after`."""
        with self._database.read() as session:
            query = select(Function).where(Function.tenant == tenant, Function.deleted.is_(None), Function.name > after)
            return view_functions(session, session.scalars(query.order_by(Function.name).limit(limit)).all())

    def describe(self, tenant: str, name: str) -> FunctionView:
        """Raises NotFound."""
        with self._database.read() as session:
            return view_functions(session, [alive(session, tenant, name)])[0]

    def check(self, tenant: str, name: str) -> None:
        """Raises NotFound."""
        with self._database.read() as session:
            alive(session, tenant, name)

    def describe_version(self, tenant: str, name: str, number: int) -> VersionView:
        """Raises NotFound."""
        with self._database.read() as session:
            version = session.get(Version, (alive(session, tenant, name).id, number))
            if version is None:
                raise NotFound(f"function {name!r} has no version {number}")
            rows = select(Condition).where(Condition.function == version.function, Condition.number == number)
            publication = session.get(Publication, (version.function, number))
            return view_version(version, session.scalars(rows.order_by(Condition.name)), publication)

    def lock(self, tenant: str, name: str, number: int) -> str:
        """What was installed for a version: a requirements file, every version pinned and hashed; empty when it needs nothing.

        Raises NotFound, also while its dependencies are not there.
        """
        with self._database.read() as session:
            version = session.get(Version, (alive(session, tenant, name).id, number))
            if version is None:
                raise NotFound(f"function {name!r} has no version {number}")
            package = session.get_one(Package, (tenant, version.package))
            if not package.requirements_digest:
                return ""
            source = requirements_source(package.requirements_digest, version.build)
            layer = session.get(Layer, (tenant, LayerRole.DEPENDENCIES, source, version.runtime))
            if layer is None:
                raise NotFound(f"version {number} of {name!r} has no lock: its dependencies are not resolved")
            return layer.lock

    # -- for the control-flow modules

    def pending(self, function: FunctionId, number: int) -> PendingVersion | None:
        """None when the version or its function is gone meanwhile."""
        with self._database.read() as session:
            version = conditions.version_of(session, function, number, lock=False)
            if version is None:
                return None
            row = session.get_one(Function, version.function)
            serving = session.get(Version, (row.id, row.serving)) if row.serving is not None else None
            return PendingVersion(
                tenant=version.tenant,
                number=number,
                handler=version.handler,
                runtime=version.runtime,
                package=version.package,
                egress=version.egress,
                initial_instances=version.initial_instances,
                build=version.build,
                created=version.created,
                superseded=serving is not None and serving.generation > version.generation,
                conditions=conditions.statuses(session, version),
                spec=view_spec(row, version),
            )

    @retried
    def set_layers(self, function: FunctionId, number: int, code: str, dependencies: str, size: int) -> None:
        """`size`: bytes unpacked, both layers. Does nothing when the version is gone."""
        with self._database.write() as session:
            version = conditions.version_of(session, function, number)
            if version is not None:
                version.code_layer, version.dependency_layer, version.layers_size = code, dependencies, size

    @retried
    def set_condition(
        self, function: FunctionId, number: int, name: ConditionName, status: ConditionStatus, reason: str, now: float
    ) -> bool:
        """One module's word, see conditions.decide. False when the version is gone."""
        with self._database.write() as session:
            version = conditions.version_of(session, function, number)
            if version is not None:
                conditions.decide(session, version, name, status, reason, now)
            return version is not None

    @retried
    def observe_network(self, function: FunctionId, number: int, status: ConditionStatus, reason: str, now: float) -> None:
        """How the network of a version that serves stands, see conditions.observed."""
        with self._database.write() as session:
            version = conditions.version_of(session, function, number)
            if version is not None:
                conditions.observed(session, version, ConditionName.NETWORK, status, reason, now)

    @retried
    def retry_network(self, function: FunctionId, number: int, now: float) -> bool:
        """The newest version, which failed for its network alone, begins anew: what it lacked has come. False for any other."""
        with self._database.write() as session:
            version = conditions.version_of(session, function, number)
            if version is None or version.state != VersionState.FAILED:
                return False
            row = session.get_one(Function, version.function)
            known = conditions.statuses(session, version)
            failed = {name for name in conditions.NEEDED if known[name] == ConditionStatus.FALSE}
            if row.latest != number or failed != {ConditionName.NETWORK}:
                return False
            conditions.reopen(session, version, now)
            payload = {"number": number, "instances": version.initial_instances, "release": msgspec.to_builtins(Plan())}
            waiting = conditions.waits_at_first(version.initial_instances)
            add_event(session, EventKind.DEPLOYED, function, version.generation, payload, now, waiting)
            conditions.wake(session, version, now)
            return True

    @retried
    def mark_serving(self, function: FunctionId, number: int, plan: Plan | None = None, now: float = 0.0) -> Route | None:
        """Makes the version invocable when all its conditions hold, and what $LATEST means unless a newer one is.

        With a `plan` a release leads $LATEST there, when another version serves: its first step makes the version invocable.
        Returns the route to publish, to be followed by `mark_published`; None when there is nothing to publish. Asking again
        changes nothing.
        """
        with self._database.write() as session:
            version = conditions.version_of(session, function, number)
            row = row_of(session, tenant_of(function), name_of(function))
            if version is None or row is None:
                return None
            known = conditions.statuses(session, version)
            if any(known[name] not in conditions.HOLDS for name in conditions.NEEDED):
                return None
            if version.state == VersionState.PENDING:
                release = open_release(session, row, LATEST)
                if release is not None and release.target == number:
                    return None
                coming = release.target if release is not None else None
                newest = max(_generation(session, row, row.serving), _generation(session, row, coming))
                if newest < version.generation and plan is not None and row.serving is not None:
                    begin(session, row, LATEST, Pointer(number), plan, now)
                    return None
                version.state = VersionState.PUBLISHING
                if newest < version.generation:
                    before = settled(session, row, LATEST)
                    supersede(session, row, LATEST, now)
                    move(session, row, LATEST, Pointer(number), now, before)
                else:
                    bump(row)
            elif version.state not in INVOCABLE:
                return None
            session.flush()
            return view_route(session, row)

    @retried
    def mark_published(self, route: Route, now: float) -> None:
        """The routes say so now: users may be told. A route that was overtaken changes nothing."""
        with self._database.write() as session:
            row = row_of(session, tenant_of(route.function), name_of(route.function))
            if row is not None and row.deleted is None and row.route_generation == route.generation:
                row.published = route.latest
                ready = [number_of(VersionId(spec.version)) for spec in route.versions]
                told = select(Version).where(
                    Version.function == row.id, Version.number.in_(ready), Version.state != VersionState.READY
                )
                for version in session.scalars(told).all():
                    conditions.announced(session, version, now)

    def route(self, function: FunctionId) -> Route | None:
        """What gateways should know of the function now."""
        with self._database.read() as session:
            row = row_of(session, tenant_of(function), name_of(function), lock=False)
            return view_route(session, row) if row is not None else None


def _told(scaling: Scaling) -> dict[str, int | float]:
    """What was set of it."""
    return {name: value for name in Scaling.__struct_fields__ if (value := getattr(scaling, name))}


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
        initial_instances=settings.initial_instances,
        build=settings.build,
        vpc=settings.vpc,
        scaling=_told(settings.scaling),
        package=settings.package,
        state=VersionState.PENDING,
        created=now,
    )
    session.add(version)
    session.flush()
    conditions.add_conditions(session, version, now)


def _generation(session: Session, function: Function, number: int | None) -> int:
    """Of a version; 0 when there is none."""
    version = session.get(Version, (function.id, number)) if number is not None else None
    return version.generation if version is not None else 0


def _forget_old(session: Session, function: Function, now: float) -> None:
    keep = referred(session, function)
    old = (
        Version.function == function.id,
        Version.number <= function.latest - VERSIONS_KEPT,
        Version.number.not_in(keep),
    )
    generations = session.scalars(select(Version.generation).where(*old)).all()
    if generations:
        session.execute(delete(Version).where(*old))
        conditions.let_go(session, function_id(function.tenant, function.name), now, generations)
