"""Waiting for capacity: bounded in number and time, the longest waiting first, no turn lost."""

import asyncio
import time

import pytest
from doubles.loop import in_loop, settle, until

from orchestrator.gateway import waiting
from orchestrator.gateway.waiting import Overload, WaitingRoom

FAR = 1e12


class Queue:
    """Waiters by name; each comes back once and is noted."""

    def __init__(self, room: WaitingRoom) -> None:
        self.room = room
        self.woken: list[str] = []
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def join(self, name: str, since: float, reserved: bool = False, deadline: float = FAR) -> None:
        async def wait() -> None:
            await self.room.wait(since, deadline, reserved)
            self.woken.append(name)

        self.tasks[name] = asyncio.ensure_future(wait())
        await settle(2)

    async def leave(self) -> None:
        for task in self.tasks.values():
            task.cancel()
        await asyncio.gather(*self.tasks.values(), return_exceptions=True)


@pytest.fixture(autouse=True)
def no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "POLL_S", 1000.0)


@in_loop
async def test_each_end_of_an_invocation_wakes_the_one_who_waited_longest() -> None:
    queue, now = Queue(WaitingRoom(10, 60.0)), time.monotonic()
    for name, since in [("second", now - 2), ("third", now - 1), ("first", now - 3)]:
        await queue.join(name, since)
    for count in range(1, 4):
        queue.room.wake_one()
        await settle()
        assert queue.woken == ["first", "second", "third"][:count]
    queue.room.wake_one()
    assert len(queue.room) == 0


@in_loop
async def test_who_tried_again_in_vain_is_still_first() -> None:
    queue, now = Queue(WaitingRoom(10, 60.0)), time.monotonic()
    await queue.join("old", now - 5)
    await queue.join("new", now)
    queue.room.wake_one()
    await settle()
    await queue.join("old again", now - 5)
    queue.room.wake_one()
    await settle()
    assert queue.woken == ["old", "old again"]
    await queue.leave()


@in_loop
async def test_places_are_bounded_and_children_have_their_own() -> None:
    queue, now = Queue(WaitingRoom(2, 60.0)), time.monotonic()
    for name in ("a", "b"):
        await queue.join(name, now)
    with pytest.raises(Overload, match="2 invocations are waiting"):
        await queue.room.wait(now, FAR, reserved=False)
    await queue.join("child", now, reserved=True)
    assert len(queue.room) == 3
    await queue.leave()
    assert len(queue.room) == 0


@in_loop
async def test_time_is_bounded_counted_from_the_beginning() -> None:
    room, since = WaitingRoom(10, 0.5), time.monotonic()
    tries = 0

    async def wait_until_refused() -> None:
        nonlocal tries
        while True:
            await room.wait(since, FAR, reserved=True)
            tries += 1

    with pytest.raises(Overload, match=r"within 0\.5 s"):
        await asyncio.wait_for(wait_until_refused(), 30.0)
    assert tries >= 1, "there is a last try at the end of the time"


@in_loop
async def test_nobody_waits_beyond_the_deadline_of_the_invocation() -> None:
    room, now = WaitingRoom(10, 60.0), time.monotonic()
    await asyncio.wait_for(room.wait(now, now + 0.01, reserved=False), 30.0)
    await asyncio.wait_for(room.wait(now, now - 5.0, reserved=False), 30.0)
    assert len(room) == 0


@in_loop
async def test_a_waiter_that_gives_up_leaves_its_place_and_its_turn_to_others() -> None:
    queue, now = Queue(WaitingRoom(10, 60.0)), time.monotonic()
    for name in ("first", "second", "third"):
        await queue.join(name, now)
    queue.tasks["second"].cancel()
    await settle()
    assert len(queue.room) == 2
    queue.room.wake_one()  # the turn of the first, who gives up before it knows
    queue.tasks["first"].cancel()
    await settle()
    assert queue.woken == ["third"]


@in_loop
async def test_by_the_clock_only_the_first_few_try_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "POLL_S", 0.5)  # all have joined by then
    queue, now = Queue(WaitingRoom(1000, 60.0)), time.monotonic()
    for number in range(50):
        await queue.join(f"{number}", now + number / 1000)
    await until(lambda: queue.woken)
    assert queue.woken == [f"{number}" for number in range(waiting.POLLED)]
    await queue.join("again", now - 1)
    await until(lambda: "again" in queue.woken)
    await queue.leave()
