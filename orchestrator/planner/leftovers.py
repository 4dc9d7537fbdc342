"""Which versions have instances and no alias that means them. No I/O."""

from collections.abc import Collection

from graph.ids import VersionId, function_of, number_of
from orchestrator.catalog.watch import RouteTable
from orchestrator.planner.peers import Fleet


def leftovers(table: RouteTable, fleet: Fleet, besides: Collection[str]) -> list[str]:
    """Those that were in force and are not any more; a version that is not invocable yet is none. `besides`: not these."""
    found: set[str] = set()
    for node in fleet.up():
        for version, count in node.counts.items():
            if not count.idle or version in besides or version in found or version not in table.versions:
                continue
            route = table.routes.get(function_of(VersionId(version)))
            if route is None:
                continue
            meant = {route.latest, *(number for one in route.aliases for number in (one.version, one.second))}
            if number_of(VersionId(version)) not in meant:
                found.add(version)
    return sorted(found)
