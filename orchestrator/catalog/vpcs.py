"""Private networks of tenants: every change writes a higher generation and one event in one transaction."""

from collections.abc import Iterator, Sequence

import msgspec
from sqlalchemy import ColumnElement, or_, select
from sqlalchemy.orm import Session

from graph.ids import FunctionId, function_id
from orchestrator.catalog.database import Database, retried
from orchestrator.catalog.errors import Conflict, NotFound
from orchestrator.catalog.model import Function, Node, NodeState, Version, Vpc
from orchestrator.catalog.pointers import chosen
from orchestrator.catalog.tenants import check_quota
from orchestrator.catalog.vpc_rows import changed, end, find, last_generation, spec_of, tell
from orchestrator.quotas import Quotas
from orchestrator.vpcs import MAX_NUMBER, check_name, read_address, read_cidrs, read_rules
from workers.networks import VpcSpec

SHOWN = 5


class VpcSettings(msgspec.Struct, frozen=True):
    """What its owner says of it, not checked yet. `rules` as orchestrator.vpcs reads them."""

    cidrs: Sequence[str]
    rules: Sequence[str] = ()
    address: str = ""
    resolver: str = ""


class VpcView(msgspec.Struct, frozen=True):
    """`functions`: those with a version in it that can be asked for (see `users`). `spec` as nodes know it."""

    name: str
    cidrs: list[str]
    rules: list[str]
    address: str
    resolver: str
    created: float
    functions: list[str]
    spec: VpcSpec


class VpcUser(msgspec.Struct, frozen=True):
    """A version that is in a private network and can be asked for."""

    function: FunctionId
    number: int


class NodeOfVpc(msgspec.Struct, frozen=True):
    """A node that may host the network's tenant, as a proxy must know it. `address`: host:port."""

    name: str
    address: str
    number: int
    fingerprint: str
    fingerprint_before: str


class ProxyNews(msgspec.Struct, frozen=True):
    """All that a proxy is to know. `spec` None: its network is gone."""

    spec: VpcSpec | None
    nodes: list[NodeOfVpc] = []


class PublishedVpc(msgspec.Struct, frozen=True):
    """`spec` None: it is gone; then `generation` is all that readers must remember."""

    vpc: str
    generation: int
    spec: VpcSpec | None


