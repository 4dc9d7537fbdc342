"""Tenants: the owners of functions, their quotas, and their end. Every change writes a higher generation and an event."""

from collections.abc import Iterator

import msgspec
from sqlalchemy import Select, delete, func, select, update
from sqlalchemy.orm import Session

from graph.ids import TENANT_PATTERN, function_id, version_id
from orchestrator.catalog import conditions
from orchestrator.catalog.database import Database, retried
from orchestrator.catalog.errors import Conflict, NotFound, OverQuota, Refused
from orchestrator.catalog.model import (
    Alias,
    EventKind,
    Function,
    Key,
    Layer,
    Module,
    Package,
    Release,
    ReleasePhase,
    Tenant,
    Version,
    Vpc,
)
from orchestrator.catalog.outbox import add_event
from orchestrator.catalog.routes import TenantRoute
from orchestrator.catalog.vpc_rows import end
from orchestrator.quotas import OwnQuotas, Quotas, in_force, refusal

DEFAULT_TENANT = "default"
"""The tenant of whoever runs the platform."""

TENANTS = 10_000
SHOWN = 5


class TenantUse(msgspec.Struct, frozen=True):
    functions: int
    package_bytes: int
    keys: int
    vpcs: int = 0


class TenantView(msgspec.Struct, frozen=True):
    """`own`: what was set for it. `quotas`: what is in force."""

    name: str
    created: float
    own: OwnQuotas
    quotas: Quotas
    use: TenantUse


class Tenants:
    """`defaults` are the quotas of a tenant for which none was set."""

    def __init__(self, database: Database, defaults: Quotas) -> None:
        self._database = database
        self._defaults = defaults

    @retried
    def create(self, name: str, quotas: OwnQuotas, now: float) -> TenantView:
        """Raises Refused for what is no name, Conflict for one that is taken or was once."""
        if not TENANT_PATTERN.match(name):
            raise Refused(f"{name[:80]!r}: a tenant is 1 to 63 lower-case letters, digits and hyphens", "name")
        with self._database.write() as session:
            known = session.get(Tenant, name)
            if known is not None:
                again = "exists already" if known.removed is None else "was removed, and names are never given again"
                raise Conflict(f"tenant {name!r} {again}; choose another name")
            if (session.scalar(select(func.count()).select_from(Tenant)) or 0) >= TENANTS:
                raise Conflict(f"there are {TENANTS} tenants, which is the limit")
            tenant = Tenant(name=name, created=now, generation=0)
            session.add(tenant)
            session.flush()
            if quotas != OwnQuotas():  # without any there is nothing to tell
                _set(tenant, quotas)
                _tell(session, tenant, now)
            return self._view(session, tenant)

    def list(self, after: str = "", limit: int = 1000) -> list[TenantView]:
        """By name, the first `limit` whose name comes behind `after`."""
        with self._database.read() as session:
            query = select(Tenant).where(Tenant.removed.is_(None), Tenant.name > after).order_by(Tenant.name).limit(limit)
            tenants = session.scalars(query).all()
            used = _use(session, [tenant.name for tenant in tenants])
            return [self._view(session, tenant, used[tenant.name]) for tenant in tenants]

    def describe(self, name: str) -> TenantView:
        """Raises NotFound."""
        with self._database.read() as session:
            return self._view(session, living(session, name))

    @retried
    def set_quotas(self, name: str, quotas: OwnQuotas, now: float) -> TenantView:
        """All of them: what is None is the default from now on. One under what is in use stops what is new. Raises NotFound."""
        with self._database.write() as session:
            tenant = living(session, name, lock=True)
            _set(tenant, quotas)
            _tell(session, tenant, now)
            return self._view(session, tenant)

    @retried
    def remove(self, name: str, with_functions: bool, now: float) -> None:
        """Its functions, packages and private networks go and its keys die, all in this moment. Removing twice is once.

        Raises NotFound, and Conflict for the default tenant or when there are functions and they are not to go with it.
        """
        if name == DEFAULT_TENANT:
            raise Conflict(f"tenant {name!r} belongs to whoever runs the platform and stays")
        with self._database.write() as session:
            tenant = session.get(Tenant, name, with_for_update=True)
            if tenant is None:
                raise NotFound(f"no tenant {name!r}")
            if tenant.removed is not None:
                return
            functions = session.scalars(_alive(name).order_by(Function.id).with_for_update()).all()
            if functions and not with_functions:
                names = ", ".join(sorted(one.name for one in functions)[:SHOWN]) + (", ..." if len(functions) > SHOWN else "")
                raise Conflict(
                    f"tenant {name!r} has {len(functions)} functions ({names}); remove them first, or ask for them to go"
                )
            for function in functions:
                remove_function(session, function, now)
            for key in session.scalars(select(Key).where(Key.tenant == name, Key.revoked.is_(None))):
                revoke(session, key, now)
            for vpc in session.scalars(select(Vpc).where(Vpc.tenant == name, Vpc.removed.is_(None)).with_for_update()):
                end(session, vpc, now)
            session.execute(delete(Layer).where(Layer.tenant == name))
            session.execute(delete(Package).where(Package.tenant == name))
            tenant.removed = now
            _tell(session, tenant, now)

    def published(self) -> Iterator[TenantRoute]:
        """What gateways and planners are to know, of removed tenants too."""
        with self._database.read() as session:
            found = session.scalars(select(Tenant).where(Tenant.generation > 0)).all()
        yield from map(_route, found)

    def published_one(self, name: str) -> TenantRoute | None:
        with self._database.read() as session:
            tenant = session.get(Tenant, name)
            return _route(tenant) if tenant is not None else None

    def _view(self, session: Session, tenant: Tenant, use: TenantUse | None = None) -> TenantView:
        own = _own(tenant)
        used = use or _use(session, [tenant.name])[tenant.name]
        return TenantView(tenant.name, tenant.created, own, in_force(own, self._defaults), used)


