"""Tells every node which caches its zone has: nodes read no routes, and planners dial all of them."""

from collections.abc import Iterable, Mapping
from typing import Protocol

from orchestrator.catalog.routes import NodeRoute
from orchestrator.zones import CACHE_ROLE, caches_by_zone, zone_of


class Told(Protocol):
    """A node as far as this goes."""

    @property
    def member(self) -> str:
        """Its name in the routes; empty when it is in none."""

    def tell_caches(self, zone: str, addresses: list[str]) -> None: ...


class CacheNews:
    """`own_zone`: of the nodes that settings name."""

    def __init__(self, nodes: Mapping[str, NodeRoute], own_zone: str) -> None:
        self._nodes = nodes
        self._own_zone = own_zone
        self._caches: dict[str, NodeRoute] = {}

    def on_member(self, name: str, route: NodeRoute | None, nodes: Iterable[Told]) -> None:
        """The routes changed. `nodes`: who is to hear of it; a node that comes later is told by `tell`."""
        before = self._caches.pop(name, None)
        if route is not None and route.role == CACHE_ROLE:
            self._caches[name] = route
        now = self._caches.get(name)
        if (before is None) == (now is None) and (before is None or now is None or _place(before) == _place(now)):
            return
        for node in nodes:
            self.tell(node)

    def tell(self, node: Told) -> None:
        known = self._nodes.get(node.member)
        zone = zone_of(known) if known is not None else self._own_zone
        node.tell_caches(zone, caches_by_zone(self._caches.values()).get(zone, []))


def _place(route: NodeRoute) -> tuple[str, str]:
    return route.address, zone_of(route)
