"""The one synchronous store that control and the control-flow modules share."""

import secrets
from collections.abc import Iterator

import msgspec
from sqlalchemy import select

from graph.ids import FunctionId, function_id
from orchestrator.catalog.aliases import Aliases
from orchestrator.catalog.database import Database, retried
from orchestrator.catalog.functions import Functions
from orchestrator.catalog.keys import Keys
from orchestrator.catalog.leases import Leases
from orchestrator.catalog.model import Function, Installation, Key
from orchestrator.catalog.nodes import Nodes
from orchestrator.catalog.outbox import Outbox
from orchestrator.catalog.packages import Packages
from orchestrator.catalog.releases import Releases
from orchestrator.catalog.routes import KeyRoute, Route
from orchestrator.catalog.tenants import Tenants
from orchestrator.catalog.views import view_route
from orchestrator.catalog.vpcs import Vpcs
from orchestrator.quotas import Quotas

PAGE = 500


class PublishedFunction(msgspec.Struct, frozen=True):
    """`route` None: removed, or never served; then `generation` is all that readers must remember."""

    function: FunctionId
    generation: int
    route: Route | None


class PublishedKey(msgspec.Struct, frozen=True):
    """`route` None: revoked."""

    digest: str
    generation: int
    route: KeyRoute | None


class Store:
    """Use cases by noun: `tenants`, `keys`, `packages`, `functions`, `aliases`, `releases`, `vpcs`, `nodes`, `leases`, `outbox`.
    Blocking and thread-safe; times are passed in.

    `quotas`: those of a tenant for which none was set.
    """

    def __init__(self, url: str, quotas: Quotas = Quotas()) -> None:  # noqa: B008 (frozen)
        self.database = Database(url)
        self.tenants = Tenants(self.database, quotas)
        self.keys = Keys(self.database, self.tenants)
        self.packages = Packages(self.database, quotas)
        self.functions = Functions(self.database, quotas)
        self.aliases = Aliases(self.database)
        self.releases = Releases(self.database)
        self.vpcs = Vpcs(self.database, quotas)
        self.nodes = Nodes(self.database)
        self.leases = Leases(self.database)
        self.outbox = Outbox(self.database)

    def migrate(self) -> None:
        self.database.migrate()

    def close(self) -> None:
        self.database.close()

    @retried
    def identity(self) -> str:
        """Random, made once: tells this database's routes in Redis from another's."""
        with self.database.read() as session:
            known = session.get(Installation, 1)
        if known is not None:
            return known.identity
        with self.database.write() as session:
            row = session.get(Installation, 1)
            if row is None:
                row = Installation(id=1, identity=secrets.token_hex(16))
                session.add(row)
            return row.identity

    def published_functions(self) -> Iterator[PublishedFunction]:
        """Every function gateways know or once knew, page by page."""
        last = 0
        while True:
            with self.database.read() as session:
                query = (
                    select(Function).where(Function.id > last, Function.route_generation > 0).order_by(Function.id).limit(PAGE)
                )
                rows = session.scalars(query).all()
                page = [
                    PublishedFunction(function_id(row.tenant, row.name), row.route_generation, view_route(session, row))
                    for row in rows
                ]
            yield from page
            if len(rows) < PAGE:
                return
            last = rows[-1].id

    def published_keys(self) -> list[PublishedKey]:
        with self.database.read() as session:
            return [_published_key(key) for key in session.scalars(select(Key))]

    def published_key(self, digest: str) -> PublishedKey | None:
        with self.database.read() as session:
            key = session.scalar(select(Key).where(Key.digest == digest))
            return _published_key(key) if key is not None else None


def _published_key(key: Key) -> PublishedKey:
    alive = KeyRoute(key.key_id, key.tenant, key.generation) if key.revoked is None else None
    return PublishedKey(key.digest, key.generation, alive)
