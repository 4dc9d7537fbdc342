"""Waiting for capacity: bounded in number and in time; whoever waits is woken when an invocation ends somewhere."""

import asyncio
import time
from collections import deque

POLL_S = 0.05  # another gateway's invocations end without telling us


class Overload(Exception):
    """No capacity within the bounds; the message says which bound."""


class WaitingRoom:
    def __init__(self, places: int, max_wait_s: float) -> None:
        self._places = places
        self._max_wait_s = max_wait_s
        self._queue: deque[asyncio.Future[None]] = deque()

    def __len__(self) -> int:
        return len(self._queue)

    def wake_one(self) -> None:
        """An invocation ended: the first who waits may try again."""
        while self._queue:
            future = self._queue.popleft()
            if not future.done():
                future.set_result(None)
                return

    async def wait(self, since: float, reserved: bool) -> None:
        """Returns when it is worth trying again. `since`: loop time at which the waiting began. Children have reserved
        places: a parent that waits for its child must not keep the child out. Raises Overload."""
        loop = asyncio.get_running_loop()
        left = since + self._max_wait_s - time.monotonic()
        if left <= 0:
            raise Overload(f"no capacity became free within {self._max_wait_s:g} s")
        if not reserved and len(self._queue) >= self._places:
            raise Overload(f"{self._places} invocations are waiting for capacity already")
        future: asyncio.Future[None] = loop.create_future()
        self._queue.append(future)
        timer = loop.call_later(min(left, POLL_S), _wake, future)
        try:
            await future
        finally:
            timer.cancel()
            if future in self._queue:
                self._queue.remove(future)


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
