"""Which chunk of a lazily started layer is fetched next, and what is learned from the order they were asked for. Pure.

First what somebody waits for; then, in its order, what the first start of the layer was seen to touch, and what follows a run
of chunks being read one after the other (the files of one package lie together); then, once the start has gone quiet, the rest
in the layer's order, with little at once: it competes with the function's own start.
"""

from collections.abc import Iterable, Sequence

AT_ONCE = 8
"""Chunks under way, whatever for."""

RECORDED_AT_ONCE, REST_AT_ONCE = 6, 2
FOLLOWING = 2
"""Chunks brought ahead of a run."""

QUIET_S = 0.5
"""Without a chunk being asked for: the start is over, or computes."""

PATIENCE_S = 10.0
"""The rest begins by then, quiet or not."""

PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
MAX_FAILURES = 10
"""In a row; then only what is asked for is fetched, until one of those arrives."""


class Fill:
    """`count` chunks, none here yet. `now` in seconds on any steady clock."""

    def __init__(self, count: int, now: float) -> None:
        self._count = count
        self._missing = set(range(count))
        self._under_way: dict[int, bool] = {}  # index -> begun for somebody who waits
        self._wanted: dict[int, None] = {}  # in the order they were asked for
        self._recorded: dict[int, None] = {}
        self._known: Sequence[int] = ()
        self._rest = iter(range(count))
        self._put_back: list[int] = []
        self._touched: dict[int, None] = {}
        self._began = self._last_touch = now
        self._failures = 0
        self._paused_until = now

    # -- what happens

    def recorded(self, order: Iterable[int]) -> None:
        """What an earlier start touched; what is no chunk of this layer, or twice, is left out."""
        self._recorded = dict.fromkeys(index for index in order if 0 <= index < self._count)
        self._known = list(self._recorded)

    def touched(self, index: int, now: float) -> None:
        """A function has read from the chunk; it waits when the chunk is missing."""
        if not 0 <= index < self._count:
            return
        self._last_touch = now
        first = index not in self._touched
        self._touched.setdefault(index)
        if first and index - 1 in self._touched:
            for following in range(index + 1, min(index + 1 + FOLLOWING, self._count)):
                if following in self._missing:
                    self._recorded.setdefault(following)
        if index in self._missing and index not in self._under_way:
            self._wanted[index] = None

    def arrived(self, index: int) -> None:
        self._missing.discard(index)
        if self._under_way.pop(index, False):
            self._failures = 0

    def failed(self, index: int, now: float) -> None:
        """It is fetched again when it is asked for again, or in the background after a pause."""
        self._under_way.pop(index, None)
        self._put_back.append(index)
        self._failures += 1
        self._paused_until = now + min(LONGEST_PAUSE_S, PAUSE_S * 2 ** (self._failures - 1))

    # -- what to do

    def next(self, now: float) -> Sequence[int]:
        """Chunks to begin with now; each is under way until it `arrived` or `failed`."""
        begun: list[int] = []
        while self._wanted and len(self._under_way) < AT_ONCE:
            index = next(iter(self._wanted))
            del self._wanted[index]
            begun.append(self._begin(index, True))
        if self._wanted or now < self._paused_until or self._failures >= MAX_FAILURES:
            return begun
        while self._recorded and len(self._under_way) < RECORDED_AT_ONCE:
            index = next(iter(self._recorded))
            del self._recorded[index]
            if index in self._missing and index not in self._under_way:
                begun.append(self._begin(index, False))
        if self._recorded or not (now - self._last_touch >= QUIET_S or now - self._began >= PATIENCE_S):
            return begun
        while len(self._under_way) < REST_AT_ONCE:
            chosen = self._of_the_rest()
            if chosen is None:
                break
            begun.append(self._begin(chosen, False))
        return begun

    @property
    def whole(self) -> bool:
        return not self._missing

    def lesson(self) -> Sequence[int] | None:
        """The order worth keeping for the next start; None when what is known says it already."""
        known = set(self._known)
        new = [index for index in self._touched if index not in known]
        return [*self._known, *new] if new else None

    def quiet_for(self, now: float) -> float:
        """Seconds since a chunk was touched; 0 before the first."""
        return now - self._last_touch if self._touched else 0.0

    def _begin(self, index: int, waited_for: bool) -> int:
        self._under_way[index] = waited_for
        return index

    def _of_the_rest(self) -> int | None:
        while True:
            index = self._put_back.pop(0) if self._put_back else next(self._rest, -1)
            if index < 0:
                return None
            if index in self._missing and index not in self._under_way:
                return index
