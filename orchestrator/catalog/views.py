"""What the catalog shows: functions and versions as users see them, routes as gateways need them."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from graph.ids import LATEST, function_id, version_id
from orchestrator.catalog.model import Alias, Condition, Function, Publication, Version, VersionState
from orchestrator.catalog.pointers import chosen
from orchestrator.catalog.routes import VERSIONS_PER_ROUTE, AliasRoute, Route
from workers.versions import CodePackage, Kind, Scaling, VersionSpec

VERSIONS_SHOWN = 20
RECENT = 5
"""Of a route, so many of the newest versions at least, whatever else is in it."""

INVOCABLE = (VersionState.READY, VersionState.PUBLISHING)
MASK = "***"


class ConditionView(msgspec.Struct, frozen=True):
    name: str
    status: str
    reason: str
    since: float


class VersionView(msgspec.Struct, frozen=True):
    number: int
    state: str
    created_at: float
    kind: str
    handler: str
    runtime: str
    memory_mb: int
    timeout_s: float
    concurrency: int
    environment: dict[str, str]
    calls: list[str]
    egress: str
    vpc: str
    initial_instances: int
    scaling: dict[str, Any]
    build: bool
    package: str
    conditions: list[ConditionView]
    published_at: float | None = None
    label: str = ""


class CallView(msgspec.Struct, frozen=True):
    """A declared callee; `deployed`: it exists and serves."""

    name: str
    deployed: bool


class FunctionView(msgspec.Struct, frozen=True):
    """`latest`: the version that serves, None when none does yet. `versions`: newest first, VERSIONS_SHOWN and
    those that aliases mean or that were published."""

    name: str
    kind: str
    latest: int | None
    versions: list[VersionView]
    calls: list[CallView]


def view_version(version: Version, conditions: Iterable[Condition], publication: Publication | None = None) -> VersionView:
    return VersionView(
        number=version.number,
        state=VersionState.PENDING if version.state == VersionState.PUBLISHING else version.state,
        created_at=version.created,
        kind=version.kind,
        handler=version.handler,
        runtime=version.runtime,
        memory_mb=version.memory_mb,
        timeout_s=version.timeout_s,
        concurrency=version.concurrency,
        environment=dict.fromkeys(version.environment_names, MASK),
        calls=list(version.calls),
        egress=version.egress,
        vpc=version.vpc,
        initial_instances=version.initial_instances,
        scaling=dict(version.scaling),
        build=version.build,
        package=version.package,
        conditions=[ConditionView(one.name, one.status, one.reason, one.since) for one in conditions],
        published_at=publication.published if publication is not None else None,
        label=publication.label if publication is not None else "",
    )


def view_functions(session: Session, functions: Sequence[Function]) -> list[FunctionView]:
    """In the order given; a handful of queries however many there are."""
    if not functions:
        return []
    ids = [function.id for function in functions]
    kept: dict[tuple[int, int], Publication] = {
        (one.function, one.number): one for one in session.scalars(select(Publication).where(Publication.function.in_(ids)))
    }
    recent = or_(Version.number > Function.latest - VERSIONS_SHOWN, Version.number == Function.published, chosen())
    versions: dict[int, list[Version]] = defaultdict(list)
    query = select(Version).join(Function, Function.id == Version.function).where(Function.id.in_(ids), recent)
    for version in session.scalars(query.order_by(Version.number.desc())):
        versions[version.function].append(version)
    conditions: dict[tuple[int, int], list[Condition]] = defaultdict(list)
    for condition in session.scalars(select(Condition).where(Condition.function.in_(ids)).order_by(Condition.name)):
        conditions[condition.function, condition.number].append(condition)
    callees = {name for found in versions.values() for name in found[0].calls}
    serving = select(Function.name).where(
        Function.tenant == functions[0].tenant,
        Function.name.in_(callees),
        Function.deleted.is_(None),
        Function.published.is_not(None),
    )
    deployed = set(session.scalars(serving)) if callees else set()
    return [
        FunctionView(
            name=function.name,
            kind=function.kind,
            latest=function.published,
            versions=[
                view_version(version, conditions[function.id, version.number], kept.get((function.id, version.number)))
                for version in versions[function.id]
            ],
            calls=[
                CallView(name, name in deployed) for name in (versions[function.id][0].calls if versions[function.id] else ())
            ],
        )
        for function in functions
    ]


def view_route(session: Session, function: Function) -> Route | None:
    """None while nothing serves. What aliases mean and what was published is always in it, however many newer ones are ready."""
    if function.serving is None or function.deleted is not None:
        return None
    aliases = session.scalars(select(Alias).where(Alias.function == function.id).order_by(Alias.name)).all()
    published = session.scalars(select(Publication.number).where(Publication.function == function.id)).all()
    meant = {function.serving, *published, *(number for one in aliases for number in (one.version, one.second) if number)}
    query = select(Version).where(Version.function == function.id, Version.state.in_(INVOCABLE))
    others = query.where(Version.number.not_in(meant)).order_by(Version.number.desc())
    ready = list(session.scalars(query.where(Version.number.in_(meant))))
    ready += session.scalars(others.limit(max(VERSIONS_PER_ROUTE - len(meant), RECENT)))
    ready.sort(key=lambda version: version.number)
    latest = next((one for one in aliases if one.name == LATEST and one.second is not None), None)
    serving = {function.serving} | ({latest.second} if latest is not None else set())
    calls = dict.fromkeys(name for version in ready if version.number in serving for name in version.calls)
    return Route(
        function_id(function.tenant, function.name),
        function.route_generation,
        function.serving,
        tuple(view_spec(function, version) for version in ready),
        tuple(calls),
        tuple(
            AliasRoute(one.name, one.version, one.second, one.share, one.sticky)
            for one in aliases
            if one.name != LATEST or one is latest
        ),
    )


def view_spec(function: Function, version: Version) -> VersionSpec:
    """What a node must know to run it."""
    return VersionSpec(
        version=version_id(function_id(function.tenant, function.name), version.number),
        tenant=function.tenant,
        handler=version.handler,
        kind=Kind(version.kind),
        runtime=version.runtime,
        memory_mb=version.memory_mb,
        timeout_s=version.timeout_s,
        concurrency=version.concurrency,
        package=CodePackage(version.code_layer, version.dependency_layer, version.layers_size),
        environment=version.environment,
        egress=version.egress,
        vpc=f"{function.tenant}/{version.vpc}" if version.vpc else "",
        scaling=Scaling(**version.scaling),
    )
