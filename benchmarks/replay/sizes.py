"""How large packages are, where nobody published it: a Zipf law over functions, drawn from a seed."""

import random
from collections.abc import Sequence

LARGEST = 200 << 20
SMALLEST = 10 << 10
EXPONENT = 1.0
SEED = 20260401


def zipf_sizes(count: int, seed: int = SEED, largest: int = LARGEST, exponent: float = EXPONENT) -> list[int]:
    """Bytes of each of `count` packages: the r-th largest has `largest / r ** exponent`, at least SMALLEST; which function has
    which is drawn, so that size says nothing of how often it is called."""
    sizes = [max(SMALLEST, round(largest / rank**exponent)) for rank in range(1, count + 1)]
    random.Random(seed).shuffle(sizes)
    return sizes


def grouped(count: int, group: int, seed: int = SEED) -> Sequence[str]:
    """Tenants of `group` functions each, drawn: a synthetic mapping, where the recorded owners have one function each."""
    tenants = [f"tenant-{number // group}" for number in range(count)]
    random.Random(seed + 1).shuffle(tenants)
    return tenants
