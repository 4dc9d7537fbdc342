"""Times: offsets freed of cold waits, reservoirs of them, how many calls overlap, how long a start takes."""

import heapq
import struct
from collections.abc import Sequence

import msgspec

from graph.calls import Call, Trace

RESERVOIR = 64
_RECENT = 289  # runs behind a full exponential average of half-life 200: keeps a full reservoir as recent as the shares
_MIX = 0x9E3779B97F4A7C15
_WORD = (1 << 64) - 1

DEFAULT_START_S = 0.1  # until a start of the function was measured
_START_WEIGHT = 0.2

_CLOCK_GRAIN_S = 1e-6  # calls that overlap by less ran one after the other; a float of seconds since 1970 holds no more


class Reservoir(msgspec.Struct, array_like=True, gc=False):
    """Up to 64 samples standing for all that were offered, recent ones more. Deterministic: the same offers, the same samples.

    Held as packed 32-bit floats: there is one for each function an entry reaches.
    """

    packed: bytearray = msgspec.field(default_factory=bytearray)
    offered: int = 0

    def offer(self, sample: float, decay: bool = True) -> None:
        self.offered = offered = self.offered + 1
        if offered <= RESERVOIR:
            self.packed += struct.pack("<f", sample)
            return
        slot = _scatter(offered) % (min(offered, _RECENT) if decay else offered)
        if slot < RESERVOIR:
            struct.pack_into("<f", self.packed, slot * 4, sample)

    def samples(self) -> tuple[float, ...]:
        """Sorted, seconds."""
        return tuple(sorted(self.values()))

    def mean(self) -> float:
        """Seconds; 0 before the first sample."""
        return sum(self.values()) / max(len(self.packed) // 4, 1)

    def values(self) -> tuple[float, ...]:
        """The samples in no order, seconds."""
        return struct.unpack(f"<{len(self.packed) // 4}f", self.packed)


def _scatter(number: int) -> int:
    """A well-mixed 64-bit number for each counter value (splitmix64)."""
    word = number * _MIX & _WORD
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 & _WORD
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB & _WORD
    return word ^ (word >> 31)


def quantile(ordered: Sequence[float], share: float) -> float:
    """The `share` quantile (0 to 1) of sorted samples, interpolated. Raises ValueError without samples."""
    if not ordered:
        raise ValueError("a quantile needs at least one sample")
    at = min(max(share, 0.0), 1.0) * (len(ordered) - 1)
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)


def smoothed_start(before: float | None, measured_s: float) -> float:
    """The expected time to ready after one more measurement, seconds."""
    return measured_s if before is None else before + _START_WEIGHT * (measured_s - before)


def warm_offsets(trace: Trace) -> list[float]:
    """For each call the time from the entry's start to its sending, had every instance been ready. Seconds, never negative.

    A wait delays everything after it in the callee and, because the caller waited for the answer, what the caller did
    next. Calls that ran side by side hide each other's waits: the caller goes on when the last of them is done.
    """
    calls = trace.calls
    if trace.wait_s <= 0.0 and not any(call.wait_s > 0.0 for call in calls):
        return [max(0.0, call.offset_s) for call in calls]
    children: list[list[int]] = [[] for _ in range(len(calls) + 1)]  # the last one belongs to the entry (index -1)
    for index, call in enumerate(calls):
        children[call.caller_index].append(index)
    within = [0.0] * len(calls)  # each call's time since its caller was called, without waits
    took = [0.0] * len(calls)  # each call's duration without waits
    for caller in range(len(calls) - 1, -2, -1):  # callees come after callers, so this is bottom-up
        sent, wait, duration = (
            (calls[caller].offset_s, calls[caller].wait_s, calls[caller].duration_s)
            if caller >= 0
            else (0.0, trace.wait_s, trace.duration_s)
        )
        clock = _CallerClock(started=sent + wait)
        for index in sorted(children[caller], key=lambda child: calls[child].offset_s):
            within[index] = clock.warm(calls[index].offset_s)
            clock.answered(calls[index], within[index] + took[index])
        if caller >= 0:
            took[caller] = max(0.0, clock.warm(sent + max(duration, wait)))
    offsets: list[float] = []
    for index, call in enumerate(calls):
        offsets.append(within[index] + (offsets[call.caller_index] if call.caller_index >= 0 else 0.0))
    return offsets


class _CallerClock:
    """Maps moments of one caller, as recorded, to seconds since it was called, had nothing waited. Ask in order of time."""

    def __init__(self, started: float) -> None:
        self._open: list[tuple[float, float]] = []  # heap of (recorded end, warm end): not answered at the last moment asked
        self._resumed = started  # recorded end of the last answer so far
        self._warm = 0.0  # and when it would have come

    def warm(self, moment: float) -> float:
        while self._open and self._open[0][0] <= moment + _CLOCK_GRAIN_S:
            ended, warm_end = heapq.heappop(self._open)
            self._resumed = max(self._resumed, ended)
            self._warm = max(self._warm, warm_end)
        return max(0.0, self._warm + moment - self._resumed)

    def answered(self, call: Call, warm_end: float) -> None:
        heapq.heappush(self._open, (call.offset_s + max(call.duration_s, call.wait_s), warm_end))


def busy_at_once(calls: Sequence[Call], visits: Sequence[int]) -> int:
    """How many of these calls were being worked on at the same time, at most; waiting for an instance is not work."""
    if len(visits) == 1:
        return 1
    moments: list[tuple[float, int]] = []
    for index in visits:
        call = calls[index]
        begin = call.offset_s + call.wait_s
        moments.append((begin, 1))
        moments.append((max(call.offset_s + call.duration_s - _CLOCK_GRAIN_S, begin), -1))
    busy = peak = 0
    for _, step in sorted(moments):  # at a tie an end (-1) comes first: one instance serves both
        busy += step
        peak = max(peak, busy)
    return max(1, peak)
