"""What PostgreSQL needs said that SQLite does not: the driver, a bound on every wait, which errors are worth another try."""

from typing import Any

from sqlalchemy import URL, make_url

CONNECT_S = 5
LOCK_S = 10
STATEMENT_S = 15
ANSWER_S = 20.0  # above the server's own limits: who hears nothing for so long has lost the server
MIGRATION_S = 300
UNANSWERED_MS = 10_000
RACES = frozenset({"40001", "40P01", "23505"})  # serialisation failure, deadlock, somebody wrote the same row first
DISK_FULL = "53100"


def spoken(url: str) -> URL:
    """`postgresql://` and `postgres://` mean psycopg 3, the only driver that comes along; anything else is left as it is."""
    parsed = make_url(url)
    if parsed.drivername in ("postgresql", "postgres"):
        return parsed.set(drivername="postgresql+psycopg")
    return parsed


def connect_arguments() -> dict[str, Any]:
    """What a connection is opened with: limits on locks, statements and transactions left open, and a quick end of dead links."""
    limits = {"lock_timeout": LOCK_S, "statement_timeout": STATEMENT_S, "idle_in_transaction_session_timeout": STATEMENT_S}
    return {
        "connect_timeout": CONNECT_S,
        "options": " ".join(f"-c {name}={seconds}s" for name, seconds in limits.items()),
        "application_name": "foreglow",
        "keepalives_idle": 5,
        "keepalives_interval": 2,
        "keepalives_count": 3,
        "tcp_user_timeout": UNANSWERED_MS,
    }


def connect(dialect: Any, record: Any, words: Any, options: Any) -> Any:
    """For SQLAlchemy's event `do_connect`. The driver is loaded here: on SQLite no process pays for it."""
    from orchestrator.catalog.bounded import BoundedConnection

    return BoundedConnection.connect(*words, **options)


def sqlstate(error: BaseException) -> str:
    """PostgreSQL's five characters for an error that SQLAlchemy wrapped; empty for any other."""
    return str(getattr(getattr(error, "orig", None), "sqlstate", None) or "")
