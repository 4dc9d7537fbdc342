"""Nodes as placement sees them: the index (orchestrator.placement_index), kept current with what nodes say of themselves."""

from collections.abc import Mapping, Sequence

from orchestrator.placement_index import PlacementIndex
from orchestrator.planner.peers import Fleet, NodePeer
from orchestrator.scaling.ordering import near
from workers.networks import Egress
from workers.rpc.messages import VersionCount
from workers.versions import VersionSpec


class Inventory:
    """What all nodes have at one moment. `holders`: by version, the nodes with any instance of it, in the order of the fleet;
    `ready`: idle or busy, `have`: with what is on its way, `busy`: busy ones."""

    __slots__ = ("busy", "have", "holders", "ready", "up")

    def __init__(self, fleet: Fleet) -> None:
        self.up = fleet.up()
        self.ready: dict[str, int] = {}
        self.have: dict[str, int] = {}
        self.busy: dict[str, int] = {}
        self.holders: dict[str, list[tuple[NodePeer, int]]] = {}
        ready, have, busy, holders = self.ready, self.have, self.busy, self.holders
        for node in self.up:
            for version, count in node.counts.items():
                there = count.idle + count.busy
                here = there + count.preparing
                if not here:
                    continue
                if version in have:
                    ready[version] += there
                    have[version] += here
                    busy[version] += count.busy
                    holders[version].append((node, here))
                else:
                    ready[version], have[version], busy[version], holders[version] = there, here, count.busy, [(node, here)]


class Places:
    """Where instances go, for plans of runs and for the scaler alike. Between a node's inventories the index knows what was
    ordered there since."""

    def __init__(self, fleet: Fleet) -> None:
        self.index = PlacementIndex()
        self._fleet = fleet
        self._heard: dict[str, int] = {}  # by node: inventories that are in the index

    def look(self) -> Inventory:
        """What nodes said of themselves since."""
        found = Inventory(self._fleet)
        self._forget_gone(found.up)
        for node in found.up:
            self._hear(node)
        return found

    def current(self) -> dict[str, NodePeer]:
        """The nodes that are up, by name, with what they said last in the index."""
        up = self._fleet.up()
        self._forget_gone(up)
        for node in up:
            self._hear(node)
        return {node.name: node for node in up}

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
            for version in {*node.counts, *spot.held}:
                count = node.counts.get(version)
                self.index.counted(spot, version, total(count) if count is not None else 0)

    def _forget_gone(self, up: Sequence[NodePeer]) -> None:
        names = {node.name for node in up}
        for gone in [spot.name for spot in self.index if spot.name not in names]:
            self.index.remove(gone)
            self._heard.pop(gone, None)


def total(count: VersionCount) -> int:
    """Idle, busy or on their way."""
    return count.idle + count.busy + count.preparing
