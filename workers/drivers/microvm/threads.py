"""Blocking work whose result must be given back by hand, done in a thread."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def in_thread(work: Callable[[], T], undo: Callable[[T], None], always: Callable[[], None] = lambda: None) -> T:
    """What `work()` returns, or raises. A waiter who is cancelled leaves the thread at work: then `undo` gets the result.
    `always` is called once, on the loop, when the work is done."""
    future = asyncio.get_running_loop().run_in_executor(None, work)
    future.add_done_callback(lambda _: always())
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:

        def late(done: "asyncio.Future[T]") -> None:
            if not done.cancelled() and done.exception() is None:
                undo(done.result())

        future.add_done_callback(late)
        raise
