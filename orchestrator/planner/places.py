"""Nodes as placement sees them: the index (orchestrator.placement_index), kept current with what nodes say of themselves."""

from collections.abc import Mapping, Sequence

from orchestrator.placement_index import PlacementIndex
from orchestrator.planner.inventory import Inventory
from orchestrator.planner.peers import Fleet, NodePeer
from orchestrator.scaling.ordering import near
from workers.networks import Egress
from workers.rpc.messages import VersionCount
from workers.versions import VersionSpec


class Places:
    """Where instances go, for plans of runs and for the scaler alike. Between a node's inventories the index knows what was
    ordered there since."""

    def __init__(self, fleet: Fleet) -> None:
        self.index = PlacementIndex()
        self._fleet = fleet
        self._inventory = Inventory()
        self._heard: dict[str, int] = {}  # by node: inventories that are in the index

    def look(self) -> Inventory:
        """All there is by what nodes said of themselves. One object, which the next look brings up to date."""
        self._inventory.follow(self._follow())
        return self._inventory

    def current(self) -> dict[str, NodePeer]:
        """The nodes that are up, by name, with what they said last in the index."""
        return {node.name: node for node in self._follow()}

    def choose(
        self, spec: VersionSpec, takes_memory: bool = True, nodes: Mapping[str, NodePeer] | None = None
    ) -> NodePeer | None:
        """For one instance more, or for what only prepares for one. Where no node has room it is the freest that may host it:
        what it could give up for that only the node itself knows. None: no node may. `nodes`: what `current` just said."""
        if nodes is None:
            nodes = self.current()
        code = [name for name, node in nodes.items() if spec.version in node.counts]
        reached = self.reached(spec)
        spot = self.index.place(spec.version, spec.memory_mb, spec.tenant, near(code, reached), reached)
        if spot is None:
            hosts = [node for node in nodes.values() if node.hosts(spec.tenant)]
            reaching = [node for node in hosts if node.name in reached]
            return max(reaching or hosts, key=lambda node: node.free_mb, default=None)
        if not takes_memory:
            self.index.withdraw(spot, spec.version, spec.memory_mb)
        return nodes[spot.name]

    def reached(self, spec: VersionSpec | None) -> frozenset[str]:
        """Names of nodes with a tunnel to its network; empty: none has, or it needs none."""
        if spec is None or (not spec.vpc and spec.egress == Egress.NONE):
            return frozenset()
        return frozenset(node.name for node in self._fleet.up() if spec.vpc in node.tunnels and node.hosts(spec.tenant))

    def _follow(self) -> list[NodePeer]:
        up = self._fleet.up()
        self._forget_gone(up)
        for node in up:
            self._hear(node)
        return up

    def _hear(self, node: NodePeer) -> None:
        """What it said last, once: what was placed there before that is in it."""
        spot = self.index.spot(node.name)
        if spot is None or spot.tenants != node.tenants or spot.zone != node.zone:
            spot = self.index.add(node.name, node.zone, node.free_mb, node.tenants)
            self._heard.pop(node.name, None)
        heard = node.inventories
        if self._heard.get(node.name) != heard:
            self._heard[node.name] = heard
            self.index.settled(spot, node.free_mb)
            counts, held = node.counts, spot.held
            for version, count in counts.items():
                here = count.idle + count.busy + count.preparing
                if here != held.get(version, 0):
                    self.index.counted(spot, version, here)
            for version in [one for one in held if one not in counts]:
                self.index.counted(spot, version, 0)

    def _forget_gone(self, up: Sequence[NodePeer]) -> None:
        names = {node.name for node in up}
        for gone in [spot.name for spot in self.index if spot.name not in names]:
            self.index.remove(gone)
            self._heard.pop(gone, None)


def total(count: VersionCount) -> int:
    """Idle, busy or on their way."""
    return count.idle + count.busy + count.preparing
