"""What preparing an instance costs, as a function of when: idling if too early, waiting if too late, with true times. Pure.

Of one call: p, the probability that the instance is needed; D, samples of the time until then; S, the time from the
start of a preparation to ready, independent of D; w, the price of one second of idling; c, of one second of waiting. Preparing
at t costs

    w (p E[(D - t - S)+] + (1 - p) E[(R - t - S)+])  +  c p (E[S] P(D < t) + E[(t + S - D)+; D >= t])

and never costs c p E[S]: what comes before t starts on demand, and the preparation is given up; what comes later adopts it. R,
until when an instance that is not called is held, is LEAST_HELD_S after the last sample of D. Where R is far this is the
newsvendor's problem, and the best t is the quantile rule: t + S at the kappa / p quantile of D, with kappa = w / (c + w).
See docs/planning.md.

Exact for the given samples, by prefix sums over them; all calls of a plan at once.
"""

import bisect
import math
from collections.abc import Sequence

import msgspec
import numpy as np

Floats = np.ndarray[tuple[int, ...], np.dtype[np.float64]]

START_POINTS = 4
"""The distribution of S is taken at the middle of so many parts of equal probability."""

OVERDUE_POINTS = 8

LEAST_HELD_S = 0.05
"""What is ready is kept for at least this long: orders and calls are on their way for a while."""

UNKNOWN_LEAD_S = 1.0
"""What a function that was never seen called is taken to idle, for the price of idling (the default prices assume the same)."""


class Lead(msgspec.Struct, frozen=True):
    """The time from now to a call, sorted samples, given that it has not come so far; and the part of its probability left.

    `known` is False where nothing tells when it comes: then there is nothing to time.
    """

    samples: Floats
    left: float = 1.0
    known: bool = True


