"""Where a node stands: its own epoch in the cluster, and the highest epoch it has seen of each planner's lease.

An order of an older lease epoch is not obeyed. A node that is told that its own epoch is void ends what it holds, joins again,
and only then counts once more.
"""

import asyncio
from collections.abc import Awaitable, Callable

import structlog

RETRY_S = (0.2, 5.0)
LEASES = 1000

Rejoin = Callable[[], Awaitable[int]]

log = structlog.get_logger(__name__)


class Standing:
    """`clean` ends everything the node holds and every connection. `rejoin` gives the new epoch, or raises to be tried again."""

    def __init__(self, clean: Callable[[], Awaitable[None]]) -> None:
        self.epoch = 0
        self._clean = clean
        self._rejoin: Rejoin | None = None
        self._rejoining: asyncio.Task[None] | None = None
        self._seen: dict[str, int] = {}

    def joined(self, epoch: int, rejoin: Rejoin) -> None:
        """The node is a member. Without this it stands beside control, and nobody tells it of epochs."""
        self.epoch, self._rejoin = epoch, rejoin

    def obeys(self, lease: str, epoch: int) -> bool:
        """Whether an order given under this lease counts. Remembers the epoch."""
        known = self._seen.get(lease, 0)
        if epoch < known:
            return False
        if epoch > known and (lease in self._seen or len(self._seen) < LEASES):
            self._seen[lease] = epoch
        return True

    def told_stale(self, epoch: int) -> None:
        """Somebody counts with a newer epoch of this node."""
        if self._rejoin is None or epoch <= self.epoch or self._rejoining is not None:
            return
        log.warning("node.stale", epoch=self.epoch, newer=epoch)
        self._rejoining = asyncio.get_running_loop().create_task(self._join_again())

    async def stop(self) -> None:
        if self._rejoining is not None:
            self._rejoining.cancel()
            await asyncio.gather(self._rejoining, return_exceptions=True)

    async def _join_again(self) -> None:
        """Until it works: control may be away, and without a new epoch nobody would use this node."""
        assert self._rejoin is not None
        delay = RETRY_S[0]
        try:
            await self._clean()
            while True:
                try:
                    self.epoch = await self._rejoin()
                except Exception as error:  # whatever it was: a node that stops trying is lost for good
                    log.warning("node.rejoin_failed", reason=str(error)[:300], seconds=delay)
                    await asyncio.sleep(delay)
                    delay = min(delay * 2, RETRY_S[1])
                else:
                    log.info("node.rejoined", epoch=self.epoch)
                    break
            await self._clean()  # whoever dialled in between knows the old epoch
        finally:
            self._rejoining = None
