"""Which nodes: place(version, nodes) for one instance now, best first; spread(...) for several ahead of traffic.

Pure. The node's own answer corrects a stale view.
"""

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


def spread(version: str, memory_mb: int, count: int, nodes: Sequence[View]) -> list[View]:
    """A node for each of `count` instances: the one with the fewest, then the freest. Shorter when there is no more room."""
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
