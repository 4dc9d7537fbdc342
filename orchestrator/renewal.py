"""A running process renews its certificate in time: a member through control's join listener, what runs beside control by itself.

The new one counts beside the old as soon as control gave it. It is shown once everybody can have heard of it, and then control is
told: only from there on the old one counts no more. What breaks off in between begins anew with the old one.
"""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable

import structlog

from orchestrator.authority import keep
from orchestrator.joining import JoinFailed, confirm, renew
from orchestrator.membership import Self

SETTLE_S = 10.0  # routes are told within one
SETTLE_SHARE = 1 / 20  # of a short life
LOOK_S = 3600.0  # clocks are set, and hosts sleep

log = structlog.get_logger(__name__)


class Renewal:
    """The steps, each due after what the one before says. `shown` is called when the kept certificate is a new one."""

    def __init__(self, own: Self, shown: Callable[[], None]) -> None:
        self._own = own
        self._shown = shown
        self._next = ""  # given and not shown yet
        self._confirmed = True

    def step(self) -> float:
        """Does what is due; blocks for seconds. Seconds until the next call; raises nothing."""
        now = time.time()
        try:
            held = self._own.validity()
        except (OSError, ValueError) as error:
            log.error("certificate.unreadable", reason=str(error)[:300])
            return LOOK_S
        try:
            if self._next:
                return self._show()
            if not self._confirmed:
                self._confirm()
            if now < held.renew_at():
                return min(LOOK_S, held.renew_at() - now)
            return self._ask()
        except (JoinFailed, OSError, ValueError) as error:
            wait = held.retry_in(now)
            level = logging.ERROR if held.ends_soon(now) else logging.WARNING
            log.log(level, "certificate.not_renewed", reason=str(error)[:500], ends=held.end(), seconds=wait)
            return wait

    def _ask(self) -> float:
        member = self._own.member
        if member is None:
            self._own.sign()
            self._shown()
            log.info("certificate.renewed", ends=self._own.validity().end())
            return 0.0
        self._next = renew(self._own.state, member)
        return min(SETTLE_S, self._own.validity().life * SETTLE_SHARE)

    def _show(self) -> float:
        keep(self._own.certificate, self._next.encode())
        self._next, self._confirmed = "", False
        self._shown()
        log.info("certificate.renewed", ends=self._own.validity().end())
        return 0.0

    def _confirm(self) -> None:
        assert self._own.member is not None
        confirm(self._own.state, self._own.member)
        self._confirmed = True


def keep_certified(own: Self) -> Callable[[], None]:
    """From now on, in a thread of its own; the answer ends that. With a running event loop the certificate is exchanged there,
    between two handshakes; without one nothing is served under it."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        shown = own.identity.reload
    else:

        def shown() -> None:
            with contextlib.suppress(RuntimeError):  # the process ends
                loop.call_soon_threadsafe(own.identity.reload)

    renewal, ended = Renewal(own, shown), threading.Event()

    def run() -> None:
        while not ended.wait(renewal.step()):
            pass

    threading.Thread(target=run, name="certificate", daemon=True).start()
    return ended.set
