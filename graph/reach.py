"""Per entry: which functions its runs reach, how often, when, how many at once, and given the stages seen."""

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from graph.decay import SLOW, RunClock, Share
from graph.ids import FunctionId
from graph.recent import COMPARABLE, RecentRuns
from graph.runs import Run
from graph.timing import Reservoir

AT_ONCE = 64
"""Calls of one function at once are counted up to this many."""

TRACE_IDS = 3

_SPREAD_DIGITS = 4  # a tenth of a millisecond: less is noise, and the later stage tells as much

ANCHORS = 3
"""So many of the stages that started last are tried as what a time is measured from."""


class Reached(Share, array_like=True, gc=False):
    """What the runs of one entry tell of one function.

    `at_once[j-1]`: decayed runs with exactly j calls at the same time; empty while it was never more than one.
    """

    column: int = 0
    offsets: Reservoir = msgspec.field(default_factory=Reservoir)
    at_once: tuple[float, ...] = ()
    trace_ids: tuple[str, ...] = ()

    def observe(self, clock: RunClock, decay: bool, first_s: float, at_once: int, trace_id: str) -> None:
        self.hit(clock, decay)
        self.offsets.offer(first_s, decay)
        if at_once > 1 or self.at_once:
            self._count(decay, min(at_once, AT_ONCE))
        if trace_id not in self.trace_ids:
            self.trace_ids = (trace_id, *self.trace_ids[: TRACE_IDS - 1])

    def _count(self, decay: bool, at_once: int) -> None:
        faded = SLOW if decay else 1.0
        alone = self.offsets.offered - 1  # runs before this one, if they are not counted yet: all had one at a time
        before = self.at_once or ((1.0 - SLOW**alone) / (1.0 - SLOW) if decay else float(alone),)
        weights = [weight * faded for weight in before] + [0.0] * (at_once - len(before))
        weights[at_once - 1] += 1.0
        self.at_once = tuple(weights)

    def at_least(self) -> tuple[float, ...]:
        """P(at least j at once), given that the function is reached at all; the first is 1."""
        if not self.at_once:
            return (1.0,)
        total = left = sum(self.at_once)
        tail = []
        for weight in self.at_once:
            tail.append(min(1.0, left / total))
            left -= weight
        return tuple(share for share in tail if share > 1e-9)


class Given(msgspec.Struct, frozen=True):
    """For each function the probability that it is still to come, the number of comparable runs, and which of them reached it."""

    shares: dict[FunctionId, float]
    runs: int
    in_runs: dict[FunctionId, bytes]


