"""When an entry is called next: from how long it stood idle before it was called again, or from its timer. Pure state, no clock.

Idle times are counted in a histogram after Shahrad et al., Serverless in the Wild (USENIX ATC 2020): minute bins up to 4 hours,
and, where they have one bin, logarithmic ones below a minute, four an octave. Regular intervals between starts are a timer,
which tells more. What comes of it is an ExpectedCall of the entry itself, that plan() times and prices like any other.
"""

import math
from collections.abc import Sequence
from enum import StrEnum

import msgspec

from graph.ids import FunctionId
from graph.plans import EdgeSource, ExpectedCall
from graph.starts import StartTimes
from graph.timing import RESERVOIR, quantile

MINUTE_S = 60.0
MINUTES = 240
SHORTEST_S = 0.01
PER_OCTAVE = 4
BELOW_MINUTE = math.ceil(PER_OCTAVE * math.log2(MINUTE_S / SHORTEST_S))
"""So many bins are under a minute."""

RANGE_S = MINUTE_S * MINUTES

FORGET_AT = 1024
"""So many idle times counted, and all counts are halved: what was long ago counts less."""

RECENT = 16
LEARNED_GAPS = 3
TIMER_GAPS = 5
TIMER_SPREAD = 0.1
"""Intervals are a timer's when their 10 and 90 % quantiles are within this part of the median of each other."""

RARE_SHARE = 0.5


class Kind(StrEnum):
    """What a forecast stands on."""

    TIMER = "timer"
    HISTOGRAM = "histogram"
    RARE = "rare"  # mostly idle for more than 4 hours


