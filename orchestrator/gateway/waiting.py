"""Waiting for capacity: bounded in number and in time; whoever waits is woken when an invocation ends somewhere."""

import asyncio
import time
from bisect import insort
from dataclasses import dataclass

POLL_S = 0.05  # another gateway's invocations end without telling us
POLLED = 8  # how many try again then: if all did, the tries would take the capacity they wait for


class Overload(Exception):
    """No capacity within the bounds; the message says which bound, `reason` in one word for who counts them."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(slots=True, eq=False)
class _Place:
    since: float
    turn: asyncio.Future[None]


class WaitingRoom:
    """Who has waited longest is first, however often it has tried again in between."""

    def __init__(self, places: int, max_wait_s: float) -> None:
        self._places = places
        self._max_wait_s = max_wait_s
        self._queue: list[_Place] = []
        self._poll: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._queue)

    def wake_one(self) -> None:
        """An invocation ended: the first who waits may try again."""
        while self._queue:
            turn = self._queue.pop(0).turn
            if not turn.done():
                turn.set_result(None)
                return

    async def wait(self, since: float, deadline: float, reserved: bool) -> None:
        """Returns when it is worth trying again, at the latest at `deadline`. `since`: when the waiting began (both
        monotonic). Children have reserved places: a parent that waits for its child must not keep the child out.
        Raises Overload."""
        loop = asyncio.get_running_loop()
        now = time.monotonic()
        left = since + self._max_wait_s - now
        if left <= 0:
            raise Overload(f"no capacity became free within {self._max_wait_s:g} s", "waited-too-long")
        if not reserved and len(self._queue) >= self._places:
            raise Overload(f"{self._places} invocations are waiting for capacity already", "too-many-waiting")
        place = _Place(since, loop.create_future())
        insort(self._queue, place, key=lambda one: one.since)
        timer = loop.call_later(max(0.0, min(left, deadline - now)), _wake, place.turn)
        if self._poll is None:
            self._poll = loop.call_later(POLL_S, self._tick)
        try:
            await place.turn
        except asyncio.CancelledError:
            if place not in self._queue:
                self.wake_one()  # its turn is somebody else's
            raise
        finally:
            timer.cancel()
            if place in self._queue:
                self._queue.remove(place)

    def _tick(self) -> None:
        self._poll = None
        for _ in range(min(POLLED, len(self._queue))):
            self.wake_one()


def _wake(turn: asyncio.Future[None]) -> None:
    if not turn.done():
        turn.set_result(None)
