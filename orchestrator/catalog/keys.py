"""Tenants and their bearer tokens."""

import hashlib
import secrets

import msgspec
from sqlalchemy import select, update

from graph.ids import TENANT_PATTERN
from orchestrator.catalog.database import Database
from orchestrator.catalog.errors import NotFound, Refused
from orchestrator.catalog.model import EventKind, Key, KeyRole, Tenant
from orchestrator.catalog.outbox import add_event

LAST_USED_EVERY_S = 60.0
"""A key's last use is written at most this often: authentication must not cost a write."""


class MadeKey(msgspec.Struct, frozen=True):
    """`token` is shown once and kept nowhere."""

    key_id: str
    token: str


class KeyView(msgspec.Struct, frozen=True):
    key_id: str
    name: str
    created: float
    revoked: float | None
    last_used: float | None


def token_digest(token: str) -> str:
    """Hex SHA-256. The token is random, 256 bits: a salt or a slow hash would add nothing."""
    return hashlib.sha256(token.encode()).hexdigest()


class Keys:
    def __init__(self, database: Database) -> None:
        self._database = database

    def create_tenant(self, tenant: str, now: float) -> bool:
        """True when it is new. Raises Refused."""
        if not TENANT_PATTERN.match(tenant):
            raise Refused(f"{tenant[:80]!r}: a tenant is 1 to 63 lower-case letters, digits and hyphens", "tenant")
        with self._database.write() as session:
            if session.get(Tenant, tenant) is not None:
                return False
            session.add(Tenant(name=tenant, created=now))
            return True

    def make_key(self, tenant: str, name: str, now: float, role: KeyRole = KeyRole.TENANT) -> MadeKey:
        """Raises NotFound for an unknown tenant."""
        token = "fg_" + secrets.token_urlsafe(32)
        return MadeKey(self.adopt_key(tenant, name, token, now, role), token)

    def adopt_key(self, tenant: str, name: str, token: str, now: float, role: KeyRole = KeyRole.TENANT) -> str:
        """The id of the key with this token, registered now when it is not known, with this role from now on.
        Raises NotFound, Refused when revoked."""
        digest = token_digest(token)
        with self._database.write() as session:
            if session.get(Tenant, tenant) is None:
                raise NotFound(f"no tenant {tenant!r}")
            known = session.scalar(select(Key).where(Key.digest == digest))
            if known is not None:
                if known.revoked is not None or known.tenant != tenant:
                    raise Refused(f"the key {known.key_id} is revoked or another tenant's", "key")
                known.role = role
                return known.key_id
            key = Key(key_id=secrets.token_hex(8), tenant=tenant, digest=digest, name=name, created=now, generation=1, role=role)
            session.add(key)
            add_event(session, EventKind.KEY, digest, key.generation, {}, now)
            return key.key_id

    def revoke_key(self, tenant: str, key_id: str, now: float) -> None:
        """Raises NotFound. Revoking twice is once."""
        with self._database.write() as session:
            key = session.get(Key, key_id, with_for_update=True)
            if key is None or key.tenant != tenant:
                raise NotFound(f"no key {key_id!r}")
            if key.revoked is None:
                key.revoked = now
                key.generation += 1
                add_event(session, EventKind.KEY, key.digest, key.generation, {}, now)

    def list_keys(self, tenant: str) -> list[KeyView]:
        with self._database.read() as session:
            keys = session.scalars(select(Key).where(Key.tenant == tenant).order_by(Key.created))
            return [KeyView(key.key_id, key.name, key.created, key.revoked, key.last_used) for key in keys]

    def role_of(self, token: str) -> KeyRole | None:
        """None for what is no live key."""
        with self._database.read() as session:
            role = session.scalar(select(Key.role).where(Key.digest == token_digest(token), Key.revoked.is_(None)))
        return KeyRole(role) if role is not None else None

    def authenticate(self, token: str, now: float) -> str | None:
        """The tenant of a live key, None for anything else."""
        digest = token_digest(token)
        with self._database.read() as session:
            row = session.execute(select(Key.tenant, Key.last_used).where(Key.digest == digest, Key.revoked.is_(None))).first()
        if row is None:
            return None
        if row.last_used is None or now - row.last_used >= LAST_USED_EVERY_S:
            with self._database.write() as session:
                session.execute(update(Key).where(Key.digest == digest).values(last_used=now))
        return str(row.tenant)
