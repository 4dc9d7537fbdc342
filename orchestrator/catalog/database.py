"""The connection to the database: transactions, SQLite's settings, the schema's migrations."""

import contextlib
import logging
import sqlite3
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, create_engine, event, text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.orm import Session

if TYPE_CHECKING:
    from alembic.config import Config

BUSY_TIMEOUT_S = 10
POOL = 16
_MIGRATION_LOCK = 0x666F7265676C6F77  # of this application, for PostgreSQL's advisory locks


class SchemaMissing(Exception):
    """The database is not at the schema this release knows; `foreglow control` migrates it when it starts."""


class Database:
    """`url` as SQLAlchemy takes it. Used by many threads at once; every wait for a lock or connection is bounded."""

    def __init__(self, url: str) -> None:
        self._sqlite = url.startswith("sqlite")
        options: dict[str, Any] = {
            "pool_pre_ping": not self._sqlite,
            "pool_size": POOL,
            "max_overflow": POOL,
            "pool_timeout": BUSY_TIMEOUT_S,
        }
        if self._sqlite:
            options["connect_args"] = {"check_same_thread": False, "timeout": BUSY_TIMEOUT_S}
        self._engine = create_engine(url, **options)
        self._writing = self._engine.execution_options(writing=True)
        if self._sqlite:
            event.listen(self._engine, "connect", _prepare_sqlite)
            event.listen(self._engine, "begin", _begin_sqlite)

    @contextlib.contextmanager
    def read(self) -> Iterator[Session]:
        """One consistent view of the database."""
        with Session(self._engine, expire_on_commit=False) as session, session.begin():
            yield session

    @contextlib.contextmanager
    def write(self) -> Iterator[Session]:
        """One transaction, committed at the end, rolled back on an exception.

        On SQLite it takes the write lock at once: a lock taken later can fail with no way to wait.
        """
        with Session(self._writing, expire_on_commit=False) as session, session.begin():
            yield session

    def migrate(self) -> None:
        """Brings the schema to this release's. Safe to run in several processes at once."""
        with self._writing.begin() as connection:
            if not self._sqlite:
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
            config = configuration()
            from alembic import command

            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    def check_schema(self) -> None:
        """Raises SchemaMissing, or what the database raises when it cannot be reached."""
        config = configuration()
        from alembic.runtime.migration import MigrationContext
        from alembic.script import ScriptDirectory

        head = ScriptDirectory.from_config(config).get_current_head()
        with self._engine.connect() as connection:
            current = MigrationContext.configure(connection).get_current_revision()
        if current != head:
            raise SchemaMissing(
                f"the database is at schema {current or 'none'}, this release needs {head}; start foreglow control first"
            )

    def reachable(self) -> bool:
        try:
            with self._engine.connect() as connection:
                connection.execute(text("SELECT 1"))
        except (DBAPIError, OperationalError, TimeoutError):
            return False
        return True

    def close(self) -> None:
        self._engine.dispose()


def configuration() -> "Config":
    """Alembic is loaded here, once a process, after it was told not to speak of each plugin it has."""
    logging.getLogger("alembic").setLevel(logging.WARNING)
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", "orchestrator.catalog:migrations")
    return config


def _prepare_sqlite(connection: sqlite3.Connection, record: object) -> None:
    connection.isolation_level = None  # the driver must not open transactions of its own
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON", f"busy_timeout = {BUSY_TIMEOUT_S * 1000}"):
        _patiently(connection, f"PRAGMA {pragma}")


def _patiently(connection: sqlite3.Connection, statement: str) -> None:
    """Changing to the write-ahead log does not wait for a lock on its own; two processes may start at once."""
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            connection.execute(statement).close()
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return


def _begin_sqlite(connection: Connection) -> None:
    writing = connection.get_execution_options().get("writing")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")
