"""What a replay came to: waits and waste of the runs after the first ones, side by side, with intervals."""

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from graph.calls import StartKind
from graph.plans import Prices
from orchestrator.whatif.ledger import Waste
from orchestrator.whatif.replay import Called, Replay

WAITED_S = 0.001
"""A call that waits longer than this for its instance counts as one that waited."""

DRAWS = 1000
BLOCKS = 50
_ROUNDING_S = 1e-5
_SEED = 20240229
_COVERED = 0.95

Samples = NDArray[np.float64]


class Interval(msgspec.Struct, frozen=True):
    """A value and its 95 % interval, by the bootstrap over blocks of consecutive runs: neighbours share their instances."""

    value: float
    low: float
    high: float


class Waits(msgspec.Struct, frozen=True):
    """Shares of calls that waited over 1 ms, by what they found; `waited` is the sum. Over `calls` calls."""

    calls: int
    waited: float
    cold: float
    standby: float
    almost_warm: float


class Figures(msgspec.Struct, frozen=True):
    """`stages`: calls below the entry; `entries`: the entries' own. `chain_cold`: share of runs with a stage that waited.

    `slowdown_*`: duration / the same run's with nothing waiting. `cse_mean`: (duration - that) / one mean start.
    `added_s`: seconds per 1,000 runs that their callers wait longer. `wasted_s` and `wasted_gb_s`: instance-seconds, and GB*s,
    per 1,000 runs; `prewarm_s`, `keep_alive_s`, `pool_s`: the kinds of the former, per run. `busy_s`: busy instance-seconds per
    run; `per_busy_s`: wasted per busy. `cost`: of both at the prices given, per 1,000 runs.
    """

    runs: int
    stages: Waits
    entries: Waits
    chain_cold: float
    slowdown_p50: float
    slowdown_p99: float
    cse_mean: float
    added_s: Interval
    wasted_gb_s: Interval
    wasted_s: Interval
    prewarm_s: float
    keep_alive_s: float
    pool_s: float
    busy_s: float
    per_busy_s: float
    cost: float


def figures(replay: Replay, prices: Prices, skip: int = 0) -> Figures:
    """Of all runs but the first `skip`. Raises ValueError when none is left.

    What no run caused (a pool) is shared by all alike."""
    runs = len(replay.runs)
    if runs <= skip:
        raise ValueError(f"{runs} runs, of which the first {skip} are not counted: nothing is left")
    counted = replay.runs[skip:]
    took = np.array([one.took_s for one in counted])
    warm = np.array([one.warm_s for one in counted])
    added = _rounded(took - warm)
    wasted = {kind: _per_run(replay.ledger.wasted[kind], skip) for kind in Waste}
    gigabytes: Samples = np.sum([_per_run(replay.ledger.wasted_gb[kind], skip) for kind in Waste], axis=0)
    whole: Samples = np.sum(list(wasted.values()), axis=0)
    busy_s = replay.ledger.busy_s / runs
    added_s, wasted_gb_s, wasted_s = (interval(one, 1000.0) for one in (added, gigabytes, whole))
    calls = [call for call in replay.calls if call.run >= skip]
    late_runs = {call.run for call in calls if call.stage and call.wait_s > WAITED_S}
    slowdown = took / np.maximum(warm, 1e-9)
    return Figures(
        runs=len(counted),
        stages=_waits([call for call in calls if call.stage]),
        entries=_waits([call for call in calls if not call.stage]),
        chain_cold=len(late_runs) / len(counted),
        slowdown_p50=float(np.quantile(slowdown, 0.5)),
        slowdown_p99=float(np.quantile(slowdown, 0.99)),
        cse_mean=float(added.mean() / replay.start_mean_s) if replay.start_mean_s else 0.0,
        added_s=added_s,
        wasted_gb_s=wasted_gb_s,
        wasted_s=wasted_s,
        prewarm_s=float(wasted[Waste.PREWARM].mean()),
        keep_alive_s=float(wasted[Waste.KEEP_ALIVE].mean()),
        pool_s=float(wasted[Waste.POOL].mean()),
        busy_s=busy_s,
        per_busy_s=float(whole.mean()) / busy_s if busy_s else 0.0,
        cost=prices.late_s * added_s.value + prices.idle_gb_s * wasted_gb_s.value,
    )


def _per_run(wasted: Sequence[float], skip: int) -> Samples:
    """The last entry is nobody's."""
    runs = len(wasted) - 1
    return _rounded(np.array(wasted[skip:runs]) + wasted[runs] / runs)


def _rounded(seconds: Samples) -> Samples:
    """Without what only the rounding of times makes."""
    return np.where(seconds > _ROUNDING_S, seconds, 0.0)


def _waits(calls: Sequence[Called]) -> Waits:
    waited = [call.start for call in calls if call.wait_s > WAITED_S]
    count = max(1, len(calls))
    cold, standby, almost = (waited.count(kind) / count for kind in (StartKind.COLD, StartKind.STANDBY, StartKind.ALMOST_WARM))
    return Waits(len(calls), len(waited) / count, cold, standby, almost)


def interval(samples: Samples, times: float = 1.0) -> Interval:
    """The mean of `samples`, which are in order, times `times`. Deterministic."""
    value = float(samples.mean()) * times
    blocks = np.array_split(samples, min(BLOCKS, len(samples)))
    if len(blocks) < 2:
        return Interval(value, value, value)
    sums = np.array([block.sum() for block in blocks])
    sizes = np.array([len(block) for block in blocks])
    drawn = np.random.default_rng(_SEED).integers(0, len(blocks), (DRAWS, len(blocks)))
    means = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1) * times
    low, high = np.quantile(means, [(1 - _COVERED) / 2, (1 + _COVERED) / 2])
    return Interval(value, float(low), float(high))