class Vpcs:
    def __init__(self, database: Database, quotas: Quotas) -> None:
        self._database = database
        self._quotas = quotas

    @retried
    def create(self, tenant: str, name: str, settings: VpcSettings, now: float) -> VpcView:
        """Raises Refused naming the field, Conflict for a name that is taken, OverQuota."""
        check_name(name)
        read = _read(settings)
        with self._database.write() as session:
            check_quota(session, tenant, "vpcs", 1, self._quotas)
            if find(session, tenant, name) is not None:
                raise Conflict(f"private network {name!r} exists already; choose another name, or change it")
            vpc = Vpc(tenant=tenant, name=name, created=now, generation=last_generation(session, tenant, name))
            _write(vpc, read)
            session.add(vpc)
            session.flush()
            if vpc.number > MAX_NUMBER:
                raise Conflict(f"{MAX_NUMBER} private networks were made in this cluster, which is all there can be")
            changed(session, vpc, now)
            return _view(session, vpc)

    @retried
    def change(self, tenant: str, name: str, settings: VpcSettings, now: float) -> VpcView:
        """All of its settings. Connections that they do not allow any more end. Raises Refused, NotFound."""
        read = _read(settings)
        with self._database.write() as session:
            vpc = _there(session, tenant, name, lock=True)
            _write(vpc, read)
            changed(session, vpc, now)
            return _view(session, vpc)

    def users(self, vpc: str) -> list[VpcUser]:
        """Of each function the versions in it that can be asked for: the newest, what serves, what aliases mean, what was
        published."""
        tenant, _, name = vpc.partition("/")
        with self._database.read() as session:
            query = select(Function, Version.number).join(Version, Version.function == Function.id)
            found = session.execute(query.where(*_using(tenant, name)).order_by(Function.name, Version.number))
            return [VpcUser(function_id(function.tenant, function.name), number) for function, number in found]

    def list(self, tenant: str, after: str = "", limit: int = 1000) -> list[VpcView]:
        """By name, the first `limit` whose name comes behind `after`."""
        with self._database.read() as session:
            query = select(Vpc).where(Vpc.tenant == tenant, Vpc.removed.is_(None), Vpc.name > after)
            return [_view(session, one) for one in session.scalars(query.order_by(Vpc.name).limit(limit))]

    def describe(self, tenant: str, name: str) -> VpcView:
        """Raises NotFound."""
        with self._database.read() as session:
            return _view(session, _there(session, tenant, name))

    @retried
    def remove(self, tenant: str, name: str, now: float) -> None:
        """From now on no instance is attached; those that are keep it until they end. Raises NotFound, and Conflict while it
        has users."""
        with self._database.write() as session:
            vpc = _there(session, tenant, name, lock=True)
            users = _functions(session, vpc)
            if users:
                some = ", ".join(users[:SHOWN]) + (", ..." if len(users) > SHOWN else "")
                raise Conflict(
                    f"private network {name!r} is used by {len(users)} functions ({some}): deploy them without it, and "
                    "leave none of their aliases and published versions in it, or remove them, first"
                )
            end(session, vpc, now)

    @retried
    def moved(self, vpc: str, now: float) -> None:
        """Tunnels into it came or went: the versions in it are looked at again. Does nothing when it is gone."""
        tenant, _, name = vpc.partition("/")
        with self._database.write() as session:
            found = find(session, tenant, name, lock=True)
            if found is not None:
                tell(session, found, now)

    def news(self, vpc: str) -> ProxyNews:
        """For a proxy of it."""
        tenant, _, name = vpc.partition("/")
        with self._database.read() as session:
            found = find(session, tenant, name)
            if found is None:
                return ProxyNews(None)
            members = select(Node).where(Node.role == "node", Node.state != NodeState.LEFT).order_by(Node.name)
            nodes = [
                NodeOfVpc(one.name, one.address, one.number or 0, one.fingerprint, one.fingerprint_before)
                for one in session.scalars(members)
                if not one.tenants or tenant in one.tenants.split()
            ]
            return ProxyNews(spec_of(session, found), nodes)

    def published(self) -> Iterator[PublishedVpc]:
        """What planners are to know, of those that are gone too."""
        with self._database.read() as session:
            last: dict[str, Vpc] = {}
            for vpc in session.scalars(select(Vpc).order_by(Vpc.number)):
                last[f"{vpc.tenant}/{vpc.name}"] = vpc
            found = [_published(session, vpc) for vpc in last.values()]
        yield from found

    def published_one(self, vpc: str) -> PublishedVpc | None:
        tenant, _, name = vpc.partition("/")
        with self._database.read() as session:
            query = select(Vpc).where(Vpc.tenant == tenant, Vpc.name == name).order_by(Vpc.number.desc()).limit(1)
            found = session.scalar(query)
            return _published(session, found) if found is not None else None


def _read(settings: VpcSettings) -> VpcSettings:
    cidrs = read_cidrs(settings.cidrs)
    return VpcSettings(
        cidrs,
        read_rules(settings.rules, cidrs),
        read_address(settings.address, "address"),
        read_address(settings.resolver, "resolver", cidrs),
    )


def _write(vpc: Vpc, read: VpcSettings) -> None:
    vpc.cidrs, vpc.rules, vpc.address, vpc.resolver = list(read.cidrs), list(read.rules), read.address, read.resolver


def _there(session: Session, tenant: str, name: str, lock: bool = False) -> Vpc:
    vpc = find(session, tenant, name, lock)
    if vpc is None:
        raise NotFound(f"no private network {name[:63]!r}")
    return vpc


def _using(tenant: str, name: str) -> tuple[ColumnElement[bool], ...]:
    return (
        Function.tenant == tenant,
        Function.deleted.is_(None),
        Version.vpc == name,
        or_(
            Version.number == Function.latest,
            Version.number == Function.serving,
            Version.number == Function.published,
            chosen(),
        ),
    )


def _functions(session: Session, vpc: Vpc) -> list[str]:
    query = select(Function.name).join(Version, Version.function == Function.id).where(*_using(vpc.tenant, vpc.name))
    return list(session.scalars(query.distinct().order_by(Function.name)))


def _view(session: Session, vpc: Vpc) -> VpcView:
    return VpcView(
        vpc.name,
        list(vpc.cidrs),
        list(vpc.rules),
        vpc.address,
        vpc.resolver,
        vpc.created,
        _functions(session, vpc),
        spec_of(session, vpc),
    )


def _published(session: Session, vpc: Vpc) -> PublishedVpc:
    spec = spec_of(session, vpc) if vpc.removed is None else None
    return PublishedVpc(f"{vpc.tenant}/{vpc.name}", vpc.generation, spec)
