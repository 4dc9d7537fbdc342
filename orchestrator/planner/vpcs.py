"""Tells every node the private networks it is to have tunnels into: nodes read no routes, and planners dial all of them."""

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Protocol

from workers.networks import VpcSpec

TOGETHER_S = 0.02
"""What changes within so short a time is told at once."""


class Told(Protocol):
    """A node as far as this goes."""

    def hosts(self, tenant: str) -> bool: ...

    def tell_vpcs(self, vpcs: list[VpcSpec]) -> None: ...


class Reached:
    """Which private networks some node reaches. `moved` says of which that changed since it was asked last; on a node that comes
    or goes, too: the versions in them are looked at again."""

    def __init__(self) -> None:
        self._before: dict[str, frozenset[str]] | None = None

    def moved(self, nodes: Iterable[tuple[str, Collection[str]]]) -> set[str]:
        """`nodes`: names with what each reaches. Of the first look all there are: nobody knows what was before it."""
        now: dict[str, set[str]] = {}
        for name, tunnels in nodes:
            for vpc in tunnels:
                if vpc:
                    now.setdefault(vpc, set()).add(name)
        known = {vpc: frozenset(names) for vpc, names in now.items()}
        before, self._before = self._before, known
        if before is None:
            return set(known)
        return {vpc for vpc in {*before, *known} if before.get(vpc) != known.get(vpc)}


class VpcNews:
    """`vpcs`: the routes, by tenant/name. Lives in one event loop."""

    def __init__(self, vpcs: Mapping[str, VpcSpec], nodes: Callable[[], Iterable[Told]]) -> None:
        self._vpcs = vpcs
        self._nodes = nodes
        self._due = False

    def changed(self) -> None:
        """The routes did, or who may be on a node: all nodes hear of it soon."""
        if not self._due:
            self._due = True
            asyncio.get_running_loop().call_later(TOGETHER_S, self._tell_all)

    def tell(self, node: Told) -> None:
        """All of them: it has just come."""
        node.tell_vpcs([spec for _, spec in sorted(self._vpcs.items()) if node.hosts(spec.tenant)])

    def _tell_all(self) -> None:
        self._due = False
        for node in self._nodes():
            self.tell(node)
