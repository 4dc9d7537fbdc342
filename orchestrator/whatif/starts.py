"""How long starts take: the platform's part as measured per driver, the function's own init beside it."""

import math
import random
from collections.abc import Mapping

import msgspec

from graph.ids import FunctionId

_P99 = 2.3263  # standard deviations


class Spread(msgspec.Struct, frozen=True):
    """A lognormal time by its median and 99th percentile, seconds. Equal: it never varies; 0: there is none."""

    p50_s: float
    p99_s: float

    def draw(self, source: random.Random) -> float:
        if self.p50_s <= 0.0:
            return 0.0
        return self.p50_s * math.exp(source.gauss(0.0, 1.0) * self._sigma) if self.p99_s > self.p50_s else self.p50_s

    @property
    def _sigma(self) -> float:
        return math.log(self.p99_s / self.p50_s) / _P99

    @property
    def mean_s(self) -> float:
        return self.p50_s * math.exp(self._sigma**2 / 2) if self.p99_s > self.p50_s > 0.0 else self.p50_s


class Driver(msgspec.Struct, frozen=True):
    """`clone`: from the order until the function's own init may begin, code in tier 1. `standby`: the same out of a standby.

    `standby_mb`: what one waiting standby holds. `source`: where the figures come from.
    """

    name: str
    clone: Spread
    standby: Spread
    standby_mb: float
    source: str


DRIVERS: Mapping[str, Driver] = {
    driver.name: driver
    for driver in (
        Driver(
            "process",
            Spread(0.0062, 0.0134),
            Spread(0.0023, 0.0044),
            2.8,
            "benchmarks/results/cold.jsonl: process.cold and process.standby, p50 and p99, less process.rested.p50_ms",
        ),
        Driver(
            "microvm",
            Spread(0.170, 0.212),
            Spread(0.0106, 0.0140),
            32.0,
            "benchmarks/results/microvm.jsonl, under software emulation (tcg), with a network card: microvm.cold.p50_ms and "
            "microvm.standby.p50_ms, less microvm.warm.p50_ms, and microvm.standby.mb; their spread is that of a prototype (the "
            "slowest a quarter, and a third, above the median), since the benchmark takes too few for a 99th percentile",
        ),
    )
}

DEFAULT_INIT = Spread(0.15, 0.15)
"""The init of `make bench-chain`: a wait of 150 ms."""


class Starts(msgspec.Struct, frozen=True):
    """A driver, and what each function's own init takes."""

    driver: Driver = DRIVERS["process"]
    init: Spread = DEFAULT_INIT
    inits: Mapping[FunctionId, Spread] = {}

    def init_of(self, function: FunctionId) -> Spread:
        return self.inits.get(function, self.init)

    def mean_s(self, function: FunctionId) -> float:
        """A start on demand, without a standby."""
        return self.driver.clone.mean_s + self.init_of(function).mean_s
