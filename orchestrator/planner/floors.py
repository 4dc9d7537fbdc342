"""What is told to nodes: how many instances of each version stay there whatever their idle time. No I/O but what peers send.

Each node hears it where it changed, and again before it forgets.
"""

from collections.abc import Sequence

from graph.ids import VersionId, tenant_of
from orchestrator.planner.dispatch import Right
from orchestrator.planner.peers import NodePeer
from orchestrator.planner.places import Inventory
from orchestrator.scaling.terms import Source, Wanted
from workers.keeping import TOLD_FOR_S

REPEAT_S = TOLD_FOR_S / 3
OWN = (Source.RELEASE, Source.MINIMUM, Source.PROVISIONED)
TRAFFIC = (Source.REACTIVE, Source.FEED_FORWARD)

Tables = dict[NodePeer, dict[str, dict[str, int]]]
"""By node and tenant: how many of which version stay there."""


class Floors:
    """`releases`: what is idle above a floor goes at once (of the policy, orchestrator.scaling.terms.Reactive)."""

    def __init__(self, right: Right, releases: bool) -> None:
        self._right = right
        self._releases = releases
        self._told: dict[NodePeer, dict[str, tuple[float, dict[str, int]]]] = {}

    def node_came(self, node: NodePeer) -> None:
        """It knows nothing of what was told before."""
        self._told.pop(node, None)

    def took_over(self) -> None:
        self._told.clear()

    def tell(self, wanted: Sequence[Wanted], there: Inventory, now: float) -> None:
        """Wanted instances stay where they are, on the nodes of the fleet in their order."""
        floors = self._spread(wanted, there)
        for node in [one for one in self._told if one not in floors]:
            del self._told[node]
        for node, tables in floors.items():
            told = self._told.setdefault(node, {})
            for tenant in {*tables, *told}:
                table = tables.get(tenant, {})
                at, before = told.get(tenant, (0.0, {}))
                right = self._right(tenant)
                if right is None:
                    told.pop(tenant, None)
                elif table != before or (table and now - at > REPEAT_S):
                    node.hold(tenant, table, self._releases, *right)
                    if table:
                        told[tenant] = (now, table)
                    else:
                        told.pop(tenant, None)

    def _spread(self, wanted: Sequence[Wanted], there: Inventory) -> Tables:
        floors: Tables = {node: {} for node in there.up}
        for one in wanted:
            left = held(one)
            if not left and not self._releases:
                continue
            owner = tenant_of(VersionId(one.version))
            for node, count in there.holders.get(one.version, ()):
                here = min(left, count)
                if here or self._releases:
                    floors[node].setdefault(owner, {})[one.version] = here
                left -= here
        return floors


def held(one: Wanted) -> int:
    """How many of them no idle time takes. The last one of a function is for keep-alive, unless it is there for a reason of its
    own; what plans made has a lifetime of its own."""
    terms = [term.count for term in one.terms if term.source in OWN]
    if one.by in OWN:
        terms.append(one.count)
    traffic = max((term.count for term in one.terms if term.source in TRAFFIC), default=0)
    return min(one.count, max([*terms, traffic if traffic > 1 else 0]))
