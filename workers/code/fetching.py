"""Brings layers from their sources: tier 2 of the zone when there is one, then the origin. Chunks come several at a time, and
each is checked.

A source that does not answer in time is left alone for a moment, and the next one is asked. A damaged chunk is asked for once
more, then of the next source. What is brought ahead of need gives way to what somebody waits for. Blocking: call it from
threads.
"""

import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import structlog

from workers.code.chunks import chunk_key, unpack
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
LAYER_S = 300.0
YIELD_S = 0.25
"""What is brought ahead of need moves on by a chunk in this time even while others are being waited for."""

Answer = TypeVar("Answer")
log = structlog.get_logger(__name__)


class Ended(OriginError):
    """The fetch was given up: nobody is to have the layer any more."""


class Errand:
    """One layer on its way. `urgent`: somebody waits for it now. `rank`: the farthest source that something came from."""

    def __init__(self, tenant: str, digest: str, urgent: bool) -> None:
        self.tenant = tenant
        self.digest = digest
        self.urgent = urgent
        self.ended = False
        self.rank = 0
        self.parcel: _Carried | None = None  # begun, and not read yet
        self.deadline = time.monotonic() + LAYER_S


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


class _Carried(msgspec.Struct, frozen=True):
    """A parcel that has begun to come, and where from."""

    lane: _Lane
    parcel: Parcel


def _let_go(late: "Future[Any]") -> None:
    """A parcel that came when nobody waited for it any more."""
    if not late.cancelled() and late.exception() is None and isinstance(late.result(), _Carried):
        late.result().parcel.close()


class Fetcher:
    """`sources` in the order in which they are asked. `decoding` chunks are unpacked at once: that holds a core each."""

    def __init__(self, sources: Sequence[ChunkSource], cluster_key: bytes, answer_s: float = ANSWER_S) -> None:
        if not sources:
            raise ValueError("code comes from somewhere: at least one source is needed")
        self._lanes = [_Lane(source, answer_s) for source in sources]
        self._cluster_key = cluster_key
        self._decoding = threading.BoundedSemaphore(max(1, os.cpu_count() or 1))
        self._state = threading.Condition()
        self._errands: Counter[Errand] = Counter()  # questions under way
        self._last_urgent = 0.0  # when somebody last waited, by the monotonic clock
        self._closed = False
        self.brought: Counter[str] = Counter()  # bytes of content, by source
        self.damaged: Counter[str] = Counter()  # chunks, by source
        self.silent: Counter[str] = Counter()  # questions that failed, by source

    @property
    def names(self) -> Sequence[str]:
        return [lane.source.name for lane in self._lanes]

    def manifest(self, errand: Errand) -> Manifest:
        """Raises OriginError; OldLayer when the layer is in the form of an earlier release."""

        def ask(source: ChunkSource) -> "Manifest | _Carried":
            if errand.urgent and isinstance(source, ParcelSource):
                lane = next(lane for lane in self._lanes if lane.source is source)
                return _Carried(lane, source.parcel(errand.tenant, errand.digest))
            return source.manifest(errand.tenant, errand.digest)

        with self.under_way(errand):
            found = self._first_good(errand, ask)
        if isinstance(found, Manifest):
            return found
        errand.parcel = found
        return found.parcel.manifest

    def layer(self, errand: Errand, manifest: Manifest, folder: Path) -> None:
        """Writes the layer into the empty `folder`, verified. Raises OriginError (Ended when it was given up), LayerError,
        OSError; what was written by then stays."""
        carried, errand.parcel = errand.parcel, None
        with self.under_way(errand), closing(_Reader(self, errand, manifest.chunks, carried)) as reader:
            assemble(manifest, reader.read, folder)

    def chunk(self, errand: Errand, chunk: Chunk) -> bytes:
        """The content of one chunk, verified. Raises OriginError."""
        with self.under_way(errand):
            return self._first_good(errand, self.asking(errand, chunk))

    def hurry(self, errand: Errand) -> None:
        """Somebody waits for it now; the time that it took before does not count."""
        with self._state:
            if not errand.urgent:
                errand.urgent, errand.deadline = True, time.monotonic() + LAYER_S
            self._state.notify_all()

    def end(self, errand: Errand) -> None:
        """It is given up at its next chunk."""
        with self._state:
            errand.ended = True
            self._state.notify_all()

    def leave(self, errand: Errand) -> None:
        """What was begun for it, and not read, is wanted no more."""
        carried, errand.parcel = errand.parcel, None
        if carried is not None:
            carried.parcel.close()

    def quiet(self, for_s: float, at_most_s: float) -> None:
        """Returns when nobody has waited for anything for `for_s`, `at_most_s` later at the latest."""
        deadline = time.monotonic() + at_most_s
        with self._state:
            while not self._closed and (now := time.monotonic()) < deadline:
                waited = any(errand.urgent for errand in self._errands)
                left = for_s if waited else self._last_urgent + for_s - now
                if left <= 0:
                    return
                self._state.wait(min(left, deadline - now))

    def close(self) -> None:
        with self._state:
            self._closed = True
            self._state.notify_all()
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
                self.check(errand)
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

    def check(self, errand: Errand) -> None:
        """Raises OriginError when it was given up, or takes too long."""
        if errand.ended:
            raise Ended("given up: nobody may have it any more")
        if time.monotonic() > errand.deadline:
            raise OriginError(f"not whole within {LAYER_S:g} s")

    @contextmanager
    def under_way(self, errand: Errand) -> Iterator[None]:
        """While this holds, what nobody waits for gives way to the errand, if somebody waits for that. Can be nested."""
        with self._state:
            self._errands[errand] += 1
        try:
            yield
        finally:
            with self._state:
                if errand.urgent:
                    self._last_urgent = time.monotonic()
                self._errands[errand] -= 1
                if not self._errands[errand]:
                    del self._errands[errand]
                self._state.notify_all()

    def give_way(self, errand: Errand) -> None:
        """Returns when nobody waits for anything else, YIELD_S later at the latest."""
        with self._state:
            self._state.wait_for(lambda: errand.urgent or errand.ended or not any(one.urgent for one in self._errands), YIELD_S)


class _Reader:
    """The chunks of one layer in their order, some of them asked for ahead, or on their way in a parcel."""

    def __init__(self, fetcher: Fetcher, errand: Errand, chunks: Sequence[Chunk], carried: _Carried | None) -> None:
        self._fetcher = fetcher
        self._errand = errand
        self._rest = deque(chunks)
        self._coming: deque[tuple[Chunk, _Lane, Future[bytes]]] = deque()
        self._carried = carried
        self._parts = iter(carried.parcel) if carried is not None else iter(())

    def read(self, chunk: Chunk) -> bytes:
        fetcher, errand = self._fetcher, self._errand
        if not errand.urgent:
            fetcher.give_way(errand)
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