class Arrivals(msgspec.Struct, array_like=True):
    """One entry's. Times are of any one clock that does not go back. `counts`: idle times per bin, `beyond`: over 4 hours.

    `running`: invocations now. `idle_since`: when the last one ended; None before the first start, and while one runs.
    `gaps` and `intervals`: the latest idle times, and times between starts.
    """

    counts: dict[int, int] = msgspec.field(default_factory=dict)
    beyond: int = 0
    running: int = 0
    idle_since: float | None = None
    started_at: float | None = None
    gaps: tuple[float, ...] = ()
    intervals: tuple[float, ...] = ()

    @property
    def counted(self) -> int:
        return sum(self.counts.values()) + self.beyond

    def started(self, now: float) -> None:
        """An invocation started."""
        if self.idle_since is not None:
            gap = max(0.0, now - self.idle_since)
            self.gaps = (*self.gaps[1 - RECENT :], gap)
            self._count(gap)
        if self.started_at is not None and not self.running:
            self.intervals = (*self.intervals[1 - RECENT :], max(0.0, now - self.started_at))
        if not self.running:
            self.started_at = now
        self.running += 1
        self.idle_since = None

    def ended(self, now: float) -> None:
        """An invocation ended."""
        self.running = max(0, self.running - 1)
        if not self.running:
            self.idle_since = now

    def _count(self, gap: float) -> None:
        if gap >= RANGE_S:
            self.beyond += 1
        else:
            at = bin_of(gap)
            self.counts[at] = self.counts.get(at, 0) + 1
        if self.counted >= FORGET_AT:
            self.counts = {at: count // 2 for at, count in self.counts.items() if count > 1}
            self.beyond //= 2


class Forecast(msgspec.Struct, frozen=True):
    """When the next call comes, if it comes at all, with `probability`: sorted samples of the seconds from `since`."""

    kind: Kind
    since: float
    probability: float
    after_s: tuple[float, ...]
    gaps: int


def bin_of(gap: float) -> int:
    """The bin of an idle time under 4 hours: from 0, the logarithmic ones first."""
    if gap < MINUTE_S:
        return max(0, min(BELOW_MINUTE - 1, int(PER_OCTAVE * math.log2(max(gap, SHORTEST_S) / SHORTEST_S))))
    return BELOW_MINUTE + int(gap // MINUTE_S) - 1


def edges(at: int) -> tuple[float, float]:
    """From and to, seconds."""
    if at < BELOW_MINUTE:
        low = 0.0 if at == 0 else SHORTEST_S * 2.0 ** (at / PER_OCTAVE)
        return low, min(MINUTE_S, SHORTEST_S * 2.0 ** ((at + 1) / PER_OCTAVE))
    return (at - BELOW_MINUTE + 1) * MINUTE_S, (at - BELOW_MINUTE + 2) * MINUTE_S


def predicted(state: Arrivals, now: float) -> Forecast | None:
    """The next call, as far as it can be told at `now`. None while it runs, and until it came back 3 times.

    `since` with `now` is the `elapsed_s` of plan(): what has not come by then comes later or not at all.
    """
    if state.running or state.idle_since is None or state.counted < LEARNED_GAPS:
        return None
    every = sorted(state.intervals)
    middle = quantile(every, 0.5) if len(every) >= TIMER_GAPS else 0.0
    if middle > 0.0 and quantile(every, 0.9) - quantile(every, 0.1) <= TIMER_SPREAD * middle:
        since = state.started_at if state.started_at is not None else state.idle_since
        if now - since <= 2.0 * every[-1]:  # else it has stopped
            return Forecast(Kind.TIMER, since, len(every) / (len(every) + 1), tuple(every), len(every))
    found = samples_of(state)
    return None if found is None else msgspec.structs.replace(found, since=state.idle_since)


def samples_of(state: Arrivals) -> Forecast | None:
    """How long it stays idle, timers aside, at any time; `since` is 0. None until it came back 3 times."""
    if state.counted < LEARNED_GAPS:
        return None
    if state.beyond >= RARE_SHARE * state.counted:
        long = sorted(gap for gap in state.gaps if gap >= RANGE_S)
        return Forecast(Kind.RARE, 0.0, len(long) / (len(state.gaps) + 1), tuple(long), len(long)) if long else None
    inside = state.counted - state.beyond
    return Forecast(Kind.HISTOGRAM, 0.0, inside / (state.counted + 1), _samples(state), state.counted)


def _samples(state: Arrivals) -> tuple[float, ...]:
    """64 equally likely idle times of the histogram, evenly spread in each bin."""
    bins = sorted(state.counts.items())
    total = sum(count for _, count in bins)
    samples, before, place = [], 0, 0
    for number in range(RESERVOIR):
        wanted = (number + 0.5) / RESERVOIR * total
        while before + bins[place][1] < wanted:
            before += bins[place][1]
            place += 1
        low, high = edges(bins[place][0])
        samples.append(low + (high - low) * (wanted - before) / bins[place][1])
    return tuple(samples)


def expected(forecast: Forecast, function: FunctionId, memory_mb: int, starts: StartTimes, tier: str = "") -> ExpectedCall:
    """The entry as an expected call of its own, for plan() with the trigger `predicted` and `elapsed_s` = now - `since`."""
    return ExpectedCall(
        function=function,
        reach=forecast.probability,
        concurrent=(forecast.probability,),
        offsets_s=forecast.after_s,
        samples=forecast.gaps,
        weight=float(forecast.gaps),
        source=EdgeSource.PREDICTED,
        memory_mb=memory_mb,
        start_s=starts.expected_s(tier),
        starts_s=starts.samples(tier),
        standby_s=starts.from_standby_s(),
    )


def path_after(entry: ExpectedCall, calls: Sequence[ExpectedCall]) -> list[ExpectedCall]:
    """What a run of the predicted entry reaches, in the entry's time: as likely as both, and later by the time until it starts.

    The two times are independent: the i-th of one is added to the (37 i mod n)-th of the other, which is each of them once for
    the 64 of a full reservoir.
    """
    later = []
    for call in calls:
        count = max(len(entry.offsets_s), len(call.offsets_s))
        sums = [
            entry.offsets_s[number * len(entry.offsets_s) // count]
            + call.offsets_s[number * 37 % count * len(call.offsets_s) // count]
            for number in range(count)
            if entry.offsets_s and call.offsets_s
        ]
        later.append(
            msgspec.structs.replace(
                call,
                reach=call.reach * entry.reach,
                concurrent=tuple(share * entry.reach for share in call.concurrent),
                offsets_s=tuple(sorted(sums)),
                in_runs=call.in_runs,
            )
        )
    return later
