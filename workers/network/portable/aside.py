"""Where work in sandboxes' namespaces is done: in threads that wait ahead, or at once.

Threads wait because a new one gets its first turn on a busy core last of all. What is short and waited for (`at_once`) is done
by the loop's own thread where that may come back (root): two changes of threads on a busy core cost more than the work.
"""

import asyncio
import contextlib
import errno
import os
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

import structlog

from workers.network import namespaces

T = TypeVar("T")

log = structlog.get_logger(__name__)

WAITING = 3

_Job = Callable[[], None]


class Aside:
    """Used on its loop. A thread comes back to the host's namespace after its work; where it may not (an ordinary user's), it
    ends, and another takes its place."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._alive = 0
        self._ended = False
        self._loop = asyncio.get_running_loop()
        self._home = os.open(namespaces.HERE, os.O_RDONLY | os.O_CLOEXEC)
        self._returns = _may_return(self._home)
        self._refill()

    def _refill(self) -> None:
        while self._alive < WAITING and not self._ended:
            self._alive += 1
            threading.Thread(target=self._work, name="foreglow-wiring", daemon=True).start()

    def _gone(self) -> None:
        self._alive -= 1
        self._refill()

    def _work(self) -> None:
        home = os.open(namespaces.HERE, os.O_RDONLY | os.O_CLOEXEC)
        try:
            while (job := self._jobs.get()) is not None:
                job()
                namespaces.enter(home)
        except OSError:
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                self._loop.call_soon_threadsafe(self._gone)
        finally:
            os.close(home)

    async def at_once(self, work: Callable[[], T], undo: Callable[[T], None]) -> T:
        """As `run`, without another thread where that can be. For what takes a fraction of a millisecond."""
        if self._ended or not self._returns:
            return await self.run(work, undo)
        try:
            return work()
        finally:
            _return(self._home)

    async def run(self, work: Callable[[], T], undo: Callable[[T], None] | None = None) -> T:
        """What `work` returns or raises; it may leave its thread in another namespace. `undo`: for what nobody waits for any
        more, since a thread cannot be called back."""
        if self._ended:
            raise OSError(errno.ESHUTDOWN, "the node's tunnels are closed")
        done: Future[T] = Future()

        def job() -> None:
            try:
                done.set_result(work())
            except BaseException as error:
                done.set_exception(error)

        self._jobs.put(job)
        try:
            return await asyncio.shield(asyncio.wrap_future(done))
        except asyncio.CancelledError:
            if undo is not None:
                done.add_done_callback(lambda made: None if made.exception() else undo(made.result()))
            raise

    def end(self) -> None:
        """Its threads end after what they have begun. Idempotent."""
        if not self._ended:
            self._ended = True
            for _ in range(self._alive):
                self._jobs.put(None)
            os.close(self._home)


def _may_return(home: int) -> bool:
    try:
        namespaces.enter(home)  # where this thread is: refused to whoever does not own it
    except OSError:
        return False
    return True


def _return(home: int) -> None:
    try:
        namespaces.enter(home)
    except OSError:
        log.exception("wiring.lost")  # this thread would serve everybody from inside one tenant's sandbox
        os.abort()
