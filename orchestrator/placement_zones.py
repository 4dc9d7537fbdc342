"""How many instances of each version are in which zone, and how crowded a zone is with it (orchestrator.placement_index). Pure.

One instance is kept as the name of its zone: of very many versions most have no more.
"""

IN_ZONE = 4
"""What a placement costs for each instance of the version in the node's zone above the zone with the fewest."""

InZones = str | dict[str, int] | None
"""Of a version: the zone of its only instance, or how many are in which."""


class ZoneCounts:
    def __init__(self) -> None:
        self._of: dict[str, str | dict[str, int]] = {}
        self._nodes: dict[str, int] = {}  # by zone

    # -- nodes

    def came(self, zone: str) -> None:
        """A node there."""
        self._nodes[zone] = self._nodes.get(zone, 0) + 1

    def went(self, zone: str) -> None:
        self._nodes[zone] -= 1
        if not self._nodes[zone]:
            del self._nodes[zone]

    # -- instances

    def of(self, version: str) -> InZones:
        return self._of.get(version)

    def total(self, version: str) -> int:
        zones = self._of.get(version)
        if zones is None:
            return 0
        return 1 if isinstance(zones, str) else sum(zones.values())

    def crowd(self, zones: InZones, zone: str) -> int:
        """What it costs that this zone is more crowded with a version than the least crowded one."""
        if zones is None:
            return 0
        if isinstance(zones, str):
            return IN_ZONE if zones == zone and len(self._nodes) > 1 else 0
        here = zones.get(zone, 0)
        if not here:
            return 0
        return IN_ZONE * (here - min(zones.get(one, 0) for one in self._nodes))

    def add(self, version: str, zone: str) -> None:
        zones = self._of.get(version)
        if zones is None:
            self._of[version] = zone
        elif isinstance(zones, str):
            self._of[version] = {zones: 2} if zones == zone else {zones: 1, zone: 1}
        else:
            zones[zone] = zones.get(zone, 0) + 1

    def remove(self, version: str, zone: str, count: int) -> None:
        zones = self._of.get(version)
        if zones is None or isinstance(zones, str):
            self._of.pop(version, None)
            return
        left = zones.get(zone, 0) - count
        if left > 0:
            zones[zone] = left
        else:
            zones.pop(zone, None)
        if not zones:
            del self._of[version]
