"""Start times of one function: the time from the order to prepare an instance until it was ready, by where it came from."""

import itertools

import msgspec

from graph.timing import DEFAULT_START_S, Reservoir, smoothed_start

TIERS = 8
"""So many tiers are told apart for each function; further ones only count for all of them together."""

STANDBY = "standby"


class StartTimes(msgspec.Struct, array_like=True, gc=False):
    """Of each tier a reservoir of measured times; `smoothed`: of all together, None before the first.

    A tier is free text, `<driver>/<what it started from>`, such as `process/tier1`. What ends in `/standby` was made from a
    standby: the time is that of specialising it, init included.
    """

    smoothed: float | None = None
    of_tier: dict[str, Reservoir] = msgspec.field(default_factory=dict)

    def add(self, seconds: float, tier: str = "") -> None:
        self.smoothed = smoothed_start(self.smoothed, seconds)
        held = self.of_tier.get(tier)
        if held is None:
            if len(self.of_tier) >= TIERS:
                return
            held = self.of_tier[tier] = Reservoir()
        held.offer(seconds)

    def samples(self, tier: str = "") -> tuple[float, ...]:
        """Sorted seconds. Of all tiers together when none is named, or it was never measured; empty before the first."""
        held = self.of_tier.get(tier) if tier else None
        if held is not None:
            return held.samples()
        if len(self.of_tier) == 1:
            return next(iter(self.of_tier.values())).samples()
        return tuple(sorted(itertools.chain.from_iterable(one.values() for one in self.of_tier.values())))

    def expected_s(self, tier: str = "") -> float:
        """Mean seconds to ready from that tier; over all of them when it was never measured; 0.1 before the first."""
        held = self.of_tier.get(tier) if tier else None
        if held is not None:
            return held.mean()
        return self.smoothed if self.smoothed is not None else DEFAULT_START_S

    def from_standby_s(self) -> float | None:
        """Mean seconds from specialising a standby to ready; None when that was never seen."""
        for tier, held in self.of_tier.items():
            if tier.rpartition("/")[2] == STANDBY:
                return held.mean()
        return None
