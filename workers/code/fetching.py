"""Brings layers from their sources: tier 2 of the zone when there is one, then the origin. Chunks come several at a time, and
each is checked.

A source that does not answer in time is left alone for a moment, and the next one is asked. A damaged chunk is asked for once
more, then of the next source. Blocking: call it from threads.
"""

import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import structlog

from workers.code.chunks import chunk_key, unpack
from workers.code.errands import Errand, Errands
from workers.code.layers import assemble
from workers.code.manifest import Chunk, LayerError, Manifest
from workers.code.origin import OldLayer, OriginError
from workers.ports import ChunkSource, Parcel, ParcelSource

AHEAD = 8
"""Chunks under way for one layer that somebody waits for: 4 MiB of memory."""

UNPACKED_AHEAD = 3
"""Of a parcel: what comes behind it waits in the kernel while the files of these are written."""

AHEAD_IN_BACKGROUND = 2
THREADS = 16
"""Questions under way to one source."""

ANSWER_S = 8.0
REST_S = 3.0

Answer = TypeVar("Answer")
log = structlog.get_logger(__name__)


class _Lane:
    """One source, with threads of its own: one that stands still holds up no other."""

    def __init__(self, source: ChunkSource, answer_s: float) -> None:
        self.source = source
        self.answer_s = answer_s
        self._rests_until = 0.0
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix=f"code-{source.name}")

    @property
    def rests(self) -> bool:
        return time.monotonic() < self._rests_until or not self.source.there

    def submit(self, ask: Callable[[ChunkSource], Answer]) -> "Future[Answer]":
        return self._threads.submit(ask, self.source)

    def wait(self, future: "Future[Answer]", at_most: float) -> Answer:
        """Raises OriginError when it does not answer, and what asking raised."""
        try:
            return future.result(max(0.0, min(self.answer_s, at_most)))
        except (FutureTimeout, CancelledError):
            future.cancel()
            future.add_done_callback(_let_go)
            self._rests_until = time.monotonic() + REST_S
            raise OriginError(f"no answer within {self.answer_s:g} s") from None

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


class Carried(msgspec.Struct, frozen=True):
    """A parcel that has begun to come, and where from."""

    lane: _Lane
    parcel: Parcel


def _let_go(late: "Future[Any]") -> None:
    """A parcel that came when nobody waited for it any more."""
    if not late.cancelled() and late.exception() is None and isinstance(late.result(), Carried):
        late.result().parcel.close()


