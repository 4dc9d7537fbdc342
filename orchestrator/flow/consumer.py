"""Celery's consumer, but back within about a second after the broker is: its own pauses grow to half a minute.

A broker that answers with an error, because its disk is full, counts as away too: Celery's own consumer would end the process.
"""

from typing import Any

import structlog
from celery.worker import state
from celery.worker.consumer import Consumer
from redis.exceptions import ResponseError

RETRY_S = {"interval_start": 0.1, "interval_step": 0.2, "interval_max": 1.0}
TOLD_EVERY = 10

log = structlog.get_logger(__name__)


class PatientConsumer(Consumer):  # type: ignore[misc]  # celery has no types
    """Connects for ever, until told to stop."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.connection_errors: tuple[type[BaseException], ...] = (*self.conninfo.connection_errors, ResponseError)

    def ensure_connected(self, conn: Any) -> Any:
        tries = 0

        def failed(error: Exception, interval: float) -> None:
            nonlocal tries
            if tries % TOLD_EVERY == 0:
                log.warning("broker.away", reason=str(error)[:200])
            tries += 1

        connection = conn.ensure_connection(failed, None, callback=state.maybe_shutdown, **RETRY_S)
        self.first_connection_attempt = False
        return connection
