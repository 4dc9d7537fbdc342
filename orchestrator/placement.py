"""place(version, nodes) -> nodes to try, best first; pure. The node's own answer corrects a stale view."""

from collections.abc import Sequence
from typing import Protocol, TypeVar


class NodeView(Protocol):
    """What is known of a node, from its last inventory."""

    @property
    def free_mb(self) -> int: ...

    def idle(self, version: str) -> int:
        """Instances of the version thought to be idle or being prepared by nobody's order."""


View = TypeVar("View", bound=NodeView)


def place(version: str, memory_mb: int, nodes: Sequence[View]) -> list[View]:
    """First those with the version idle (most first), then by free memory; a node without room for one more comes last."""
    return sorted(nodes, key=lambda node: (-min(node.idle(version), 1), node.free_mb < memory_mb, -node.free_mb))
