"""Turns at something dear: one of a tenant at a time, a few of all tenants together. For one event loop."""

import asyncio
import contextlib
from collections.abc import AsyncIterator


class Turns:
    """A tenant's second waits for its own first, and takes no place of the others while it does."""

    def __init__(self, at_once: int) -> None:
        self._places = asyncio.Semaphore(at_once)
        self._own: dict[str, asyncio.Lock] = {}
        self._waiting: dict[str, int] = {}

    @contextlib.asynccontextmanager
    async def turn(self, tenant: str, wait_s: float) -> AsyncIterator[None]:
        """Raises TimeoutError when it has not come by then; nothing is held in that case."""
        own = self._own.setdefault(tenant, asyncio.Lock())
        self._waiting[tenant] = self._waiting.get(tenant, 0) + 1
        try:
            async with contextlib.AsyncExitStack() as held:
                async with asyncio.timeout(wait_s):
                    await held.enter_async_context(own)
                    await held.enter_async_context(self._places)
                yield
        finally:
            self._waiting[tenant] -= 1
            if not self._waiting[tenant]:
                del self._waiting[tenant], self._own[tenant]

    def __len__(self) -> int:
        """Tenants that have a turn or wait for one."""
        return len(self._own)
