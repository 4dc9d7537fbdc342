"""Who may ask a zone cache for what. Pure."""

from collections.abc import Callable, Mapping

from orchestrator.catalog.routes import NodeRoute
from orchestrator.members import admit
from workers.rpc.transport import Peer

READERS = ("node", "flow")
FILLERS = ("flow",)

Judge = Callable[[Peer | None, str, bool], str]
"""Who (None: a process of this host and user), which tenant, whether it wants to fill. Empty, or why not."""


def judge(table: Mapping[str, NodeRoute]) -> Judge:
    """Current members only, by their certificates; a node only for the tenants it may hold."""
    may_read, may_fill = admit(READERS, table), admit(FILLERS, table)

    def judged(peer: Peer | None, tenant: str, filling: bool) -> str:
        if peer is None:
            return ""
        why = may_fill(peer) if filling else may_read(peer)
        if why:
            return why
        known = table.get(peer.name)
        if known is not None and not known.hosts(tenant):
            return f"node {peer.name[:63]} may not hold code of tenant {tenant}: see `foreglow nodes allow`"
        return ""

    return judged
