"""Deletes what tier 1 gave up, in a thread of its own, and when it disturbs least.

Deleting a layer takes longer than writing one, and takes the disk and a core from who waits for code. So it is put off a little,
though not for ever: what was set aside still fills the disk.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from workers.code.shelf import Shelf

QUIET_S = 0.1
"""Nobody has waited for code for so long: it is time."""

PUT_OFF_S = 1.0
PUT_OFF = 4
"""Layers that wait to be deleted; with more of them none is put off."""

FULL_S = 30.0
"""How long somebody waits for a full disk to have room again."""


class Sweeper:
    """`quiet(for_s, at_most_s)` returns when nobody has waited for code for `for_s`, and after `at_most_s`."""

    def __init__(self, shelf: Shelf, quiet: Callable[[float, float], None]) -> None:
        self._shelf = shelf
        self._quiet = quiet
        self._hasty = 0
        self._sweeping: set[Future[None]] = set()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tier1-sweep")

    def sweep(self, path: Path) -> None:
        """Out of the way at once, deleted later."""
        sweeping = self._thread.submit(self._sweep, self._shelf.set_aside(path))
        self._sweeping.add(sweeping)
        sweeping.add_done_callback(self._sweeping.discard)

    async def wait(self) -> None:
        """Until what was swept is deleted, FULL_S at most: the disk is full."""
        if sweeping := [asyncio.wrap_future(one) for one in list(self._sweeping)]:
            with self._in_haste():
                await asyncio.wait(sweeping, timeout=FULL_S)

    async def forget(self, tenant: str) -> None:
        """Everything of the tenant's is deleted."""
        with self._in_haste():
            await asyncio.get_running_loop().run_in_executor(self._thread, self._shelf.forget, tenant)

    def close(self) -> None:
        """What was swept is deleted."""
        self._hasty += 1
        self._thread.shutdown(wait=True)

    @contextlib.contextmanager
    def _in_haste(self) -> Iterator[None]:
        self._hasty += 1
        try:
            yield
        finally:
            self._hasty -= 1

    def _sweep(self, gone: Path) -> None:
        if not self._hasty and len(self._sweeping) <= PUT_OFF:
            self._quiet(QUIET_S, PUT_OFF_S)
        self._shelf.sweep(gone)
