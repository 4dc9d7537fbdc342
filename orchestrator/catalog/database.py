"""The connection to the database: transactions, SQLite's settings, the schema's migrations."""

import contextlib
import functools
import logging
import random
import sqlite3
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from sqlalchemy import Connection, create_engine, event, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.orm import Session

from orchestrator.catalog import postgresql

if TYPE_CHECKING:
    from alembic.config import Config

BUSY_TIMEOUT_S = 10
POOL = 16
RETRIES_S = (0.01, 0.03, 0.1, 0.3, 1.0)
"""The longest pause before each further try of a transaction that lost a race."""

_MIGRATION_LOCK = 0x666F7265676C6F77  # of this application, for PostgreSQL's advisory locks


P = ParamSpec("P")
Answer = TypeVar("Answer")


class SchemaMissing(Exception):
    """The database is not at the schema this release knows; `foreglow control` migrates it when it starts."""


def retried(use_case: Callable[P, Answer]) -> Callable[P, Answer]:
    """For a method that is one write transaction and nothing else: a race that PostgreSQL lets one side lose is run again.

    At most len(RETRIES_S) times; then the error is raised. SQLite has one writer at a time and no such races.
    """

    @functools.wraps(use_case)
    def again(*args: P.args, **kwargs: P.kwargs) -> Answer:
        for longest in RETRIES_S:
            try:
                return use_case(*args, **kwargs)
            except DBAPIError as error:
                if postgresql.sqlstate(error) not in postgresql.RACES:
                    raise
            time.sleep(random.uniform(0, longest))  # noqa: S311 (so that the two do not meet again)
        return use_case(*args, **kwargs)

    return again


def out_of_space(error: SQLAlchemyError) -> bool:
    """True when the database could not write because its disk is full."""
    code = getattr(getattr(error, "orig", None), "sqlite_errorcode", None)
    return code == sqlite3.SQLITE_FULL or postgresql.sqlstate(error) == postgresql.DISK_FULL


class Database:
    """`url` as SQLAlchemy takes it; `postgresql://` is spoken with psycopg 3.

    Used by many threads at once; every wait for a lock or connection is bounded.
    """

    def __init__(self, url: str) -> None:
        target = postgresql.spoken(url)
        self._sqlite = target.get_backend_name() == "sqlite"
        options: dict[str, Any] = {
            "pool_pre_ping": not self._sqlite,
            "pool_size": POOL,
            "max_overflow": POOL,
            "pool_timeout": BUSY_TIMEOUT_S,
        }
        if self._sqlite:
            options["connect_args"] = {"check_same_thread": False, "timeout": BUSY_TIMEOUT_S}
        else:
            options["connect_args"] = postgresql.connect_arguments()
        self._engine = create_engine(target, **options)
        self._writing = self._engine.execution_options(writing=True)
        self._reading = self._engine
        if self._sqlite:
            event.listen(self._engine, "connect", _prepare_sqlite)
            event.listen(self._engine, "begin", _begin_sqlite)
        else:
            event.listen(self._engine, "do_connect", postgresql.connect)
            # one view for all statements of a transaction, as SQLite gives it
            self._reading = self._engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)

    @contextlib.contextmanager
    def read(self) -> Iterator[Session]:
        """One consistent view of the database."""
        with Session(self._reading, expire_on_commit=False) as session, session.begin():
            yield session

    @contextlib.contextmanager
    def write(self) -> Iterator[Session]:
        """One transaction, committed at the end, rolled back on an exception.

        On SQLite it takes the write lock at once: a lock taken later can fail with no way to wait. On PostgreSQL it sees what
        others commit meanwhile (read committed), so what is read to be changed is read with a row lock; see `retried`.
        """
        with Session(self._writing, expire_on_commit=False) as session, session.begin():
            yield session

    def migrate(self, revision: str = "head") -> None:
        """Brings the schema to this release's. Safe to run in several processes at once: one does it, the others wait."""
        with self._writing.begin() as connection, self._patient(connection):
            config = configuration()
            from alembic import command

            config.attributes["connection"] = connection
            command.upgrade(config, revision)

    @contextlib.contextmanager
    def _patient(self, connection: Connection) -> Iterator[None]:
        """Alone on PostgreSQL, with time for a migration."""
        if self._sqlite:
            yield
            return
        driver: Any = connection.connection.driver_connection
        driver.answer_s = postgresql.MIGRATION_S + postgresql.ANSWER_S
        try:
            for limit in ("lock_timeout", "statement_timeout"):
                connection.execute(text(f"SET LOCAL {limit} = '{postgresql.MIGRATION_S}s'"))
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
            yield
        finally:
            driver.answer_s = postgresql.ANSWER_S

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
        except SQLAlchemyError:
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
