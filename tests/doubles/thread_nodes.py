"""A node in a thread, for tests whose other parts block: the real node on its socket over the driver double."""

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from doubles.nodes import Rig, running_node

from workers.rpc.messages import VersionCount

T = TypeVar("T")


class ThreadNode:
    """Runs for the length of a `with` block; `call` does something in its loop."""

    def __init__(self, folder: Path, secret: str, memory_mb: int = 4096) -> None:
        self._folder, self._secret, self._memory_mb = folder, secret, memory_mb
        self._started = threading.Event()
        self._failed: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="node")
        self._loop: asyncio.AbstractEventLoop
        self._end: asyncio.Event
        self.rig: Rig

    def __enter__(self) -> "ThreadNode":
        self._thread.start()
        assert self._started.wait(20)
        if self._failed is not None:
            raise self._failed
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(20)
        assert not self._thread.is_alive()
        if self._failed is not None and error is None:
            raise self._failed

    def call(self, what: Callable[[], T]) -> T:
        async def inside() -> T:
            return what()

        return asyncio.run_coroutine_threadsafe(inside(), self._loop).result(20)

    def count(self, version: str) -> VersionCount:
        return self.call(lambda: self.rig.node.instances.table.count(version))

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            self._failed = error
            self._started.set()

    async def _serve(self) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        async with running_node(self._folder, self._memory_mb, secret=self._secret) as self.rig:
            self._started.set()
            await self._end.wait()
