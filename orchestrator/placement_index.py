"""Where the next instance goes, among very many nodes: lists that are sorted before anybody asks. Pure: no I/O, no clock.

For each shape, and in it for each zone and set of tenants that may be there, nodes stand in a list. It is sorted by how many
more instances of the shape a node holds, in powers of two (32 and more, 16, 8, 4, 2, 1; what holds none is not in it), and among
equals by when one was placed there last, longest ago first. Whoever changes what is free of a node moves it, in the same call,
in those lists where its power of two has changed: a placement, a refusal, an instance that ends, a report, a node that comes or
goes. Nothing is ever sorted as a whole.

Placing walks each zone's list from the head, CANDIDATES nodes in all, and takes the cheapest by the weights below. What it takes
is reserved at once, so no node is given more than its view says it has; the view may be stale, and the node's answer corrects it.
"""

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import islice

from orchestrator.placement_lists import TOP, NodeList, Section, Spot, rank_table
from orchestrator.placement_zones import InZones, ZoneCounts
from workers.versions import SHAPES_MB

__all__ = ["NEAR", "PlacementIndex", "Spot"]

CANDIDATES = 12
"""Nodes looked at for one placement, besides NEAR that have the code."""

NEAR = 6
ON_NODE, NO_CODE, NO_TUNNEL, FULLER = 8, 6, 64, 1
"""What a candidate costs: for each instance of the version on the node; for each in its zone above the zone with the fewest
(IN_ZONE); when its code is not in tier 1 there, but is elsewhere; when no tunnel to its network is open there, but is elsewhere
(dearest: it could not reach what it is for); for each power of two that it is fuller than an empty one. Another node costs less
than a second instance on one that has the code, until there are EVEN."""

EVEN = 8
"""Instances of a version from which spreading them further counts less, in proportion: what matters is the share that goes with a
node. From then on code at hand weighs more, and not every new instance brings it to another node."""

NEVER = 1 << 30


class _Wishes:
    """What one placement asks for."""

    __slots__ = ("but", "code", "number", "on_node", "tunnels", "version")

    def __init__(
        self,
        version: str,
        number: int,
        code: Collection[str],
        tunnels: Collection[str],
        but: Collection[Spot],
        on_node: int,
    ) -> None:
        self.on_node = on_node
        self.version = version
        self.number = number
        self.code = code
        self.tunnels = tunnels
        self.but = but


