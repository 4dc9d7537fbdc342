"""Where the time of instances goes: starting, idle, busy; and which idle time is waste, of which kind, caused by which run."""

from dataclasses import dataclass, field
from enum import IntEnum


class Waste(IntEnum):
    """Why an instance stood there for nothing."""

    PREWARM = 0  # ready before its first use, or its whole life when there was none
    KEEP_ALIVE = 1  # after a use
    POOL = 2  # a standby without code


@dataclass
class Ledger:
    """Instance-seconds. `wasted[kind][run]` and `wasted_gb[kind][run]` (times GB) are laid to the run that caused them:
    the one it was prepared for, or the one that used it last. Run -1: none.

    `starting_s` + `busy_s` + `idle_s` is `lifetime_s`, of all that are gone.
    """

    runs: int
    starting_s: float = 0.0
    busy_s: float = 0.0
    busy_gb_s: float = 0.0
    idle_s: float = 0.0
    lifetime_s: float = 0.0
    instances: int = 0
    wasted: list[list[float]] = field(init=False)
    wasted_gb: list[list[float]] = field(init=False)

    def __post_init__(self) -> None:
        self.wasted = [[0.0] * (self.runs + 1) for _ in Waste]
        self.wasted_gb = [[0.0] * (self.runs + 1) for _ in Waste]

    def waste(self, kind: Waste, run: int, seconds: float, gigabytes: float) -> None:
        self.wasted[kind][run] += seconds
        self.wasted_gb[kind][run] += seconds * gigabytes

    def total(self, kind: Waste) -> float:
        return sum(self.wasted[kind])

    @property
    def wasted_s(self) -> float:
        return sum(map(sum, self.wasted))

    @property
    def wasted_gb_s(self) -> float:
        return sum(map(sum, self.wasted_gb))