def lead(offsets_s: Sequence[float], elapsed_s: float, start_s: float, known: bool = True) -> Lead:
    """`offsets_s`: sorted samples from the run's start, of which `elapsed_s` have passed.

    A call is only taken for late once its time has passed by LEAST_HELD_S and a start: it is on its way for a while, and a stage
    above it may itself have waited. `left` is the part of the samples beyond that, with one more imagined after the last.
    When all have passed, the call is overdue: what is left is spread, exponentially, over the time by which the last sample
    exceeds the median.
    """
    if not offsets_s or not known:
        return _UNKNOWN
    passed = bisect.bisect_left(offsets_s, elapsed_s - LEAST_HELD_S - start_s)
    ahead = np.array(offsets_s[passed:]) - elapsed_s
    if not passed:
        return Lead(np.maximum(ahead, 0.0))
    left = (len(offsets_s) - passed + 1) / (len(offsets_s) + 1)
    if len(ahead):
        return Lead(np.maximum(ahead, 0.0), left)
    scale = max(offsets_s[-1] - offsets_s[len(offsets_s) // 2], start_s, 1e-3)
    parts = (np.arange(OVERDUE_POINTS) + 0.5) / OVERDUE_POINTS
    return Lead(-scale * np.log1p(-parts), left)


_UNKNOWN = Lead(np.array([UNKNOWN_LEAD_S]), known=False)


def posterior(reach: float, left: float) -> float:
    """The probability that a call still comes, when it was `reach` before and only `left` of its time is still ahead (Bayes)."""
    return reach * left / (1.0 - reach + reach * left) if left < 1.0 and reach > 0.0 else reach


def start_points(starts_s: Sequence[float], start_s: float) -> tuple[float, ...]:
    """START_POINTS equally likely start times: of the samples where there are as many, else all the mean."""
    if len(starts_s) < START_POINTS:
        return (max(start_s, 0.0),) * START_POINTS
    return tuple(starts_s[(2 * part + 1) * len(starts_s) // (2 * START_POINTS)] for part in range(START_POINTS))


class Curves(msgspec.Struct, frozen=True):
    """Per call (row) and moment (column): `at`, seconds from now, rising, the first now; infinite where a row has no more.

    Expected seconds: `called_s`, idling if it is called; `uncalled_s`, idling if it is not; `waited_s`, waiting if it is called;
    `never_s`, waiting, if called, of what is never prepared. `missed`: the probability that a call comes before that moment.
    """

    at: Floats
    called_s: Floats
    uncalled_s: Floats
    waited_s: Floats
    never_s: Floats
    missed: Floats


def curves(leads: Sequence[Lead], starts: Sequence[Sequence[float]]) -> Curves:
    """The curves at now and at the moments from which each sample would just be met by the mean start."""
    count = len(leads)
    sizes = np.array([len(one.samples) for one in leads], np.intp)
    width = int(sizes.max(initial=0)) + 1
    flat = np.concatenate([one.samples for one in leads]) if count else np.empty(0)
    points = np.array(starts, np.float64).reshape(count, START_POINTS)
    mean = points.mean(axis=1)
    first = np.concatenate(([0], np.cumsum(sizes)[:-1])) if count else np.empty(0, np.intp)
    rows = np.repeat(np.arange(count), sizes)
    places = np.arange(len(flat)) - first[rows]

    at = np.full((count, width), np.inf)
    at[:, 0] = 0.0
    timed = np.array([one.known for one in leads], np.bool_)[rows]
    at[rows[timed], places[timed] + 1] = np.maximum(flat - mean[rows], 0.0)[timed]

    # One sorted line for all rows: each row's samples in a stretch of its own, so that one search serves all of them.
    stretch = float(flat.max(initial=0.0) + points.max(initial=0.0)) * 2.0 + 1.0
    line = flat + rows * stretch
    sums = np.concatenate(([0.0], np.cumsum(flat)))
    at_most = np.minimum(at, stretch / 2.0)  # beyond every sample: what is there is not looked at
    shift = (np.arange(count) * stretch)[:, None]
    last = (first + sizes)[:, None]
    number = sizes[:, None].astype(np.float64)
    final = LEAST_HELD_S + flat[last[:, 0] - 1][:, None] if count else np.empty((0, 1))

    before = np.searchsorted(line, (at_most + shift).ravel()).reshape(at.shape)
    called, uncalled = np.zeros_like(at), np.zeros_like(at)
    for point in range(START_POINTS):
        ready = at_most + points[:, point, None]
        met = np.searchsorted(line, (ready + shift).ravel()).reshape(at.shape)
        called -= sums[met]
        called -= (last - met) * ready
        np.subtract(final, ready, out=ready)
        uncalled += np.maximum(ready, 0.0, out=ready)
    total = sums[last]
    called = np.maximum((called / START_POINTS + total) / number, 0.0)
    # Of what comes from then on: waiting less idling is ready less called.
    waited = called + ((last - before) * (at_most + mean[:, None]) - (total - sums[before])) / number
    missed = (before - first[:, None]) / number
    waited = np.maximum(waited, 0.0) + missed * mean[:, None]
    return Curves(at, called, uncalled / START_POINTS, waited, mean, missed)


def cost(needed: float, at: float, one: Lead, starts: Sequence[float], idle: float, late: float) -> tuple[float, float]:
    """The cost of one preparation that starts, or has started, `at` seconds from now, and the seconds it will idle.

    `at` is negative for one under way; 0 with start times of 0 is one that is ready. Starts that would be over by now are over.
    """
    ready = [max(at + start, 0.0) for start in starts]
    until = float(one.samples[-1]) + LEAST_HELD_S
    early = one.samples - np.array(ready)[:, None]
    idling = np.maximum(early, 0.0)
    before = int(one.samples.searchsorted(at)) if at > 0.0 else 0
    waits = float((idling - early)[:, before:].sum()) + before * sum(starts)
    uncalled = sum(max(until - each, 0.0) for each in ready) / len(ready)
    idled = needed * float(idling.sum()) / early.size + (1.0 - needed) * uncalled
    return idle * idled + late * needed * waits / early.size, idled


def hold_s(needed: float, samples: int, saved_s: float, idle: float, late: float) -> float:
    """How long after its last sample an instance is worth holding, seconds: for the call later than any seen, 1 of n + 1.

    Holding it costs `idle` a second until the call comes; if it comes that saves `saved_s` of waiting, at `late` a second.
    """
    tail = needed / (samples + 1)
    unused = 1.0 - needed + tail
    return late * saved_s * tail / (idle * unused) if idle > 0.0 else math.inf