class Fetcher:
    """`sources` in the order in which they are asked. As many chunks as there are cores are unpacked at once. `errands` says
    whose come first."""

    def __init__(self, sources: Sequence[ChunkSource], cluster_key: bytes, errands: Errands, answer_s: float = ANSWER_S) -> None:
        if not sources:
            raise ValueError("code comes from somewhere: at least one source is needed")
        self._lanes = [_Lane(source, answer_s) for source in sources]
        self.errands = errands
        self._cluster_key = cluster_key
        self._decoding = threading.BoundedSemaphore(max(1, os.cpu_count() or 1))
        self.brought: Counter[str] = Counter()  # bytes of content, by source
        self.damaged: Counter[str] = Counter()  # chunks, by source
        self.silent: Counter[str] = Counter()  # questions that failed, by source

    @property
    def names(self) -> Sequence[str]:
        return [lane.source.name for lane in self._lanes]

    def manifest(self, errand: Errand) -> Manifest:
        """Raises OriginError; OldLayer when the layer is in the form of an earlier release."""

        def ask(source: ChunkSource) -> "Manifest | Carried":
            if errand.urgent and isinstance(source, ParcelSource):
                lane = next(lane for lane in self._lanes if lane.source is source)
                return Carried(lane, source.parcel(errand.tenant, errand.digest))
            return source.manifest(errand.tenant, errand.digest)

        with self.errands.under_way(errand):
            found = self._first_good(errand, ask)
        if isinstance(found, Manifest):
            return found
        errand.carried = found
        return found.parcel.manifest

    def layer(self, errand: Errand, manifest: Manifest, folder: Path) -> None:
        """Writes the layer into the empty `folder`, verified. Raises OriginError (Ended when it was given up), LayerError,
        OSError; what was written by then stays."""
        carried, errand.carried = errand.carried, None
        with self.errands.under_way(errand), closing(_Reader(self, errand, manifest.chunks, carried)) as reader:
            assemble(manifest, reader.read, folder)

    def chunk(self, errand: Errand, chunk: Chunk) -> bytes:
        """The content of one chunk, verified. Raises OriginError."""
        with self.errands.under_way(errand):
            return self._first_good(errand, self.asking(errand, chunk))

    def leave(self, errand: Errand) -> None:
        """What was begun for it, and not read, is wanted no more."""
        carried, errand.carried = errand.carried, None
        if carried is not None:
            carried.parcel.close()

    def close(self) -> None:
        for lane in self._lanes:
            lane.close()

    # -- asking

    def lane(self, errand: Errand) -> _Lane:
        """Who is asked next for this errand: the first that does not rest, the last one at worst. Not before the one that had
        to be asked already: where a zone is down or empty, chunks would else come from the origin one at a time."""
        return next((lane for lane in self._lanes[errand.rank :] if not lane.rests), self._lanes[-1])

    def asking(self, errand: Errand, chunk: Chunk) -> Callable[[ChunkSource], bytes]:
        def ask(source: ChunkSource) -> bytes:
            return self.unpacking(errand, chunk, source.chunk(errand.tenant, errand.digest, chunk.name))(source)

        return ask

    def unpacking(self, errand: Errand, chunk: Chunk, stored: bytes) -> Callable[[ChunkSource], bytes]:
        """The same when it is here already."""

        def unpacked(_: ChunkSource) -> bytes:
            with self._decoding:
                return unpack(chunk_key(self._cluster_key, errand.tenant), chunk.name, stored)

        return unpacked

    def _first_good(
        self,
        errand: Errand,
        ask: Callable[[ChunkSource], Answer],
        asked: "tuple[_Lane, Future[Answer]] | None" = None,
    ) -> Answer:
        """`asked`: a question under way already."""
        reasons: list[str] = []
        ranked = list(enumerate(self._lanes))
        for rank, lane in ranked[errand.rank :] + ranked[: errand.rank]:
            pending = asked[1] if asked is not None and asked[0] is lane else None
            if lane.rests and lane is not self._lanes[-1] and not (pending is not None and pending.done()):
                if lane.source.there:
                    reasons.append(f"{lane.source.name}: left alone, it did not answer")
                continue
            for _ in range(2):
                errand.check()
                try:
                    answer = lane.wait(pending or lane.submit(ask), errand.deadline - time.monotonic())
                except OldLayer:
                    errand.rank = max(errand.rank, rank)
                    raise
                except LayerError as error:  # once more: it may have been damaged on its way
                    self.damaged[lane.source.name] += 1
                    reasons.append(f"{lane.source.name}: {error}")
                except (OriginError, OSError) as error:
                    self.silent[lane.source.name] += 1
                    reasons.append(f"{lane.source.name}: {error}")
                    break
                else:
                    errand.rank = max(errand.rank, rank)
                    if isinstance(answer, bytes):
                        self.brought[lane.source.name] += len(answer)
                    return answer
                pending = None
        raise OriginError("; ".join(dict.fromkeys(reasons)))


class _Reader:
    """The chunks of one layer in their order, some of them asked for ahead, or on their way in a parcel."""

    def __init__(self, fetcher: Fetcher, errand: Errand, chunks: Sequence[Chunk], carried: Carried | None) -> None:
        self._fetcher = fetcher
        self._errand = errand
        self._rest = deque(chunks)
        self._coming: deque[tuple[Chunk, _Lane, Future[bytes]]] = deque()
        self._carried = carried
        self._parts = iter(carried.parcel) if carried is not None else iter(())

    def read(self, chunk: Chunk) -> bytes:
        fetcher, errand = self._fetcher, self._errand
        fetcher.errands.give_way(errand)
        ahead = UNPACKED_AHEAD if self._carried is not None else AHEAD if errand.urgent else AHEAD_IN_BACKGROUND
        while self._rest and len(self._coming) < ahead:
            following = self._rest.popleft()
            stored = self._next_part()
            if stored and self._carried is not None:
                lane, ask = self._carried.lane, fetcher.unpacking(errand, following, stored)
            else:
                lane, ask = fetcher.lane(errand), fetcher.asking(errand, following)
            self._coming.append((following, lane, lane.submit(ask)))
        if not self._rest:
            self._next_part()  # nothing but the end, behind which the connection can be used again
            self._close_parcel()
        asked, lane, future = self._coming.popleft()
        assert asked is chunk, "chunks are read in their order"
        return fetcher._first_good(errand, fetcher.asking(errand, chunk), (lane, future))

    def close(self) -> None:
        for _, _, future in self._coming:
            future.cancel()
        self._close_parcel()

    def _next_part(self) -> bytes:
        """Of the parcel; empty when there is none, or it does not hold this chunk, or it broke off.

        Read here, and not in a thread of its source: that one would wait for its turn to run at each of many short calls.
        """
        if self._carried is None:
            return b""
        try:
            stored = next(self._parts, None)
        except OriginError as error:
            self._fetcher.silent[self._carried.lane.source.name] += 1
            log.info("code.parcel_broken", layer=self._errand.digest[:19], reason=str(error), instead="chunk by chunk")
            stored = None
        if stored is None:
            self._close_parcel()
        return stored or b""

    def _close_parcel(self) -> None:
        if self._carried is not None:
            self._carried.parcel.close()
            self._carried = None