# -- parts of others' transactions


def living(session: Session, name: str, lock: bool = False) -> Tenant:
    """Raises NotFound for a tenant that is not there, or not any more. `lock`: until the end of the transaction."""
    tenant = session.get(Tenant, name, with_for_update=True if lock else None)
    if tenant is None or tenant.removed is not None:
        raise NotFound(f"no tenant {name!r}")
    return tenant


def check_quota(session: Session, name: str, quota: str, more: int, defaults: Quotas) -> None:
    """Holds the tenant's row, so that two that ask at once are counted one after the other. `quota`: `functions`,
    `package_bytes` or `vpcs`. Raises NotFound, OverQuota."""
    limit = getattr(in_force(_own(living(session, name, lock=True)), defaults), quota)
    why = refusal(name, quota, getattr(_use(session, [name])[name], quota), more, limit)
    if why:
        raise OverQuota(why, quota)


def remove_function(session: Session, function: Function, now: float) -> None:
    """Its versions go, the row and its generation stay."""
    function.generation += 1
    function.route_generation = function.generation
    function.deleted = now
    function.serving = function.published = None
    identity = function_id(function.tenant, function.name)
    filled = select(Version.number).where(Version.function == function.id, Version.initial_instances > 0)
    versions = [version_id(identity, number) for number in session.scalars(filled)]
    session.execute(delete(Alias).where(Alias.function == function.id))
    over = update(Release).where(Release.function == function.id, Release.ended.is_(None))
    session.execute(over.values(phase=ReleasePhase.SUPERSEDED, reason="the function was removed", since=now, ended=now))
    session.execute(delete(Version).where(Version.function == function.id))
    conditions.let_go(session, identity, now)
    skipped = () if versions else (Module.SCHEDULING,)
    add_event(session, EventKind.REMOVED, identity, function.generation, {"versions": versions}, now, skipped=skipped)


def revoke(session: Session, key: Key, now: float) -> None:
    key.revoked = now
    key.generation += 1
    add_event(session, EventKind.KEY, key.digest, key.generation, {}, now)


def _alive(tenant: str) -> Select[Function]:
    return select(Function).where(Function.tenant == tenant, Function.deleted.is_(None))


def _use(session: Session, names: list[str]) -> dict[str, TenantUse]:
    """Four queries however many tenants."""
    session.flush()
    functions = select(Function.tenant, func.count()).where(Function.tenant.in_(names), Function.deleted.is_(None))
    sizes = select(Package.tenant, func.sum(Package.size)).where(Package.tenant.in_(names))
    keys = select(Key.tenant, func.count()).where(Key.tenant.in_(names), Key.revoked.is_(None))
    networks = select(Vpc.tenant, func.count()).where(Vpc.tenant.in_(names), Vpc.removed.is_(None))
    counted = {name: int(count) for name, count in session.execute(functions.group_by(Function.tenant)).all()}
    held = {name: int(size) for name, size in session.execute(sizes.group_by(Package.tenant)).all()}
    live = {name: int(count) for name, count in session.execute(keys.group_by(Key.tenant)).all()}
    inside = {name: int(count) for name, count in session.execute(networks.group_by(Vpc.tenant)).all()}
    return {name: TenantUse(counted.get(name, 0), held.get(name, 0), live.get(name, 0), inside.get(name, 0)) for name in names}


def _own(tenant: Tenant) -> OwnQuotas:
    return OwnQuotas(*(getattr(tenant, f"max_{name}") for name in OwnQuotas.__struct_fields__))


def _set(tenant: Tenant, quotas: OwnQuotas) -> None:
    for name in OwnQuotas.__struct_fields__:
        setattr(tenant, f"max_{name}", getattr(quotas, name))


def _tell(session: Session, tenant: Tenant, now: float) -> None:
    tenant.generation += 1
    session.flush()
    add_event(session, EventKind.TENANT, tenant.name, tenant.generation, {}, now)


def _route(tenant: Tenant) -> TenantRoute:
    return TenantRoute(tenant.name, tenant.generation, _own(tenant), tenant.removed is not None)
