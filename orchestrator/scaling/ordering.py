"""From wanted counts to orders: what is missing, and which node each goes to. Pure."""

from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence

import msgspec

from graph.ids import VersionId, tenant_of
from orchestrator.placement_index import NEAR, PlacementIndex, Spot
from orchestrator.scaling.terms import Wanted

AT_ONCE = 10_000
"""Orders of one tick at most; what is missing then is ordered in the next. It bounds how long a tick keeps a planner."""


class Order(msgspec.Struct, frozen=True):
    """One more instance on a node; its memory is reserved in the index."""

    wanted: Wanted
    spot: Spot
    memory_mb: int


class Ordered(msgspec.Struct, frozen=True):
    """`short`: by version, how many found no place. `later`: how many were left for the next tick."""

    orders: list[Order]
    short: dict[str, int]
    later: int


Places = Callable[[str], Collection[str]]
"""Of a version: names of nodes where something is."""


def nowhere(version: str) -> Collection[str]:
    return ()


def near(code: Collection[str], reached: Collection[str]) -> Collection[str]:
    """Where to look beside the lists: where its code is, and its network is reached."""
    return [name for name in code if name in reached] or reached if reached else code


def order(
    wanted: Sequence[Wanted],
    have: Mapping[str, int],
    index: PlacementIndex,
    memory_mb: Callable[[str], int],
    code: Places = nowhere,
    tunnels: Places = nowhere,
    at_once: int = AT_ONCE,
) -> Ordered:
    """`have`: instances of a version idle, busy or on their way. Each version gets what it lacks one by one in turn, so that a
    fleet without room is shared. AT_ONCE bounds the whole."""
    lacking = [(one, one.count - have.get(one.version, 0)) for one in wanted]
    lacking = [(one, missing) for one, missing in lacking if missing > 0]
    orders: list[Order] = []
    short: dict[str, int] = {}
    going: dict[str, deque[str]] = {}
    while lacking and len(orders) < at_once:
        still: list[tuple[Wanted, int]] = []
        for at, (one, missing) in enumerate(lacking):
            if len(orders) >= at_once:
                still += lacking[at:]
                break
            version, size = one.version, memory_mb(one.version)
            close, reached = going.get(version), tunnels(version)
            if close is None:
                close = going[version] = deque(near(code(version), reached), maxlen=NEAR)
            spot = index.place(version, size, tenant_of(VersionId(version)), close, reached)
            if spot is None:
                short[version] = missing
                continue
            if spot.name not in close:
                close.append(spot.name)  # its code comes there with this one
            orders.append(Order(one, spot, size))
            if missing > 1:
                still.append((one, missing - 1))
        lacking = still
    later = sum(missing for _, missing in lacking)
    return Ordered(orders, short, later)
