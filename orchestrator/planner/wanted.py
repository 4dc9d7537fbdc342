"""What people see of scaling: what is wanted of each version and why, and every change of the last time. Bounded; no I/O."""

from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import msgspec

from graph.ids import VersionId, function_of, tenant_of
from orchestrator.planner.inventory import Inventory
from orchestrator.scaling.terms import Source, Wanted

POINTS_OF_ONE, POINTS = 600, 100_000
"""Changes kept of a version, and of all together: what changed longest ago goes first, and with it its version's history."""


class Point(msgspec.Struct, array_like=True, frozen=True):
    """What was wanted of a version and what was there, from `at` (Unix time) on, and who decided."""

    at: float
    wanted: int
    ready: int
    busy: int
    by: str
    reason: str
    limit: str

    def says(self, one: Wanted, ready: int, busy: int) -> bool:
        """That it is still so, whatever the sentence is by now."""
        return (
            self.wanted == one.count
            and self.ready == ready
            and self.busy == busy
            and self.by == one.by
            and self.limit == one.limit
        )


class WantedBook:
    """`now`: what is wanted of each version."""

    def __init__(self) -> None:
        self.now: dict[str, Wanted] = {}
        self._points: OrderedDict[str, deque[Point]] = OrderedDict()  # by version, what changed longest ago first
        self._kept = 0
        self._left: set[str] = set()  # wanted no more, and not all gone yet

    def __len__(self) -> int:
        return self._kept

    def put(self, wanted: Sequence[Wanted], there: Inventory, at: float) -> None:
        """`at`: Unix time."""
        before, self.now = self.now, {one.version: one for one in wanted}
        for one in wanted:
            self._add(one, there, at)
        self._left = (self._left | before.keys()) - self.now.keys()
        for version in self._left:
            self._add(Wanted(version, 0, Source.REACTIVE, "no demand any more"), there, at)
        self._left = {version for version in self._left if there.have.get(version)}

    def _add(self, one: Wanted, there: Inventory, at: float) -> None:
        version = one.version
        ready, busy = there.ready.get(version, 0), there.busy.get(version, 0)
        points = self._points.get(version)
        if points is None:
            points = self._points[version] = deque(maxlen=POINTS_OF_ONE)
        elif points[-1].says(one, ready, busy):
            return
        point = Point(at, one.count, ready, busy, one.by, one.reason, one.limit)
        self._kept += len(points) < POINTS_OF_ONE
        points.append(point)
        self._points.move_to_end(version)
        while self._kept > POINTS:
            _, dropped = self._points.popitem(last=False)
            self._kept -= len(dropped)

    def told(
        self, prefix: str, functions: Collection[str] | None, there: Inventory, short: Mapping[str, int], after: float | None
    ) -> list[dict[str, Any]]:
        """Of versions whose id begins so, and of these functions alone. `after` (Unix time): with the point that held then, and
        each since."""
        found = []
        of_tenant = (one for one in {**self.now, **self._points} if one.startswith(prefix))
        for version in sorted(one for one in of_tenant if functions is None or one.rpartition(":")[0] in functions):
            one = self.now.get(version)
            entry: dict[str, Any] = {
                "version": version.partition("/")[2],
                "wanted": one.count if one is not None else 0,
                "ready": there.ready.get(version, 0),
                "busy": there.busy.get(version, 0),
                "coming": there.have.get(version, 0) - there.ready.get(version, 0),
                "short": short.get(version, 0),
                "by": one.by if one is not None else "",
                "reason": one.reason if one is not None else "",
                "limit": one.limit if one is not None else "",
                "terms": [msgspec.to_builtins(term) for term in one.terms] if one is not None else [],
            }
            if after is not None:
                entry["history"] = [msgspec.structs.asdict(point) for point in self._since(version, after)]
            found.append(entry)
        return found

    def _since(self, version: str, after: float) -> list[Point]:
        found: list[Point] = []
        for point in reversed(self._points.get(version, ())):
            found.append(point)
            if point.at <= after:
                break
        return found[::-1]

    def forget_tenant(self, tenant: str) -> None:
        self._forget(lambda version: tenant_of(VersionId(version)) == tenant)

    def forget_functions(self, functions: Collection[str]) -> None:
        self._forget(lambda version: function_of(VersionId(version)) in functions)

    def _forget(self, gone: Callable[[str], bool]) -> None:
        self._left = {one for one in self._left if not gone(one)}
        for version in [one for one in self.now if gone(one)]:
            del self.now[version]
        for version in [one for one in self._points if gone(one)]:
            self._kept -= len(self._points.pop(version))
