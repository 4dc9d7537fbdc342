"""Values with an interval: 95 % by the bootstrap, drawn with a fixed seed so that the same samples give the same answer."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

DRAWS = 2000
COVERED = 0.95
_SEED = 20240229

Samples = NDArray[np.float64]
Statistic = Callable[[list[Samples]], float]


@dataclass(frozen=True)
class Estimate:
    """`low` and `high` bound the interval; both are `value` when one sample says nothing about spread."""

    value: float
    low: float
    high: float
    n: int


def bootstrap(groups: Sequence[ArrayLike], statistic: Statistic, paired: bool = False) -> Estimate:
    """`statistic` of all groups together, each drawn again from itself; `paired`: sample i of every group belongs together.

    Raises ValueError when a group is empty, or paired groups differ in length.
    """
    arrays = [np.asarray(group, dtype=np.float64) for group in groups]
    if not arrays or any(array.ndim != 1 or array.size == 0 for array in arrays):
        raise ValueError("every group needs at least one sample")
    if paired and len({array.size for array in arrays}) != 1:
        raise ValueError("paired groups need the same number of samples")
    value = float(statistic(arrays))
    n = min(array.size for array in arrays)
    if n == 1:
        return Estimate(value, value, value, n)
    rng = np.random.default_rng(_SEED)
    found = np.empty(DRAWS)
    for draw in range(DRAWS):
        if paired:
            chosen = rng.integers(0, n, n)
            found[draw] = statistic([array[chosen] for array in arrays])
        else:
            found[draw] = statistic([array[rng.integers(0, array.size, array.size)] for array in arrays])
    low, high = np.quantile(found, [(1 - COVERED) / 2, (1 + COVERED) / 2])
    return Estimate(value, float(low), float(high), n)


def quantile(samples: ArrayLike, q: float) -> Estimate:
    return bootstrap([samples], lambda groups: float(np.quantile(groups[0], q)))


def mean(samples: ArrayLike) -> Estimate:
    return bootstrap([samples], lambda groups: float(groups[0].mean()))


def ratio_of_quantiles(top: ArrayLike, bottom: ArrayLike, q: float, paired: bool = False) -> Estimate:
    """quantile(top) / quantile(bottom)."""
    return bootstrap([top, bottom], lambda groups: float(np.quantile(groups[0], q) / np.quantile(groups[1], q)), paired=paired)


def share(part: int, whole: int) -> Estimate:
    """part / whole, with the interval of Wilson: none of many is not the same as none. Raises ValueError when `whole` is 0."""
    if not whole:
        raise ValueError("a share of nothing")
    z = 1.96
    middle = (part + z * z / 2) / (whole + z * z)
    half = z * (part * (whole - part) / whole + z * z / 4) ** 0.5 / (whole + z * z)
    return Estimate(part / whole, max(0.0, middle - half), min(1.0, middle + half), whole)


def slope(samples: Mapping[float, ArrayLike]) -> Estimate:
    """Least squares over the medians at each x. Raises ValueError with fewer than two x."""
    if len(samples) < 2:
        raise ValueError("a slope needs samples at two places or more")
    xs = list(samples)
    return bootstrap(list(samples.values()), lambda groups: slope_of(xs, [float(np.median(group)) for group in groups]))


def slope_of(xs: ArrayLike, ys: ArrayLike) -> float:
    """Growth of y per unit of x, by least squares."""
    return float(np.polyfit(np.asarray(xs, dtype=np.float64), np.asarray(ys, dtype=np.float64), 1)[0])