class EntryReach(msgspec.Struct, array_like=True, gc=False):
    """What the runs of one function reach. Holds at most `limit` functions; the rarest make room for new ones.

    `roots`: how many of the runs were the root of a trace; only those keep the order of their stages.
    """

    clock: RunClock = msgspec.field(default_factory=RunClock)
    reached: dict[FunctionId, Reached] = msgspec.field(default_factory=dict)
    recent: RecentRuns = msgspec.field(default_factory=RecentRuns)
    free_columns: list[int] = msgspec.field(default_factory=list)
    roots: int = 0
    last_seen: float = 0.0

    def observe(self, run: Run, trace_id: str, now: float, decay: bool, limit: int) -> int:
        """Takes in one run. Returns by how many functions `reached` grew (negative: it shrank)."""
        before = len(self.reached)
        self.clock.advance(decay)
        self.last_seen = now
        for function, visit in run.visits.items():
            reached = self.reached.get(function)
            if reached is None:
                reached = self._new(function, limit)
            reached.observe(self.clock, decay, visit.first_s, visit.at_once, trace_id)
        if run.root:
            self.roots += 1
            self._remember(run)
        return len(self.reached) - before

    def _remember(self, run: Run) -> None:
        stages = sorted(run.visits, key=lambda function: run.visits[function].first_s)
        stages = [function for function in stages if function in self.reached]
        columns = [self.reached[function].column for function in stages]
        self.recent.add(columns, self.clock.ticks, [run.visits[function].first_s for function in stages])

    def _new(self, function: FunctionId, limit: int) -> Reached:
        if len(self.reached) >= limit:
            rarest = sorted(self.reached, key=lambda each: self.reached[each].value(self.clock))
            for each in rarest[: max(1, limit // 16)]:
                self.forget(each)
        column = self.free_columns.pop() if self.free_columns else len(self.reached)
        reached = self.reached[function] = Reached(column=column)
        return reached

    def forget(self, function: FunctionId) -> bool:
        """True when there was something to forget."""
        reached = self.reached.pop(function, None)
        if reached is None:
            return False
        self.recent.clear(reached.column)
        self.free_columns.append(reached.column)
        return True

    def share(self, function: FunctionId) -> float:
        """In which part of the runs the function was reached, 0 when never."""
        reached = self.reached.get(function)
        return reached.value(self.clock) if reached else 0.0

    def given(self, seen: Sequence[FunctionId]) -> Given | None:
        """What is still to come of the functions not in `seen`.

        None when nothing comparable was seen: the plain shares are the best there is. A stage this entry never reached
        is not comparable to anything and is left out of the comparison.
        """
        stages = dict.fromkeys(function for function in seen if function in self.reached)
        others = {
            reached.column: (function, reached.changing(self.clock))
            for function, reached in self.reached.items()
            if function not in stages
        }
        known = self.recent.given(
            [self.reached[function].column for function in stages],
            {column: changing for column, (_, changing) in others.items()},
        )
        if known is None:
            return None
        return Given(
            shares={function: known.shares.get(column, 0.0) for column, (function, _) in others.items()},
            runs=known.runs,
            in_runs={others[column][0]: bits for column, bits in known.in_runs.items()},
        )

    def in_runs(self) -> dict[FunctionId, bytes]:
        """In which of the latest runs each function was reached, see ExpectedCall.in_runs."""
        of_column = self.recent.in_runs([reached.column for reached in self.reached.values()])
        held = ((function, of_column.get(reached.column)) for function, reached in self.reached.items())
        return {function: bits for function, bits in held if bits is not None}

    def offsets_after(self, started: Mapping[FunctionId, float]) -> dict[FunctionId, tuple[float, ...]]:
        """For functions not in `started`, sorted samples of the time from this run's start to their call.

        `started`: the stages seen, in order, with the time from the run's start to their (last) start. Times are measured from
        the one of the last three from which they vary least, in the latest runs that reached these stages and the function after
        it; where fewer than 8 did, it is left out. So they are as late as this run is, and as certain as its last stage.
        """
        anchors = [function for function in started if function in self.reached][-ANCHORS:]
        others = [function for function in self.reached if function not in started]
        if not anchors or not others:
            return {}
        at = self.recent.seconds([self.reached[function].column for function in anchors])
        ahead = self.recent.seconds([self.reached[function].column for function in others])
        alike = ~np.isnan(at).any(axis=1)
        if alike.sum() < COMPARABLE:
            alike = ~np.isnan(at[:, -1])
        since = ahead[alike].astype(np.float64)[None, :, :] - at[alike].T[:, :, None]  # anchor, run, function
        counted = since >= 0.0  # False where it is not a number
        runs = counted.sum(axis=1)
        values = np.where(counted, since, 0.0)
        mean = values.sum(axis=1) / np.maximum(runs, 1)
        squares = (values * values).sum(axis=1) / np.maximum(runs, 1)
        spread = np.round(np.sqrt(np.maximum(squares - mean * mean, 0.0)), _SPREAD_DIGITS)
        varies = np.where(runs >= COMPARABLE, spread, np.inf)
        best = len(anchors) - 1 - np.argmin(varies[::-1], axis=0)  # of equals the latest
        column = np.arange(len(others))
        ordered = np.sort(np.where(counted, since, np.inf)[best, :, column], axis=1)
        bases = np.array([started[anchor] for anchor in anchors])[best]
        samples = (ordered + bases[:, None]).tolist()
        known = np.where(np.isfinite(varies[best, column]), runs[best, column], 0).tolist()
        return {function: tuple(samples[index][: known[index]]) for index, function in enumerate(others) if known[index]}
