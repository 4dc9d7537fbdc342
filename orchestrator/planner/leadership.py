"""Which tenants this planner decides for: it holds the lease of their shard, or stands by to take it.

The rule. A holder orders while its last renewal says so, by its own monotonic clock from before it asked. When the database does
not answer, nobody else can take the lease through it either, so the holder goes on; should it be the only one cut off, the next
holder has a higher epoch, and every node that has heard of it obeys no older one. A planner that stood still (stopped, starved)
orders nothing before it has asked again.
"""

import asyncio
import time
from collections.abc import Callable

import msgspec
import structlog

from orchestrator.catalog.leases import TTL_S, Leases, planner_lease, shard_of

RENEW_S = 1.0
TRY_S = 0.5  # a standby asks this often
ANSWER_S = 1.5  # a database that takes longer does not answer
STALL_S = 0.5  # ... unless we stood still this much longer than we meant to wait
GOES_ON_S = ANSWER_S + 2 * RENEW_S

log = structlog.get_logger(__name__)


class Term(msgspec.Struct):
    """Of one lease, in monotonic time. `epoch` 0: not held. `unanswered_at`: when the database last did not answer."""

    epoch: int = 0
    valid_until: float = 0.0
    unanswered_at: float = float("-inf")

    def active(self, now: float) -> bool:
        return self.epoch > 0 and (now < self.valid_until or now - self.unanswered_at < GOES_ON_S)

    def granted(self, epoch: int, asked_at: float, ttl_s: float) -> None:
        self.epoch, self.valid_until, self.unanswered_at = epoch, asked_at + ttl_s, float("-inf")

    def lost(self) -> None:
        self.epoch, self.valid_until, self.unanswered_at = 0, 0.0, float("-inf")

    def unanswered(self, asked_at: float, now: float) -> None:
        """No answer came. It counts only when we waited for it, and were not stopped ourselves."""
        if now - asked_at < ANSWER_S + STALL_S:
            self.unanswered_at = now


class Leadership:
    """`began(lease, epoch)` when this planner takes a shard over. `run` never returns; `resign` at the end."""

    def __init__(self, leases: Leases, holder: str, address: str, shards: int, began: Callable[[str, int], None]) -> None:
        self._leases = leases
        self._holder = holder
        self._address = address
        self._shards = shards
        self._began = began
        self._terms = {planner_lease(shard): Term() for shard in range(shards)}

    def epoch(self, tenant: str) -> tuple[str, int] | None:
        """By what right orders for a tenant go out now: lease and epoch; None when another planner decides."""
        lease = planner_lease(shard_of(tenant, self._shards))
        term = self._terms[lease]
        return (lease, term.epoch) if term.active(time.monotonic()) else None

    def held(self) -> list[tuple[str, int]]:
        now = time.monotonic()
        return [(lease, term.epoch) for lease, term in self._terms.items() if term.active(now)]

    async def run(self) -> None:
        await asyncio.gather(*(self._keep(lease, term) for lease, term in self._terms.items()))

    async def resign(self) -> None:
        """So that the next need not wait for the end of the lease."""
        for lease, term in self._terms.items():
            if term.epoch:
                epoch = term.epoch
                term.lost()
                try:
                    async with asyncio.timeout(ANSWER_S):
                        await asyncio.to_thread(self._leases.release, lease, self._holder, epoch)
                except Exception as error:  # it runs out by itself
                    log.info("lease.not_released", lease=lease, reason=str(error)[:200])

    async def _keep(self, lease: str, term: Term) -> None:
        while True:
            asked_at = time.monotonic()
            asking = asyncio.ensure_future(asyncio.to_thread(self._ask, lease, term.epoch))
            answered, _ = await asyncio.wait({asking}, timeout=ANSWER_S)
            while not answered:  # one question at a time: a database that hangs gets no second one
                term.unanswered(asked_at, time.monotonic())
                waited_from = time.monotonic()
                answered, _ = await asyncio.wait({asking}, timeout=RENEW_S)
                if not answered and time.monotonic() - waited_from < RENEW_S + STALL_S:
                    term.unanswered_at = time.monotonic()
            self._heard(lease, term, asking, asked_at)
            await asyncio.sleep(RENEW_S if term.epoch else TRY_S)

    def _ask(self, lease: str, epoch: int) -> int:
        if epoch:
            return epoch if self._leases.renew(lease, self._holder, epoch) else 0
        return self._leases.acquire(lease, self._holder, self._address)

    def _heard(self, lease: str, term: Term, asking: "asyncio.Future[int]", asked_at: float) -> None:
        if asking.exception() is not None:
            log.info("lease.database_away", lease=lease, reason=str(asking.exception())[:200])
            term.unanswered(asked_at, time.monotonic())
            return
        epoch, before = asking.result(), term.epoch
        if epoch:
            term.granted(epoch, asked_at, TTL_S)
            if epoch != before:
                log.info("lease.taken", lease=lease, epoch=epoch)
                self._began(lease, epoch)
        else:
            if before:
                log.warning("lease.lost", lease=lease, epoch=before)
            term.lost()
