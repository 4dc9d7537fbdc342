"""The hybrid histogram keep-alive as published, to compare with: Shahrad et al., Serverless in the Wild (USENIX ATC 2020)."""

import msgspec

from graph.arrivals import BELOW_MINUTE, MINUTES, RANGE_S, RARE_SHARE, Arrivals, edges
from graph.timing import quantile

HEAD, TAIL, MARGIN = 0.05, 0.99, 0.1
RARE_AT, RARE_KEPT = 0.85, 0.30
VARIED = 2.0


class Window(msgspec.Struct, frozen=True):
    """Seconds after it became idle: from when to when the paper's policy holds an instance."""

    from_s: float
    until_s: float


def window(state: Arrivals) -> Window:
    """From the 5 % head of the idle times to their 99 % tail, margin 10 %; by a forecast where most are out of bounds.

    Where the counts of the minute bins vary too little (coefficient of variation under 2) to tell anything, or nothing is
    known, the instance is held for the whole range. The paper forecasts by ARIMA; here it is the median of the latest.
    """
    if state.counted and state.beyond >= RARE_SHARE * state.counted:
        next_s = quantile(sorted(state.gaps), 0.5)
        return Window(RARE_AT * next_s, (RARE_AT + RARE_KEPT) * next_s)
    minutes: dict[int, int] = {}
    for at, count in state.counts.items():
        minute = max(0, at - BELOW_MINUTE + 1)
        minutes[minute] = minutes.get(minute, 0) + count
    total = sum(minutes.values())
    if not total:
        return Window(0.0, RANGE_S)
    varies = MINUTES * sum(count * count for count in minutes.values()) / total**2 - 1.0
    if varies < VARIED**2:
        return Window(0.0, RANGE_S)
    low, _ = edges(_reaching(state.counts, HEAD * total))
    _, high = edges(_reaching(state.counts, TAIL * total))
    return Window(low * (1.0 - MARGIN), high * (1.0 + MARGIN))


def _reaching(counts: dict[int, int], wanted: float) -> int:
    """The first bin with which so many are counted."""
    reached = 0
    for at in sorted(counts):
        reached += counts[at]
        if reached >= wanted:
            return at
    return max(counts)
