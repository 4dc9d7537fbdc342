"""What tenants have uploaded, and what was built from it."""

from collections.abc import Sequence

import msgspec
from sqlalchemy import select
from sqlalchemy.orm import Session

from orchestrator.catalog.database import Database, retried
from orchestrator.catalog.model import Layer, LayerRole, Package, Tenant, Version
from orchestrator.catalog.tenants import check_quota, living
from orchestrator.quotas import Quotas

UNUSED_S = 3600.0
"""A package that was uploaded may be deployed for this long before it makes room for others."""


class PackageView(msgspec.Struct, frozen=True):
    """`requirements`: the accepted lines of requirements.txt."""

    tenant: str
    digest: str
    files: int
    size: int
    requirements: tuple[str, ...]
    requirements_digest: str


class LayerView(msgspec.Struct, frozen=True):
    """`failures`: sources of the user's that do not compile, path -> line and reason."""

    digest: str
    size: int
    failures: dict[str, str] = {}


class Packages:
    def __init__(self, database: Database, quotas: Quotas) -> None:
        self._database = database
        self._quotas = quotas

    def check_room(self, tenant: str, digest: str, size: int) -> None:
        """Before anything is stored. Raises NotFound, OverQuota."""
        with self._database.write() as session:
            if session.get(Package, (tenant, digest)) is None:
                check_quota(session, tenant, "package_bytes", size, self._quotas)

    @retried
    def release(self, tenant: str, now: float, unused_s: float = UNUSED_S) -> int:
        """Forgets packages that no version uses and that lay for `unused_s`, and what was built from them. Returns how many
        packages. Their bytes go when the origin is swept. Raises NotFound."""
        old = now - unused_s
        with self._database.write() as session:
            living(session, tenant, lock=True)
            used = select(Version.package).where(Version.tenant == tenant)
            unused = select(Package).where(Package.tenant == tenant, Package.created <= old, Package.digest.not_in(used))
            forgotten = session.scalars(unused).all()
            for package in forgotten:
                session.delete(package)
            session.flush()
            sources = set(session.scalars(select(Package.digest).where(Package.tenant == tenant)))
            sources.update(session.scalars(select(Package.requirements_digest).where(Package.tenant == tenant)))
            for layer in session.scalars(select(Layer).where(Layer.tenant == tenant, Layer.created <= old)).all():
                # what a source is called may say before the digest how it was built
                if not {layer.source, layer.source.rpartition(":")[2]} & sources:
                    session.delete(layer)
            return len(forgotten)

    def kept(self, tenant: str) -> set[str] | None:
        """Digests of all packages and layers that something refers to: an upload, or a version that serves or may serve. What
        routes, aliases and plans name are such versions. Nothing of a removed tenant's. None: no such tenant ever was."""
        with self._database.read() as session:
            if session.get(Tenant, tenant) is None:
                return None
            digests: set[str] = set()
            for column in (Package.digest, Layer.digest, Version.code_layer, Version.dependency_layer):
                digests.update(session.scalars(select(column).where(column.class_.tenant == tenant).distinct()))
            return digests - {""}

    @retried
    def register(
        self, tenant: str, digest: str, files: int, size: int, requirements: Sequence[str], requirements_digest: str, now: float
    ) -> None:
        """Registering the same package again changes nothing. Raises NotFound, OverQuota."""
        with self._database.write() as session:
            if session.get(Package, (tenant, digest)) is None:
                check_quota(session, tenant, "package_bytes", size, self._quotas)
                session.add(
                    Package(
                        tenant=tenant,
                        digest=digest,
                        files=files,
                        size=size,
                        requirements="\n".join(requirements),
                        requirements_digest=requirements_digest if requirements else "",
                        created=now,
                    )
                )

    def find(self, tenant: str, digest: str) -> PackageView | None:
        with self._database.read() as session:
            return view_package(session, tenant, digest)

    def find_layer(self, tenant: str, role: LayerRole, source: str, runtime: str) -> LayerView | None:
        with self._database.read() as session:
            layer = session.get(Layer, (tenant, role, source, runtime))
            return LayerView(layer.digest, layer.size, layer.failures) if layer is not None else None

    @retried
    def add_layer(self, tenant: str, role: LayerRole, source: str, runtime: str, layer: LayerView, now: float) -> LayerView:
        """The layer that counts: the first one built from a source stays, so that versions that share a source share it."""
        with self._database.write() as session:
            known = session.get(Layer, (tenant, role, source, runtime))
            if known is not None:
                return LayerView(known.digest, known.size, known.failures)
            built = Layer(tenant=tenant, role=role, source=source, runtime=runtime, digest=layer.digest, size=layer.size)
            built.failures, built.created = layer.failures, now
            session.add(built)
            return layer

    @retried
    def replace_layer(self, tenant: str, role: LayerRole, source: str, runtime: str, digest: str, layer: LayerView) -> LayerView:
        """`layer` instead of the one named `digest`, for versions to come; those that are keep theirs. The layer that counts."""
        with self._database.write() as session:
            known = session.get(Layer, (tenant, role, source, runtime))
            if known is None:  # its package went meanwhile
                return layer
            if known.digest == digest:
                known.digest, known.size = layer.digest, layer.size
            return LayerView(known.digest, known.size, known.failures)


def view_package(session: Session, tenant: str, digest: str) -> PackageView | None:
    package = session.get(Package, (tenant, digest))
    if package is None:
        return None
    lines = tuple(package.requirements.splitlines())
    return PackageView(tenant, digest, package.files, package.size, lines, package.requirements_digest)
