"""Tests of asynchronous parts run on the event loop of production, and nothing may be left or lost in it."""

import asyncio
import functools
import os
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec

import uvloop

P = ParamSpec("P")

LIMIT_S = 240.0
SETTLE_S = 60.0

abandoned: set[str] = set()
"""Descriptors of loops that were not closed, because their tests had failed."""


def in_loop(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Runs a coroutine test on uvloop. Fails when a task outlives it or an error went to the loop instead of to a caller."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        before = open_descriptors()
        loop = uvloop.new_event_loop()
        asyncio.set_event_loop(loop)
        try:
            loop.run_until_complete(_watched(test(*args, **kwargs)))
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.run_until_complete(loop.shutdown_default_executor())
            loop.close()  # not after a failure: with connections left in it this may never end
        except BaseException:
            abandoned.update(open_descriptors() - before)
            raise
        finally:
            asyncio.set_event_loop(None)

    return run


def open_descriptors() -> set[str]:
    """Those of this process, without the one that lists them: its number is free again."""
    return {descriptor for descriptor in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{descriptor}")}


async def _watched(test: Coroutine[Any, Any, None]) -> None:
    lost: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: lost.append(context))
    async with asyncio.timeout(LIMIT_S):
        await test
    await until(lambda: len(asyncio.all_tasks()) == 1, "every task has ended", SETTLE_S)
    assert not lost, f"errors nobody handled: {lost}"


async def until(holds: Callable[[], object], what: str = "", limit_s: float = 60.0) -> None:
    """Waits until `holds()` is true; bounded, and quick when it soon is."""
    loop = asyncio.get_running_loop()
    end = loop.time() + limit_s
    while not holds():
        if loop.time() > end:
            tasks = [repr(task.get_coro()) for task in asyncio.all_tasks()]
            raise AssertionError(f"not within {limit_s} s: {what or 'the condition'}; tasks: {tasks}")
        await asyncio.sleep(0.001)


async def settle(turns: int = 5) -> None:
    """Lets everything that is ready to run, run: callbacks, tasks, and what they wake."""
    for _ in range(turns):
        await asyncio.sleep(0)
