"""Bearer tokens of tenants: several each, with a name and a role."""

import contextlib
import hashlib
import secrets
from collections.abc import Mapping

import msgspec
from sqlalchemy import ColumnElement, delete, func, or_, select, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from orchestrator.catalog.database import Database, retried
from orchestrator.catalog.errors import Conflict, NotFound, Refused
from orchestrator.catalog.model import EventKind, Key, KeyRole
from orchestrator.catalog.outbox import add_event
from orchestrator.catalog.tenants import Tenants, living, revoke
from orchestrator.quotas import OwnQuotas

LAST_USED_EVERY_S = 60.0
"""A key's last use is written at most this often: authentication must not cost a write."""

LIVE_KEYS = 100
KEPT_KEYS = 1000
"""Of a tenant, revoked ones too: the oldest of these are forgotten when a new one comes."""


class MadeKey(msgspec.Struct, frozen=True):
    """`token` is shown once and kept nowhere."""

    key_id: str
    token: str


class KeyView(msgspec.Struct, frozen=True):
    key_id: str
    name: str
    role: str
    created: float
    revoked: float | None
    last_used: float | None


class Caller(msgspec.Struct, frozen=True):
    """Whom a live key speaks for."""

    tenant: str
    role: KeyRole
    key_id: str


def token_digest(token: str) -> str:
    """Hex SHA-256. The token is random, 256 bits: a salt or a slow hash would add nothing."""
    return hashlib.sha256(token.encode()).hexdigest()


class Keys:
    def __init__(self, database: Database, tenants: Tenants) -> None:
        self._database = database
        self._tenants = tenants

    def create_tenant(self, tenant: str, now: float) -> bool:
        """True when it is new. Raises Refused, and Conflict for a name that was removed."""
        try:
            self._tenants.create(tenant, OwnQuotas(), now)
        except Conflict:
            self._tenants.describe(tenant)
            return False
        return True

    def make_key(self, tenant: str, name: str, now: float, role: KeyRole = KeyRole.TENANT) -> MadeKey:
        """Raises NotFound for an unknown tenant, Conflict when it has LIVE_KEYS."""
        token = "fg_" + secrets.token_urlsafe(32)
        return MadeKey(self.adopt_key(tenant, name, token, now, role), token)

    @retried
    def adopt_key(self, tenant: str, name: str, token: str, now: float, role: KeyRole = KeyRole.TENANT) -> str:
        """The id of the key with this token, registered now when it is not known, with this role from now on.

        Raises NotFound, Refused when it is revoked, Conflict when the tenant has LIVE_KEYS.
        """
        digest = token_digest(token)
        with self._database.write() as session:
            living(session, tenant, lock=True)
            known = session.scalar(select(Key).where(Key.digest == digest))
            if known is not None:
                if known.revoked is not None or known.tenant != tenant:
                    raise Refused(f"the key {known.key_id} is revoked or another tenant's", "key")
                known.role = role
                return known.key_id
            if _count(session, Key.tenant == tenant, Key.revoked.is_(None)) >= LIVE_KEYS:
                raise Conflict(f"tenant {tenant!r} has {LIVE_KEYS} live keys, which is the limit; revoke one that is not used")
            _forget_old(session, tenant)
            key = Key(key_id=secrets.token_hex(8), tenant=tenant, digest=digest, name=name, created=now, generation=1, role=role)
            session.add(key)
            add_event(session, EventKind.KEY, digest, key.generation, {}, now)
            return key.key_id

    @retried
    def revoke_key(self, tenant: str, key_id: str, now: float, by: KeyRole = KeyRole.OPERATOR, own: bool = False) -> None:
        """Revoking twice is once. `own`: asked for with a key of this tenant, which must not lock itself out.

        Raises NotFound, and Conflict for a tenant's own last key, the platform's last operator key, or an operator key that a
        tenant key asks for.
        """
        with self._database.write() as session:
            living(session, tenant, lock=True)
            key = session.get(Key, key_id, with_for_update=True)
            if key is None or key.tenant != tenant:
                raise NotFound(f"no key {key_id!r}")
            if key.revoked is not None:
                return
            if key.role == KeyRole.OPERATOR and by != KeyRole.OPERATOR:
                raise Conflict(f"{key_id} is an operator key: only an operator can revoke it")
            if own and _count(session, Key.tenant == tenant, Key.revoked.is_(None)) == 1:
                raise Conflict(
                    f"{key_id} is the last live key of tenant {tenant!r}; make another one first (foreglow keys create)"
                )
            if key.role == KeyRole.OPERATOR and _count(session, Key.role == key.role, Key.revoked.is_(None)) == 1:
                raise Conflict(f"{key_id} is the platform's last operator key; make another one first (foreglow keys create)")
            revoke(session, key, now)

    def list_keys(self, tenant: str) -> list[KeyView]:
        """The oldest first, revoked ones too. Raises NotFound."""
        with self._database.read() as session:
            living(session, tenant)
            keys = session.scalars(select(Key).where(Key.tenant == tenant).order_by(Key.created))
            return [KeyView(key.key_id, key.name, key.role, key.created, key.revoked, key.last_used) for key in keys]

    def authenticate(self, token: str, now: float) -> Caller | None:
        """Whom a live key speaks for, None for anything else."""
        digest = token_digest(token)
        with self._database.read() as session:
            found = select(Key.tenant, Key.role, Key.key_id, Key.last_used).where(Key.digest == digest, Key.revoked.is_(None))
            row = session.execute(found).first()
        if row is None:
            return None
        if row.last_used is None or now - row.last_used >= LAST_USED_EVERY_S:
            # a full disk or a busy database costs the note, not the answer
            with contextlib.suppress(SQLAlchemyError):
                self.used({row.key_id: now})
        return Caller(row.tenant, KeyRole(row.role), row.key_id)

    def used(self, at: Mapping[str, float]) -> None:
        """Key ids and when they were used; an earlier use than the known one changes nothing."""
        with self._database.write() as session:
            for key_id, moment in at.items():
                later = or_(Key.last_used.is_(None), Key.last_used < moment)
                session.execute(update(Key).where(Key.key_id == key_id, later).values(last_used=moment))


def _count(session: Session, *such: ColumnElement[bool]) -> int:
    return session.scalar(select(func.count()).select_from(Key).where(*such)) or 0


def _forget_old(session: Session, tenant: str) -> None:
    kept = _count(session, Key.tenant == tenant)
    if kept >= KEPT_KEYS:
        revoked = select(Key.key_id).where(Key.tenant == tenant, Key.revoked.is_not(None)).order_by(Key.revoked)
        oldest = session.scalars(revoked.limit(kept - KEPT_KEYS + 1)).all()
        session.execute(delete(Key).where(Key.key_id.in_(oldest)))
