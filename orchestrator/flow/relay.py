"""The relay: sends open events to the modules that have not finished them, until they have.

Woken through a Redis list when something was written, and by the clock when nobody woke it.
"""

import threading
import time

import redis
import structlog
from celery import Celery
from kombu.exceptions import OperationalError

from orchestrator.catalog.nudge import Nudge
from orchestrator.catalog.publish import Publisher
from orchestrator.catalog.store import Store
from orchestrator.flow.app import send

POLL_S = 0.25
AWAY_S = (0.1, 1.0)
CHECK_ROUTES_EVERY_S = 2.0

log = structlog.get_logger(__name__)


class Relay:
    """A loop for a thread of its own; `stop` ends it within about a second. `gate_s`: a release whose gate nobody looked at for
    so long ends."""

    def __init__(self, app: Celery, store: Store, publisher: Publisher, nudge: Nudge, gate_s: float = 180.0) -> None:
        self._gate_s = gate_s
        self._app = app
        self._store = store
        self._publisher = publisher
        self._nudge = nudge
        self._stopping = threading.Event()
        self._check_at = 0.0

    def stop(self) -> None:
        self._stopping.set()

    def run(self) -> None:
        """Until `stop`. Database or broker away: tries again for ever, more and more slowly, up to AWAY_S."""
        away = AWAY_S[0]
        resent = False
        while not self._stopping.is_set():
            try:
                if not resent:
                    # what a dead predecessor sent, or what was claimed when trouble came, may be lost; tasks may come twice
                    resent = self._store.outbox.resend_open(time.time()) >= 0
                self._check_routes()
                sent = self._send_due()
                away = AWAY_S[0]
                if not sent:
                    self._nudge.wait(POLL_S)
            except Exception as error:  # mostly Redis or the database away; whatever it is, a relay that ends helps nobody
                resent = False
                log.warning("relay.waiting", error=type(error).__name__, reason=str(error)[:200], seconds=away)
                self._stopping.wait(away)
                away = min(away * 2, AWAY_S[1])

    def _send_due(self) -> int:
        sent = 0
        outbox = self._store.outbox
        for event, module in outbox.due(time.time()):
            if self._stopping.is_set():
                break
            if not outbox.claim(event, module, time.time()):
                continue
            try:
                send(self._app, module, event)
            except (OperationalError, redis.RedisError, OSError):
                outbox.unclaim(event, module, time.time())
                raise
            sent += 1
        return sent

    def _check_routes(self) -> None:
        """Redis may come back empty: the database knows all that was in it."""
        now = time.monotonic()
        if now < self._check_at:
            return
        self._check_at = now + CHECK_ROUTES_EVERY_S
        for release in self._store.releases.expire(time.time() - self._gate_s, time.time()):
            log.warning("release.expired", release=release)
        if self._publisher.lost(self._store):
            self._publisher.rebuild(self._store)
            log.info("routes.rebuilt")
