"""Leases: who may do something alone. The database's own clock decides, so the clocks of hosts do not matter; every new holder
gets an epoch above all before it.

What a lease is at a moment is a pure function of its row: `taken`, `renewed`, `released`.
"""

import hashlib

import msgspec
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from orchestrator.catalog.database import Database, retried
from orchestrator.catalog.epochs import database_now, next_epoch
from orchestrator.catalog.model import Lease

TTL_S = 3.0


class LeaseRow(msgspec.Struct, frozen=True):
    """`address`: where the holder is asked. `expires`: seconds since the epoch by the database's clock."""

    holder: str
    address: str
    epoch: int
    expires: float


def taken(row: LeaseRow | None, holder: str, address: str, now: float, ttl_s: float = TTL_S) -> LeaseRow | None:
    """The row when `holder` takes it, with a new epoch. None: it is another's and has not run out. A holder of this very name may
    take it at once: it is the same process, begun anew."""
    if row is not None and row.expires > now and row.holder != holder:
        return None
    return LeaseRow(holder, address, next_epoch(row.epoch if row is not None else 0, now), now + ttl_s)


def renewed(row: LeaseRow | None, holder: str, epoch: int, now: float, ttl_s: float = TTL_S) -> LeaseRow | None:
    """The row with a new end, also after it ran out when nobody took it since. None: it was taken."""
    if row is None or (row.holder, row.epoch) != (holder, epoch):
        return None
    return msgspec.structs.replace(row, expires=max(row.expires, now + ttl_s))


def released(row: LeaseRow | None, holder: str, epoch: int, now: float) -> LeaseRow | None:
    """The row run out at once; its epoch stays. None: it was not the holder's."""
    if row is None or (row.holder, row.epoch) != (holder, epoch):
        return None
    return msgspec.structs.replace(row, expires=min(row.expires, now))


def planner_lease(shard: int) -> str:
    return f"planner/{shard}"


def shard_of(tenant: str, shards: int) -> int:
    """Which shard a tenant belongs to; the same on every host."""
    return int.from_bytes(hashlib.sha256(tenant.encode()).digest()[:8]) % shards


class Leases:
    """Raises what the database raises when it cannot be reached."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def acquire(self, name: str, holder: str, address: str, ttl_s: float = TTL_S) -> int:
        """The new epoch, 0 when the lease is another's."""
        try:
            with self._database.write() as session:
                row, now = _look(session, name)
                mine = taken(_seen(row), holder, address, now, ttl_s)
                if mine is None:
                    return 0
                if row is None:
                    row = Lease(name=name)
                    session.add(row)
                row.holder, row.address, row.epoch, row.expires = mine.holder, mine.address, mine.epoch, mine.expires
                return mine.epoch
        except IntegrityError:  # another made the row in this moment
            return 0

    @retried
    def renew(self, name: str, holder: str, epoch: int, ttl_s: float = TTL_S) -> bool:
        """False: somebody else took it."""
        with self._database.write() as session:
            row, now = _look(session, name)
            return _end(row, renewed(_seen(row), holder, epoch, now, ttl_s))

    @retried
    def release(self, name: str, holder: str, epoch: int) -> bool:
        """The next may take it at once."""
        with self._database.write() as session:
            row, now = _look(session, name)
            return _end(row, released(_seen(row), holder, epoch, now))

    def read(self, name: str) -> LeaseRow | None:
        with self._database.read() as session:
            return _seen(session.get(Lease, name))


def _look(session: Session, name: str) -> tuple[Lease | None, float]:
    """The row, locked, and then the time: a wait for the lock must not make the time old."""
    row = session.get(Lease, name, with_for_update=True)
    return row, database_now(session)


def _seen(row: Lease | None) -> LeaseRow | None:
    return LeaseRow(row.holder, row.address, row.epoch, row.expires) if row is not None else None


def _end(row: Lease | None, changed: LeaseRow | None) -> bool:
    if row is None or changed is None:
        return False
    row.expires = changed.expires
    return True
