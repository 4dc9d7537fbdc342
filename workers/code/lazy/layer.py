"""One lazily started layer: its content as far as it is here, its mount, and the fetching of the rest."""

import asyncio
import contextlib
import errno
import os
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path

import structlog

from workers.code.lazy import words
from workers.code.lazy.fill import Fill
from workers.code.lazy.link import DEVICE, LazyError, Link
from workers.code.manifest import Chunk, LayerError, Manifest

CHUNK_TIMEOUT_S = 20.0
READ_TIMEOUT_S = 30.0
"""Of a function's read, whatever became of its chunk: after that it fails with EIO. Longer than bringing a chunk may take."""

LOOK_EVERY_S = 0.25
LEARNED_AFTER_S = 2.0
"""Without a chunk touched: what the start read is known."""

MAX_RESTARTS = 3
FULL = (errno.ENOSPC, errno.EDQUOT)

ReadChunk = Callable[[Chunk], Awaitable[bytes]]
"""The content of a chunk, verified. What it raises means that the chunk cannot be had now."""

log = structlog.get_logger(__name__)


class Content:
    """The layer's content on disk, written chunk by chunk. The file has no name: whatever happens, nothing of it stays."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self._starts = manifest.starts
        self._chunks = manifest.chunks
        self._indexes = {chunk.name: index for index, chunk in enumerate(manifest.chunks)}
        descriptor, name = tempfile.mkstemp(dir=folder, prefix=".content-")
        try:
            os.unlink(name)
            self.descriptor = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)
        except BaseException:
            os.close(descriptor)
            raise
        self._writing = descriptor
        self._lock = threading.Lock()  # a thread that comes late must not meet the number of another file
        self.bytes = 0
        self.held: set[int] = set()

    def write(self, index: int, plain: bytes) -> None:
        """In a thread. Raises LayerError, OSError (a full disk)."""
        if len(plain) != self._chunks[index].size:
            raise LayerError(f"chunk {self._chunks[index].name[:12]}: {len(plain)} bytes instead of {self._chunks[index].size}")
        rest, offset = memoryview(plain), self._starts[index]
        with self._lock:
            while rest:
                written = os.pwrite(self._writing, rest, offset)
                rest, offset = rest[written:], offset + written

    def read(self, chunk: Chunk) -> bytes:
        """The content of a chunk that is held. Raises OSError."""
        index = self._indexes[chunk.name]
        with self._lock:
            plain = os.pread(self.descriptor, chunk.size, self._starts[index])
        if index not in self.held or len(plain) != chunk.size:
            raise OSError(f"chunk {chunk.name[:12]} is not here")
        return plain

    def close(self) -> None:
        with self._lock:
            for descriptor in (self._writing, self.descriptor):
                if descriptor >= 0:
                    os.close(descriptor)
            self._writing = self.descriptor = -1


class LazyLayer:
    """Made by LazyMounts. `whole` is done when every chunk is here; LazyError: the layer was given up before.

    `learned` is called once with the order in which chunks were touched, when it says more than what was recorded.
    """

    def __init__(
        self, name: str, path: Path, manifest: Manifest, read_chunk: ReadChunk, learned: Callable[[Sequence[int]], None]
    ) -> None:
        self.name = name
        self.path = path
        self.manifest = manifest
        self.touched = 0
        self._read_chunk = read_chunk
        self._learned: Callable[[Sequence[int]], None] | None = learned
        self._fill = Fill(len(manifest.chunks), time.monotonic())
        self._content = Content(path.parent, manifest)
        self._link: Link | None = None
        self._restarts = 0
        self._given_up = False
        self._starting = asyncio.Lock()
        self._wake = asyncio.Event()
        self._fetches: set[asyncio.Task[None]] = set()
        self._filling: asyncio.Task[None] | None = None
        self._released = False
        self._gone = asyncio.Event()
        self.whole: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def up(self) -> bool:
        """It can be handed out now."""
        return self._link is not None and not self._link.gone and not self._released

    @property
    def is_whole(self) -> bool:
        return self.whole.done() and self.whole.exception() is None

    @property
    def bytes_held(self) -> int:
        return self._content.bytes

    @property
    def server(self) -> int:
        """The process id of its server; 0: it has none."""
        return self._link.pid if self._link is not None else 0

    async def start(self, device: Path = DEVICE) -> None:
        """Mounts it, again when its server has died. Raises LazyError: it cannot be, or not any more."""
        async with self._starting:
            if self.up:
                return
            if self._given_up or self._released or self._restarts > MAX_RESTARTS:
                raise LazyError(f"{self.name}: its mount was given up")
            self._restarts += 1
            self.path.mkdir(exist_ok=True)
            self.path.chmod(0o755)
            link = Link(self.path, self._on_touched, self._on_gone)
            await link.start(self.manifest, self._content.descriptor, sorted(self._content.held), READ_TIMEOUT_S, device)
            if self._given_up:  # it was ended meanwhile, and whoever did that saw no server
                await link.end()
                self._remove_place()
                raise LazyError(f"{self.name}: its mount was given up")
            self._link = link
            if self._filling is None:
                self._filling = asyncio.create_task(self._run())

    def recorded(self, order: Iterable[int]) -> None:
        """What an earlier start touched, here or on another node."""
        self._fill.recorded(order)
        self._wake.set()

    def chunk(self, chunk: Chunk) -> bytes:
        """What `workers.code.layers.assemble` asks for, once the layer is whole. In a thread. Raises OSError."""
        return self._content.read(chunk)

    async def release(self) -> None:
        """A whole layer's plain tree has taken over: nobody new gets the mount, who has it keeps it. Not before it is whole."""
        self._released = True
        self._teach()
        if self._link is None or self._link.gone:
            await self.end()
            return
        self._link.release()
        self._remove_place()
        self._content.close()  # its server has a descriptor of its own

    async def end(self) -> None:
        """Now. Idempotent."""
        self._released = self._given_up = True
        tasks = [*self._fetches, *([self._filling] if self._filling is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._link is not None:
            await self._link.end()
        self._content.close()
        self._remove_place()
        if not self.whole.done():
            self.whole.set_exception(LazyError(f"{self.name}: it was given up before it was whole"))
            self.whole.exception()  # nobody may be waiting
        self._gone.set()

    async def gone(self) -> None:
        """Returns when a released layer has no user any more, or it was ended."""
        await self._gone.wait()

    # -- what its server says

    def _on_touched(self, indexes: Iterable[int]) -> None:
        for index in indexes:
            if index in self._content.held and self._link is not None:
                self._link.held(index)  # it came before the server said so, or before the server itself
            self._fill.touched(index, time.monotonic())
            self.touched += 1
        self._begin()

    def _on_gone(self, why: str) -> None:
        if self._released:
            self._gone.set()
        if why and not self._given_up:
            log.error("lazy.server_ended", layer=self.name, reason=why, effect="instances that use its mount fail")

    # -- bringing

    async def _run(self) -> None:
        while not self._fill.whole and not self._given_up:
            self._wake.clear()
            self._begin()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY_S):  # wait_for may lose a cancellation that comes with the wake
                    await self._wake.wait()
            if self._fill.quiet_for(time.monotonic()) >= LEARNED_AFTER_S:
                self._teach()
        if not self.whole.done() and not self._given_up:
            self.whole.set_result(None)
        await asyncio.sleep(LEARNED_AFTER_S)
        self._teach()

    def _begin(self) -> None:
        if self._given_up:
            return
        for index in self._fill.next(time.monotonic()):
            task = asyncio.create_task(self._bring(index))
            self._fetches.add(task)
            task.add_done_callback(self._fetches.discard)

    async def _bring(self, index: int) -> None:
        chunk = self.manifest.chunks[index]
        try:
            async with asyncio.timeout(CHUNK_TIMEOUT_S):
                plain = await self._read_chunk(chunk)
            await asyncio.to_thread(self._content.write, index, plain)
        except Exception as error:  # whatever it was, who waits for the chunk is told
            log.warning("lazy.chunk", layer=self.name, chunk=index, reason=str(error) or type(error).__name__)
            self._fill.failed(index, time.monotonic())
            self._tell(index, words.FAILED)
            if isinstance(error, OSError) and error.errno in FULL and not self.whole.done():
                self.whole.set_exception(LazyError(f"{self.name}: {error}"))  # a whole fetch knows how to make room
                self.whole.exception()
        else:
            self._content.held.add(index)
            self._content.bytes += chunk.size
            self._fill.arrived(index)
            self._tell(index, words.HELD)
        self._begin()
        self._wake.set()

    def _tell(self, index: int, state: int) -> None:
        if self._link is not None:
            self._link.held(index, state)

    def _teach(self) -> None:
        learned, lesson = self._learned, self._fill.lesson()
        if learned is not None and lesson is not None:
            self._learned = None
            learned(lesson)

    def _remove_place(self) -> None:
        with contextlib.suppress(OSError):
            self.path.rmdir()
