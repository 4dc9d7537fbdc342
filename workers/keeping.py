"""How long planners say idle instances are worth keeping, and until when a live plan counts on them. Bookkeeping only: no I/O,
and `now` is passed in, of any clock that does not go back.

What is told holds for TOLD_FOR_S: a planner that is gone leaves nodes to their own keep-alive.
"""

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence

from graph.ids import VersionId, tenant_of

TOLD_FOR_S = 300.0
MOST_VERSIONS = 10_000
MOST_LEVELS = 64
"""So many instances of one version are told apart."""


class KeepTimes:
    """Of MOST_VERSIONS at most: what was told longest ago is forgotten first."""

    def __init__(self) -> None:
        self._told: OrderedDict[str, tuple[float, dict[str, list[float]]]] = OrderedDict()  # by tenant: until when, and how long
        self._needed: OrderedDict[str, float] = OrderedDict()  # by version: until when
        self._floors: OrderedDict[str, tuple[float, dict[str, int], bool]] = OrderedDict()  # by tenant, as with _told

    def tell(
        self,
        tenant: str,
        keep_s: Mapping[str, float],
        now: float,
        more_s: Mapping[str, Sequence[float]] = {},
    ) -> None:
        """Takes the place of what was said of the tenant before. What is no time, or of another's version, counts for nothing.
        `more_s`: of the second instance here, the third, ..."""
        self._told.pop(tenant, None)
        sound = {
            version: [seconds, *(one for one in more_s.get(version, ())[:MOST_LEVELS] if 0.0 <= one < math.inf)]
            for version, seconds in keep_s.items()
            if _sound(tenant, version, seconds)
        }
        if not sound or len(sound) > MOST_VERSIONS:
            return
        self._told[tenant] = (now + TOLD_FOR_S, sound)
        while sum(len(table) for _, table in self._told.values()) > MOST_VERSIONS:
            self._told.popitem(last=False)

    def need(self, tenant: str, needed_s: Mapping[str, float], now: float) -> None:
        """A live plan counts on what is idle of these versions, for so many seconds, TOLD_FOR_S at most."""
        for version, seconds in needed_s.items():
            if not _sound(tenant, version, seconds):
                continue
            self._needed[version] = max(self._needed.get(version, 0.0), now + min(seconds, TOLD_FOR_S))
            self._needed.move_to_end(version)
            if len(self._needed) > MOST_VERSIONS:
                self._needed.popitem(last=False)

    def hold(self, tenant: str, floor: Mapping[str, int], only: bool, now: float) -> None:
        """So many instances of these versions stay; `only`: and no idle one more. In the place of what was said before."""
        self._floors.pop(tenant, None)
        sound = {version: count for version, count in floor.items() if _tenant(version) == tenant and count >= 0}
        if not sound or len(sound) > MOST_VERSIONS:
            return
        self._floors[tenant] = (now + TOLD_FOR_S, sound, only)
        while sum(len(table) for _, table, _ in self._floors.values()) > MOST_VERSIONS:
            self._floors.popitem(last=False)

    def floor(self, version: str, now: float) -> tuple[int, bool]:
        """How many instances stay here, and whether what is idle above that goes at once; (0, False) where nothing is told."""
        told = self._floors.get(_tenant(version))
        if told is None:
            return 0, False
        if now >= told[0]:
            del self._floors[_tenant(version)]
            return 0, False
        count = told[1].get(version)
        return (0, False) if count is None else (count, told[2])

    def of(self, version: str, now: float, number: int = 0) -> float | None:
        """Seconds that an idle instance is worth keeping, the first here for 0 (graph.levels); None where nothing is told, or a
        plan counts on it: the node's own keep-alive holds."""
        until = self._needed.get(version)
        if until is not None:
            if now < until:
                return None
            del self._needed[version]
        told = self._told.get(_tenant(version))
        if told is None:
            return None
        if now >= told[0]:
            del self._told[_tenant(version)]
            return None
        seconds = told[1].get(version)
        return seconds[min(number, len(seconds) - 1)] if seconds else None

    def forget_tenant(self, tenant: str) -> None:
        self._told.pop(tenant, None)
        self._floors.pop(tenant, None)
        for version in [one for one in self._needed if _tenant(one) == tenant]:
            del self._needed[version]

    def forget_version(self, version: str) -> None:
        self._needed.pop(version, None)
        told = self._told.get(_tenant(version))
        if told is not None:
            told[1].pop(version, None)
        held = self._floors.get(_tenant(version))
        if held is not None:
            held[1].pop(version, None)


def _tenant(version: str) -> str:
    return tenant_of(VersionId(version))


def _sound(tenant: str, version: str, seconds: float) -> bool:
    return _tenant(version) == tenant and 0.0 <= seconds < math.inf
