"""What is told to nodes: how many instances of each version stay there whatever their idle time. No I/O but what peers send.

Each node hears it where it changed, and again before it forgets.
"""

from collections.abc import Iterable, Sequence

from graph.ids import VersionId, tenant_of
from orchestrator.planner.dispatch import Right
from orchestrator.planner.inventory import Inventory
from orchestrator.planner.peers import NodePeer
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
        self._unsure: set[NodePeer] = set()

    def node_came(self, node: NodePeer) -> None:
        """It may know nothing of what was told before, or what another planner has told it."""
        self._told.pop(node, None)
        self._unsure.add(node)

    def took_over(self, nodes: Iterable[NodePeer]) -> None:
        """What the planner before has told these holds until they hear better."""
        self._told.clear()
        self._unsure.update(nodes)

    def tell(self, wanted: Sequence[Wanted], there: Inventory, now: float, sure: bool = True) -> None:
        """Wanted instances stay where they are, on the nodes of the fleet in their order. `sure`: it is known what traffic there
        is, so that what is wanted of nothing can be taken back where somebody else may have said so."""
        floors = self._spread(wanted, there)
        self._unsure &= floors.keys()
        for node in [one for one in self._told if one not in floors]:
            del self._told[node]
        rights: dict[str, tuple[str, int] | None] = {}
        for node, tables in floors.items():
            told = self._told.setdefault(node, {})
            unsure = sure and node in self._unsure and node.inventories > 0
            others = {tenant_of(VersionId(version)) for version in node.counts} if unsure else ()
            if unsure:
                self._unsure.discard(node)
            for tenant in {*tables, *told, *others}:
                table = tables.get(tenant, {})
                at, before = told.get(tenant, (0.0, {}))
                if tenant not in rights:
                    rights[tenant] = self._right(tenant)
                right = rights[tenant]
                if right is None:
                    told.pop(tenant, None)
                elif table != before or (table and now - at > REPEAT_S) or tenant in others:
                    node.hold(tenant, table, self._releases, *right)
                    if table:
                        told[tenant] = (now, table)
                    else:
                        told.pop(tenant, None)

    def _spread(self, wanted: Sequence[Wanted], there: Inventory) -> Tables:
        floors: Tables = {node: {} for node in there.up}
        holders, releases = there.holders, self._releases
        for one in wanted:
            left = held(one)
            if not left and not releases:
                continue
            version = one.version
            owner = tenant_of(VersionId(version))
            for node, count in holders.get(version, ()):
                here = count if count < left else left
                if here or releases:
                    tables = floors[node]
                    if owner in tables:
                        tables[owner][version] = here
                    else:
                        tables[owner] = {version: here}
                left -= here
        return floors


def held(one: Wanted) -> int:
    """How many of them no idle time takes. The last one of a function is for keep-alive, unless it is there for a reason of its
    own; what plans made has a lifetime of its own."""
    own = one.count if one.by in OWN else 0
    traffic = 0
    for term in one.terms:
        if term.source in TRAFFIC:
            traffic = max(traffic, term.count)
        elif term.source in OWN:
            own = max(own, term.count)
    return min(one.count, max(own, traffic if traffic > 1 else 0))
