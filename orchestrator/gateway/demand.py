"""How many invocations of each version wait and run here: counted where they all pass, told to planners once a second."""

import asyncio
import time

from orchestrator.gateway.reports import Reports
from workers.rpc.messages import Demand, VersionDemand

TELL_S = 1.0
VERSIONS = 20_000
"""So many are told at once, those with the most first."""


class _Count:
    """`area`: invocations times seconds, since it was told last."""

    __slots__ = ("area", "arrivals", "at_once", "peak", "roots", "since")

    def __init__(self, now: float) -> None:
        self.at_once = 0
        self.area = 0.0
        self.since = now
        self.peak = 0
        self.arrivals = 0
        self.roots = 0


class DemandCounts:
    """On the path of every invocation: one look-up and some additions at each end. `now` is monotonic."""

    def __init__(self, now: float) -> None:
        self._counts: dict[str, _Count] = {}
        self._told = now

    def enter(self, version: str, root: bool, now: float) -> None:
        one = self._counts.get(version)
        if one is None:
            one = self._counts[version] = _Count(now)
        one.area += one.at_once * (now - one.since)
        one.since = now
        one.at_once += 1
        one.arrivals += 1
        one.roots += root
        if one.at_once > one.peak:  # noqa: PLR1730 (on the path of every invocation)
            one.peak = one.at_once

    def leave(self, version: str, now: float) -> None:
        one = self._counts[version]
        one.area += one.at_once * (now - one.since)
        one.since = now
        one.at_once -= 1

    def take(self, now: float) -> Demand:
        """What was since the last time; counting begins anew. What has none is forgotten."""
        tick_s = max(1e-3, now - self._told)
        self._told = now
        found = []
        for version, one in list(self._counts.items()):
            area = one.area + one.at_once * (now - one.since)
            if one.peak:
                found.append(VersionDemand(version, area / tick_s, one.peak, one.arrivals, one.roots))
            if one.at_once:
                one.area, one.since, one.peak, one.arrivals, one.roots = 0.0, now, one.at_once, 0, 0
            else:
                del self._counts[version]
        if len(found) > VERSIONS:
            found = sorted(found, key=lambda each: -each.concurrency)[:VERSIONS]
        return Demand(found, tick_s)


async def telling(counts: DemandCounts, reports: Reports) -> None:
    """Never returns."""
    while True:
        await asyncio.sleep(TELL_S)
        reports.demand(counts.take(time.monotonic()))
