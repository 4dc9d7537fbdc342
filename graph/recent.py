"""The last runs of an entry, each as the order in which it reached its functions: what a branch taken says about the rest."""

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from graph.decay import FAST, SLOW

RUNS = 256
TIMED = 64
"""Of this many runs the times are kept, too: as many as a reservoir has samples."""

COMPARABLE = 8
"""Runs that must share the stages seen before they are believed; fewer, and earlier stages are ignored one by one."""

_ORDERED = 255  # places are bytes: what comes after the 255th function has no order among itself
_TICK = np.dtype("<u8")


_TIME = np.dtype("<f4")
_NEVER = np.array([np.nan], _TIME).tobytes()


class Ahead(msgspec.Struct, frozen=True):
    """What comparable runs say of what is still to come: for each column the probability, and in which of these runs (the order
    is the same for all, see ExpectedCall.in_runs) the function came after the last stage seen."""

    shares: dict[int, float]
    runs: int
    in_runs: dict[int, bytes]


class RecentRuns(msgspec.Struct, array_like=True, gc=False):
    """A ring of rows, one a run: byte `column` is the place (from 1) at which that function was first called, 0: never.

    `times`: a shorter ring of the same shape, 32-bit seconds from the run's start to that call, not a number: never, or from
    a snapshot of a program that did not keep them.
    """

    width: int = 8
    places: bytearray = msgspec.field(default_factory=bytearray)
    ticks: bytearray = msgspec.field(default_factory=bytearray)
    written: int = 0
    times: bytearray = msgspec.field(default_factory=bytearray)

    def add(self, columns: Sequence[int], ticks: int, seconds: Sequence[float] = ()) -> None:
        """`columns` in the order in which the run reached them, `seconds` when. `ticks`: the entry's clock after this run."""
        needed = max(columns, default=-1) + 1
        if needed > self.width:
            self._widen(needed)
        row = bytearray(self.width)
        for place, column in enumerate(columns, start=1):
            row[column] = min(place, _ORDERED)
        at = self.written % RUNS
        if self.written < RUNS:
            self.places += row
            self.ticks += ticks.to_bytes(8, "little")
        else:
            self.places[at * self.width : (at + 1) * self.width] = row
            self.ticks[at * 8 : at * 8 + 8] = ticks.to_bytes(8, "little")
        self._time(columns, seconds)
        self.written += 1

    def _time(self, columns: Sequence[int], seconds: Sequence[float]) -> None:
        at, width = self.written % TIMED, self.width
        if len(self.times) < (at + 1) * width * 4:
            self.times += _NEVER * ((at + 1) * width - len(self.times) // 4)
        row = np.frombuffer(self.times, _TIME)[at * width : (at + 1) * width]
        row[:] = np.nan
        if seconds:
            row[list(columns)] = seconds

    def clear(self, column: int) -> None:
        """Forgets a function, so that its column can stand for another."""
        if column < self.width:
            self.places[column :: self.width] = bytes(min(self.written, RUNS))
            np.frombuffer(self.times, _TIME)[column :: self.width] = np.nan

    def _widen(self, needed: int) -> None:
        width = self.width
        while width < needed:
            width *= 2
        rows = [self.places[at : at + self.width].ljust(width, b"\0") for at in range(0, len(self.places), self.width)]
        self.places = bytearray().join(rows)
        timed = np.frombuffer(self.times, _TIME).reshape(-1, self.width)
        self.times = bytearray(np.pad(timed, ((0, 0), (0, width - self.width)), constant_values=np.nan).tobytes())
        self.width = width

    def given(self, seen: Sequence[int], others: Mapping[int, bool]) -> Ahead | None:
        """For each column of `others` the probability that it is still to come.

        `seen` are the columns started, in order. Compared are the runs that reached all of them; when fewer than 8 did,
        those that reached the last three, two, one. None when even that leaves too few. `others` maps a column to True
        where only the latest runs count (its share is changing). A run in which a column came before the last stage
        says nothing about a run in which it has not come yet.
        """
        if not seen or not self.written:
            return None
        places = np.frombuffer(self.places, dtype=np.uint8).reshape(-1, self.width)
        for stages in dict.fromkeys((len(seen), 3, 2, 1)):
            columns = list(seen[-stages:])
            comparable = np.flatnonzero((places[:, columns] > 0).all(axis=1)) if max(columns) < self.width else np.empty(0, int)
            if len(comparable) >= COMPARABLE:
                break
        else:
            return None
        age = np.frombuffer(self.ticks, dtype=_TICK)[comparable].astype(np.float64)
        age = age.max() - age  # only ratios count, and the newest must not fade to nothing
        wanted = [column for column in others if column < self.width]
        rows = places[comparable][:, wanted]
        last = places[comparable, seen[-1]][:, None]
        weights = np.where([others[column] for column in wanted], FAST ** age[:, None], SLOW ** age[:, None])
        later = rows > last
        reached = (weights * (rows > 0)).sum(axis=0) / weights.sum(axis=0)
        after = (weights * later).sum(axis=0)
        open_runs = (weights * ((rows == 0) | (rows >= last))).sum(axis=0)
        # One imagined run with the unordered share: calls made side by side do not always come in the same order.
        still = (after + reached) / (open_runs + 1.0)
        return Ahead(dict(zip(wanted, still.tolist(), strict=True)), len(comparable), _bits(wanted, later))

    def in_runs(self, columns: Sequence[int]) -> dict[int, bytes]:
        """In which of all the runs kept each column was reached, as in Ahead."""
        places = np.frombuffer(self.places, dtype=np.uint8).reshape(-1, self.width)
        known = [column for column in columns if column < self.width]
        return _bits(known, places[:, known] > 0) if known and self.written else {}

    def seconds(self, columns: Sequence[int]) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        """The times of `columns` in the latest runs: a row a run, not a number where it was not reached."""
        timed = np.frombuffer(self.times, _TIME).reshape(-1, self.width)
        found = np.full((len(timed), len(columns)), np.nan, np.float32)
        known = [index for index, column in enumerate(columns) if column < self.width]
        found[:, known] = timed[:, [columns[index] for index in known]]
        return found


def _bits(columns: Sequence[int], reached: np.ndarray[tuple[int, int], np.dtype[np.bool_]]) -> dict[int, bytes]:
    packed = np.packbits(reached, axis=0).T
    return {column: row.tobytes() for column, row in zip(columns, packed, strict=True)}
