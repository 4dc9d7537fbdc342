"""What all nodes have together, kept from look to look: only what a node says otherwise than before is counted anew."""

from collections import Counter
from collections.abc import Sequence

from graph.ids import VersionId, tenant_of
from orchestrator.planner.peers import NodePeer
from workers.rpc.messages import VersionCount


class Inventory:
    """By version: `holders`, the nodes with any instance of it, in the order of the fleet; `ready`, idle or busy ones; `have`,
    with what is on its way; `busy`, busy ones. `tenants`: how many versions each has there. `up`: the nodes."""

    __slots__ = ("_places", "_seen", "busy", "have", "holders", "ready", "tenants", "up")

    def __init__(self) -> None:
        self._start(())

    def _start(self, up: Sequence[NodePeer]) -> None:
        self.up = list(up)
        self.ready: dict[str, int] = {}
        self.have: dict[str, int] = {}
        self.busy: dict[str, int] = {}
        self.holders: dict[str, list[tuple[NodePeer, int]]] = {}
        self.tenants: Counter[str] = Counter()
        self._places = {node: at for at, node in enumerate(self.up)}
        self._seen: list[dict[str, VersionCount]] = [{} for _ in self.up]  # by node, what is in the sums

    def follow(self, up: Sequence[NodePeer]) -> None:
        """`up`: the nodes that are up, in the order of the fleet. Where that is another than before, all is counted anew."""
        if self.up != up:
            self._start(up)
        for at, node in enumerate(self.up):
            seen, counts = self._seen[at], node.counts
            for version, count in counts.items():
                before = seen.get(version)
                if before is not count and before != count:
                    seen[version] = count
                    self._moved(at, version, before, count)
            if len(seen) > len(counts):
                for version in [one for one in seen if one not in counts]:
                    self._moved(at, version, seen.pop(version), None)

    def _moved(self, at: int, version: str, before: VersionCount | None, now: VersionCount | None) -> None:
        """On the node at that place of the fleet."""
        was, here = _here(before), _here(now)
        if not was and not here:
            return
        if version not in self.have:
            self.ready[version] = self.have[version] = self.busy[version] = 0
            self.holders[version] = []
            self.tenants[tenant_of(VersionId(version))] += 1
        self.have[version] += here - was
        self.ready[version] += _ready(now) - _ready(before)
        self.busy[version] += (now.busy if now is not None else 0) - (before.busy if before is not None else 0)
        if was != here:
            node = self.up[at]
            holders = [one for one in self.holders[version] if one[0] is not node]
            if here:
                holders.append((node, here))
                if len(holders) > 1 and self._places[holders[-2][0]] > at:
                    holders.sort(key=lambda one: self._places[one[0]])
            self.holders[version] = holders
        if not self.have[version]:
            self._drop(version)

    def _drop(self, version: str) -> None:
        """Nothing of it is there any more."""
        for held in (self.ready, self.have, self.busy, self.holders):
            del held[version]
        tenant = tenant_of(VersionId(version))
        self.tenants[tenant] -= 1
        if not self.tenants[tenant]:
            del self.tenants[tenant]


def _ready(count: VersionCount | None) -> int:
    return count.idle + count.busy if count is not None else 0


def _here(count: VersionCount | None) -> int:
    """Idle, busy or on their way."""
    return count.idle + count.busy + count.preparing if count is not None else 0
