"""Epochs: numbers that void what came before. They are milliseconds of the database's clock, or one more than the last when that
does not grow by itself; so those given after an old backup was restored are above those given before, which the backup does not
know."""

from sqlalchemy import text
from sqlalchemy.orm import Session


def next_epoch(last: int, now: float) -> int:
    """Pure; `last`: 0 for none. `now`: seconds since the epoch by the database's clock, which may have been set back."""
    return max(last + 1, int(now * 1000))


def database_now(session: Session) -> float:
    """Asked after a lock was got: a wait must not make the time old."""
    sqlite = session.get_bind().dialect.name == "sqlite"
    clock = "SELECT (julianday('now') - 2440587.5) * 86400.0" if sqlite else "SELECT extract(epoch FROM clock_timestamp())"
    return float(session.execute(text(clock)).scalar_one())
