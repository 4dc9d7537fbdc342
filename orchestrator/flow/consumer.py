"""Celery's consumer, but back within about a second after the broker is: its own pauses grow to half a minute."""

from typing import Any

import structlog
from celery.worker import state
from celery.worker.consumer import Consumer

RETRY_S = {"interval_start": 0.1, "interval_step": 0.2, "interval_max": 1.0}
TOLD_EVERY = 10

log = structlog.get_logger(__name__)


class PatientConsumer(Consumer):  # type: ignore[misc]  # celery has no types
    """Connects for ever, until told to stop."""

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