class PlacementIndex:
    """`beside_mb`: what a driver needs beside an instance's shape."""

    def __init__(self, beside_mb: int = 0, shapes: Sequence[int] = SHAPES_MB) -> None:
        self._sizes = tuple(shape + beside_mb for shape in shapes)
        self._number = {shape: number for number, shape in enumerate(shapes)}
        self._unit = math.gcd(*self._sizes)
        most = max(self._sizes) * 2 ** (TOP - 1) // self._unit
        self._ranks = rank_table(self._sizes, self._unit, most)
        self._spots: dict[str, Spot] = {}
        self._sections: dict[tuple[str, frozenset[str]], Section] = {}
        self._turn: list[Section] = []  # in the order in which they are looked at
        self._zones = ZoneCounts()

    def __len__(self) -> int:
        return len(self._spots)

    def __contains__(self, name: str) -> bool:
        return name in self._spots

    def __iter__(self) -> Iterator[Spot]:
        return iter(self._spots.values())

    def spot(self, name: str) -> Spot | None:
        return self._spots.get(name)

    # -- nodes

    def add(self, name: str, zone: str, free_mb: int, tenants: Collection[str] = ()) -> Spot:
        """A node that came; one that is there already starts anew. `tenants`: those that may be there, none: all."""
        self.remove(name)
        spot = self._spots[name] = Spot(name, zone, frozenset(tenants))
        key = (zone, spot.tenants)
        section = self._sections.get(key)
        if section is None:
            section = self._sections[key] = Section(zone, spot.tenants, len(self._sizes))
            self._turn.append(section)
        section.nodes += 1
        spot.section = section
        self._zones.came(zone)
        spot.ranks = (0,) * len(self._sizes)
        self._set(spot, free_mb)
        return spot

    def remove(self, name: str) -> dict[str, int]:
        """A node that went. Returns what was there, by version: it is gone as well."""
        spot = self._spots.pop(name, None)
        if spot is None:
            return {}
        self._set(spot, 0)
        section = spot.section
        assert section is not None
        section.nodes -= 1
        if not section.nodes:
            del self._sections[section.zone, section.tenants]
            self._turn.remove(section)
        spot.section = None
        self._zones.went(spot.zone)
        for version, count in spot.held.items():
            self._zones.remove(version, spot.zone, count)
        lost, spot.held = spot.held, {}
        return lost

    def reported(self, spot: Spot, free_mb: int) -> None:
        """The node said so itself; what it has not answered yet is not in it."""
        if spot.section is not None:
            self._set(spot, free_mb - spot.pending_mb)

    def counted(self, spot: Spot, version: str, count: int) -> None:
        """The node said how many instances of it are there."""
        more = count - spot.held.get(version, 0)
        if spot.section is None or not more:
            return
        if count:
            spot.held[version] = count
        else:
            spot.held.pop(version, None)
        if more < 0:
            self._zones.remove(version, spot.zone, -more)
        for _ in range(more):
            self._zones.add(version, spot.zone)

    def settled(self, spot: Spot, free_mb: int) -> None:
        """All that was placed there before is known to it, and in what it says."""
        spot.pending_mb = 0
        self.reported(spot, free_mb)

    # -- placing

    def place(
        self,
        version: str,
        memory_mb: int,
        tenant: str = "",
        code: Iterable[str] = (),
        tunnels: Collection[str] = (),
        but: Collection[Spot] = (),
    ) -> Spot | None:
        """The node for one more instance, reserved. `memory_mb`: one of the shapes. `code`: nodes whose tier 1 has it; `tunnels`:
        nodes with a tunnel to its network. `but`: not these, they refused. None: no candidate has room."""
        number = self._number[memory_mb]
        zones = self._zones.of(version)
        coded = code if isinstance(code, (frozenset, set)) else frozenset(code)
        weight = ON_NODE if zones is None or isinstance(zones, str) else _weight(sum(zones.values()))
        wishes = _Wishes(version, number, coded, tunnels, but, weight)
        best: Spot | None = None
        least = NEVER
        if coded:
            best, least = self._near(wishes, tenant, zones)
        turn = self._turn
        left = max(2, CANDIDATES // max(1, len(turn)))
        for section in turn:
            if section.tenants and tenant not in section.tenants:
                continue
            crowd = 0 if zones is None else self._zones.crowd(zones, section.zone)
            if crowd >= least:
                continue
            found, cost = _walk(section.lists[number], wishes, crowd, left)
            if cost < least:
                best, least = found, cost
        if best is None:
            return None
        if best.section is not None:
            best.section.lists[number][best.ranks[number]].move_to_end(best)
        if len(turn) > 1:
            turn.append(turn.pop(0))
        best.held[version] = best.held.get(version, 0) + 1
        self._zones.add(version, best.zone)
        size = self._sizes[number]
        best.pending_mb += size
        self._set(best, best.free_mb - size)
        return best

    def accepted(self, spot: Spot, memory_mb: int) -> None:
        """The node has made room for it: its next report knows."""
        spot.pending_mb = max(0, spot.pending_mb - self._sizes[self._number[memory_mb]])

    def refused(self, spot: Spot, version: str, memory_mb: int, free_mb: int) -> None:
        """The node has no room, and says what it has."""
        self.accepted(spot, memory_mb)
        self._drop(spot, version)
        if spot.section is not None:
            self._set(spot, free_mb - spot.pending_mb)

    def withdraw(self, spot: Spot, version: str, memory_mb: int) -> None:
        """It was placed there, and takes nothing."""
        self.accepted(spot, memory_mb)
        self.ended(spot, version, memory_mb)

    def ended(self, spot: Spot, version: str, memory_mb: int) -> None:
        """An instance of it is gone."""
        self._drop(spot, version)
        if spot.section is not None:
            self._set(spot, spot.free_mb + self._sizes[self._number[memory_mb]])

    def instances(self, version: str) -> int:
        return self._zones.total(version)

    # -- inside

    def _near(self, wishes: "_Wishes", tenant: str, zones: InZones) -> tuple[Spot | None, int]:
        """The cheapest of some that have the code."""
        best, least = None, NEVER
        for name in islice(wishes.code, NEAR):
            spot = self._spots.get(name)
            if spot is None or not spot.ranks[wishes.number] or spot in wishes.but or not spot.hosts(tenant):
                continue
            crowd = self._zones.crowd(zones, spot.zone)
            cost = crowd + FULLER * (TOP - spot.ranks[wishes.number]) + _of_spot(spot, wishes)
            if cost < least:
                best, least = spot, cost
        return best, least

    def _set(self, spot: Spot, free_mb: int) -> None:
        free_mb = max(free_mb, 0)
        spot.free_mb = free_mb
        table = self._ranks
        units = free_mb // self._unit
        ranks = table[units] if units < len(table) else table[-1]
        before = spot.ranks
        if ranks is before or ranks == before:
            return
        section = spot.section
        assert section is not None
        for lists, was, now in zip(section.lists, before, ranks, strict=True):
            if was != now:
                if was:
                    del lists[was][spot]
                if now:
                    lists[now][spot] = None
        spot.ranks = ranks

    def _drop(self, spot: Spot, version: str) -> None:
        on = spot.held.get(version, 0)
        if not on:
            return
        if on == 1:
            del spot.held[version]
        else:
            spot.held[version] = on - 1
        self._zones.remove(version, spot.zone, 1)


def _weight(instances: int) -> int:
    return ON_NODE if instances < EVEN else max(1, ON_NODE * EVEN // instances)


def _walk(lists: list[NodeList], wishes: _Wishes, crowd: int, left: int) -> tuple[Spot | None, int]:
    """The cheapest of the first `left` nodes of a section."""
    best: Spot | None = None
    least = NEVER
    version, but = wishes.version, wishes.but
    plain = not wishes.code and not wishes.tunnels
    for rank in range(TOP, 0, -1):
        level = lists[rank]
        if not level:
            continue
        fuller = crowd + FULLER * (TOP - rank)
        if fuller >= least:
            break  # nothing further down is cheaper
        for spot in level:
            if but and spot in but:
                continue
            if plain:
                if version not in spot.held:
                    return (spot, fuller) if fuller < least else (best, least)
                cost = fuller + wishes.on_node * spot.held[version]
            else:
                cost = fuller + _of_spot(spot, wishes)
            if cost < least:
                best, least = spot, cost
            left -= 1
            if left <= 0:
                return best, least
    return best, least


def _of_spot(spot: Spot, wishes: _Wishes) -> int:
    cost = wishes.on_node * spot.held.get(wishes.version, 0)
    if wishes.code and spot.name not in wishes.code:
        cost += NO_CODE
    if wishes.tunnels and spot.name not in wishes.tunnels:
        cost += NO_TUNNEL
    return cost
