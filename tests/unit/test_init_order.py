"""Speculative inits: as many side by side as there are cores, by what they really burn, the earliest needed first."""

import asyncio
from collections.abc import Awaitable, Callable

from workers.init_order import TICK_S, InitOrder


class Init:
    """One init under the test's control: burns when told to."""

    def __init__(self, order: InitOrder, name: str, burns: bool) -> None:
        self.name, self.burns = name, burns
        self._order = order
        self._end = asyncio.Event()
        self.started = False

    def clock(self) -> tuple[float, bool]:
        return 0.0, self.burns  # one that gets no core burns as well: it stands in a run queue

    def end(self) -> None:
        self._end.set()

    async def run(self, needed_at: float | None) -> None:
        """`needed_at` None: on demand."""
        if needed_at is not None:
            await self._order.turn(self, needed_at)
        self.started = True
        self._order.began(self, self.clock)
        try:
            await self._end.wait()
        finally:
            self._order.ended(self)


def in_loop(test: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    def run() -> None:
        asyncio.run(asyncio.wait_for(test(), 10))

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


async def settled() -> None:
    for _ in range(4):
        await asyncio.sleep(TICK_S * 2)


async def finish(inits: list[Init], tasks: list[asyncio.Task[None]]) -> None:
    for one in inits:
        one.end()
    await asyncio.gather(*tasks)


@in_loop
async def test_burning_inits_leave_the_others_waiting_and_the_earliest_needed_is_next() -> None:
    order = InitOrder(2)
    entry = Init(order, "entry", burns=True)
    late, early, first = (Init(order, name, burns=True) for name in ("late", "early", "first"))
    tasks = [asyncio.create_task(entry.run(None))]
    await asyncio.sleep(0)
    tasks += [asyncio.create_task(one.run(at)) for one, at in ((first, 1.0), (late, 9.0), (early, 2.0))]
    await settled()
    assert (entry.started, first.started, early.started, late.started) == (True, True, False, False)
    first.end()
    await settled()
    assert (early.started, late.started) == (True, False)
    await finish([entry, late, early], tasks)
    assert late.started


@in_loop
async def test_inits_that_wait_do_not_keep_others_out() -> None:
    order = InitOrder(2)
    inits = [Init(order, str(number), burns=False) for number in range(8)]
    tasks = [asyncio.create_task(one.run(float(number))) for number, one in enumerate(inits)]
    await settled()
    assert all(one.started for one in inits)
    await finish(inits, tasks)


@in_loop
async def test_a_request_does_not_wait_here() -> None:
    order = InitOrder(1)
    entry, adopted, other = (Init(order, name, burns=True) for name in ("entry", "adopted", "other"))
    tasks = [asyncio.create_task(entry.run(None))]
    await asyncio.sleep(0)
    tasks += [asyncio.create_task(adopted.run(5.0)), asyncio.create_task(other.run(1.0))]
    await settled()
    assert (adopted.started, other.started) == (False, False)
    order.hurry(adopted)
    await asyncio.sleep(0)
    assert (adopted.started, other.started) == (True, False)
    await finish([entry, adopted, other], tasks)


@in_loop
async def test_one_that_is_cancelled_while_it_waits_leaves_the_queue() -> None:
    order = InitOrder(1)
    entry, gone, stays = (Init(order, name, burns=True) for name in ("entry", "gone", "stays"))
    tasks = [asyncio.create_task(entry.run(None))]
    await asyncio.sleep(0)
    leaving = asyncio.create_task(gone.run(1.0))
    tasks.append(asyncio.create_task(stays.run(2.0)))
    await settled()
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    entry.end()
    await settled()
    assert (gone.started, stays.started) == (False, True)
    await finish([stays], tasks)
