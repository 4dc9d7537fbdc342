"""Nodes as placement sees them: the index (orchestrator.placement_index), kept current with what nodes say of themselves."""

from collections import Counter
from collections.abc import Mapping

from orchestrator.placement_index import PlacementIndex
from orchestrator.planner.peers import Fleet, NodePeer
from workers.networks import Egress
from workers.rpc.messages import VersionCount
from workers.versions import VersionSpec


class Inventory:
    """What all nodes have at one moment. `holders`: by version, the nodes with any instance of it, in the order of the fleet;
    `ready`: idle or busy, `have`: with what is on its way, `busy`: busy ones."""

    __slots__ = ("busy", "have", "holders", "ready", "up")

    def __init__(self, fleet: Fleet) -> None:
        self.up = fleet.up()
        self.ready, self.have, self.busy = Counter[str](), Counter[str](), Counter[str]()
        self.holders: dict[str, list[tuple[NodePeer, int]]] = {}
        for node in self.up:
            for version, count in node.counts.items():
                here = total(count)
                if not here:
                    continue
                self.ready[version] += count.idle + count.busy
                self.have[version] += here
                self.busy[version] += count.busy
                self.holders.setdefault(version, []).append((node, here))


class Places:
    """`index` is looked at and placed in between two calls of `look`."""

    def __init__(self, fleet: Fleet) -> None:
        self.index = PlacementIndex()
        self._fleet = fleet

    def look(self) -> Inventory:
        """What nodes said of themselves since: it takes the place of what was placed there."""
        found = Inventory(self._fleet)
        names = {node.name for node in found.up}
        for gone in [spot.name for spot in self.index if spot.name not in names]:
            self.index.remove(gone)
        for node in found.up:
            spot = self.index.spot(node.name)
            if spot is None or spot.tenants != node.tenants or spot.zone != node.zone:
                spot = self.index.add(node.name, node.zone, node.free_mb, node.tenants)
            self.index.settled(spot, node.free_mb)
            counts: Mapping[str, VersionCount] = node.counts
            for version in {*counts, *spot.held}:
                count = counts.get(version)
                self.index.counted(spot, version, total(count) if count is not None else 0)
        return found

    def reached(self, spec: VersionSpec | None) -> frozenset[str]:
        """Names of nodes with a tunnel to its network; empty: none has, or it needs none."""
        if spec is None or (not spec.vpc and spec.egress == Egress.NONE):
            return frozenset()
        return frozenset(node.name for node in self._fleet.up() if spec.vpc in node.tunnels)


def total(count: VersionCount) -> int:
    """Idle, busy or on their way."""
    return count.idle + count.busy + count.preparing
