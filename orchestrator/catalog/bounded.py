"""psycopg's connection with a bound on every wait."""

from typing import Any

from psycopg import Connection, errors
from psycopg.abc import PQGen

from orchestrator.catalog.postgresql import ANSWER_S


class BoundedConnection(Connection[Any]):
    """A connection on which no wait is for ever, also when the server stands still with its socket open."""

    answer_s = ANSWER_S

    def wait(self, gen: PQGen[Any], interval: float = 0.1, timeout: float | None = None) -> Any:
        """psycopg's own, and at most `answer_s` long: the connection is closed then. Raises psycopg.OperationalError."""
        try:
            return super().wait(gen, interval, self.answer_s if timeout is None else timeout)
        except errors._WaitTimeout as error:
            if timeout is not None:
                raise
            self.pgconn.finish()
            raise errors.OperationalError(f"the database did not answer within {self.answer_s:g} s") from error
