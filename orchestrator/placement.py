"""Which nodes: place(version, nodes) for one instance now, best first; spread(...) for several ahead of traffic. A node that
may not host the version's tenant is never among them.

Pure. The node's own answer corrects a stale view.
"""

from collections.abc import Collection, Sequence
from typing import Protocol, TypeVar

from graph.ids import VersionId, tenant_of
from workers.networks import Egress
from workers.versions import VersionSpec


class NodeView(Protocol):
    """What is known of a node, from its last inventory."""

    @property
    def free_mb(self) -> int: ...

    def idle(self, version: str) -> int:
        """Instances of the version thought to be idle or being prepared by nobody's order."""

    def hosts(self, tenant: str) -> bool:
        """Whether the tenant's functions may be there."""

    @property
    def tunnels(self) -> Collection[str]:
        """The private networks it reaches now; an empty name: the Internet."""


View = TypeVar("View", bound=NodeView)


def allowed(version: str, nodes: Sequence[View]) -> list[View]:
    """The nodes that may host the version's tenant."""
    tenant = tenant_of(VersionId(version))
    return [node for node in nodes if node.hosts(tenant)]


def in_reach(spec: VersionSpec, nodes: Sequence[View]) -> Sequence[View]:
    """Those that reach the version's private network (or the Internet, where it asks for that alone). All, when none does: then
    a node says what is missing."""
    if not spec.vpc and spec.egress == Egress.NONE:
        return nodes
    return [node for node in nodes if spec.vpc in node.tunnels and node.hosts(spec.tenant)] or nodes


def place(version: str, memory_mb: int, nodes: Sequence[View]) -> list[View]:
    """First those with the version idle (most first), then by free memory; a node without room for one more comes last. Empty
    when none may host its tenant."""
    return sorted(
        allowed(version, nodes), key=lambda node: (-min(node.idle(version), 1), node.free_mb < memory_mb, -node.free_mb)
    )


def spread(version: str, memory_mb: int, count: int, nodes: Sequence[View]) -> list[View]:
    """A node for each of `count` instances: the one with the fewest, then the freest. Shorter when there is no more room."""
    nodes = allowed(version, nodes)
    free = {id(node): node.free_mb for node in nodes}
    held = {id(node): node.idle(version) for node in nodes}
    chosen: list[View] = []
    while len(chosen) < count:
        fitting = [node for node in nodes if free[id(node)] >= memory_mb]
        if not fitting:
            break
        best = min(fitting, key=lambda node: (held[id(node)], -free[id(node)]))
        held[id(best)] += 1
        free[id(best)] -= memory_mb
        chosen.append(best)
    return chosen
