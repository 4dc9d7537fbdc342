"""Brings the code of the tenants that are hosted here before anybody asks for it: one version at a time, tenants in turn."""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Sequence

import structlog

from workers.code.room import NoRoom
from workers.ports import CodeUnavailable
from workers.versions import VersionSpec

TRIES = 3
PAUSE_S = 5.0
"""After a failure: the sources are away, and who starts a function now asks them himself."""

log = structlog.get_logger(__name__)


class Hosting:
    """`bring(spec)` brings one version; what it raises is final for NoRoom, and tried again for any other CodeUnavailable."""

    def __init__(self, bring: Callable[[VersionSpec], Awaitable[None]], pause_s: float = PAUSE_S) -> None:
        self._bring = bring
        self._pause_s = pause_s
        self._wanted: OrderedDict[str, deque[VersionSpec]] = OrderedDict()
        self._working: asyncio.Task[None] | None = None
        self.failed = 0  # versions given up after TRIES
        self.stopped = 0  # times a tenant's rest was left out for want of room

    @property
    def waiting(self) -> int:
        return sum(map(len, self._wanted.values()))

    def want(self, tenant: str, specs: Sequence[VersionSpec]) -> None:
        """These versions of the tenant in this order, instead of what was wanted before."""
        if not specs:
            self._wanted.pop(tenant, None)
            return
        self._wanted[tenant] = deque(specs)
        if self._working is None:
            self._working = asyncio.get_running_loop().create_task(self._work())

    def forget(self, tenant: str) -> None:
        self._wanted.pop(tenant, None)

    def close(self) -> None:
        self._wanted.clear()
        if self._working is not None:
            self._working.cancel()

    async def _work(self) -> None:
        try:
            while self._wanted:
                tenant, specs = next(iter(self._wanted.items()))
                self._wanted.move_to_end(tenant)
                await self._one(tenant, specs.popleft())
                if not specs and self._wanted.get(tenant) is specs:
                    del self._wanted[tenant]
        finally:
            self._working = None

    async def _one(self, tenant: str, spec: VersionSpec) -> None:
        for number in range(1, TRIES + 1):
            try:
                await self._bring(spec)
            except NoRoom as error:
                self.stopped += 1
                self._wanted.pop(tenant, None)
                log.info("code.ahead_stopped", tenant=tenant, version=spec.version, reason=str(error))
                return
            except CodeUnavailable as error:
                log.warning("code.ahead_failed", version=spec.version, error=str(error), number=number)
                if number < TRIES:
                    await asyncio.sleep(self._pause_s)
                if tenant not in self._wanted:
                    return
            else:
                return
        self.failed += 1
