"""One tick of a planner's scaler over many versions and nodes: the code that runs on a platform, with nodes that only listen."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from graph.callgraph import CallGraph
from graph.ids import FunctionId
from orchestrator.catalog.routes import Route
from orchestrator.catalog.watch import RouteTable
from orchestrator.planner.dispatch import Dispatch
from orchestrator.planner.log import DecisionLog
from orchestrator.planner.peers import Fleet
from orchestrator.planner.scaling import Scaling
from orchestrator.scaling.reconciling import Allowance
from workers.rpc.messages import Demand, VersionCount, VersionDemand
from workers.versions import CodePackage, Kind, VersionSpec

TENANTS = 100
EACH = 3
"""Instances of a version."""


@dataclass(eq=False)
class Node:
    """What the planner knows of one, and what it is told."""

    name: str
    zone: str
    free_mb: int = 1 << 20
    tenants: frozenset[str] = frozenset()
    tunnels: frozenset[str] = frozenset()
    counts: dict[str, VersionCount] = field(default_factory=dict)
    connection: object = field(default_factory=object)
    inventories: int = 0
    told: int = 0

    def define(self, spec: VersionSpec) -> None: ...

    def hosts(self, tenant: str) -> bool:
        return True

    def prepare(self, items: list[Any], lease: str = "", epoch: int = 0) -> None:
        self.told += 1
        for item in items:
            seen = self.counts.get(item.version) or VersionCount(item.version, 0, 0, 0)
            self.counts[item.version] = VersionCount(item.version, seen.idle, seen.busy, seen.preparing + 1)

    def hold(self, tenant: str, floor: dict[str, int], only: bool, lease: str = "", epoch: int = 0) -> None:
        self.told += 1


class Gateway:
    def __init__(self) -> None:
        self.connection = self.who = self


def ticks(versions: int, nodes: int, count: int, busy: float = 1.0) -> Iterator[float]:
    """CPU seconds of each tick, while this part of the versions has two or three invocations at once, and the others none."""
    fleet = [Node(f"node-{number}", f"zone-{number % 3}") for number in range(nodes)]
    table, graph, log = RouteTable(), CallGraph(), DecisionLog()
    names = [f"tenant{number % TENANTS}/f{number}" for number in range(versions)]
    for at, name in enumerate(names):
        tenant = name.partition("/")[0]
        spec = VersionSpec(
            f"{name}:1", tenant, "main:handler", Kind.EVENT, "python3.11", 128, 5.0, 1, CodePackage("sha256:" + "0" * 64)
        )
        table.put(name, Route(FunctionId(name), at + 1, 1, (spec,)))
        for number in range(EACH):
            node = fleet[(at * 7 + number * 31) % nodes]
            node.counts[spec.version] = VersionCount(spec.version, 1, 0, 0)
    made = Fleet(fleet)  # type: ignore[arg-type]
    right = ("lease", 1)
    dispatch = Dispatch(made, log, lambda function, trace: None, lambda tenant: right, lambda version: None)
    scaling = Scaling(
        "headroom",
        graph,
        table,
        made,
        log,
        dispatch,
        lambda tenant: right,
        lambda tenant: True,
        lambda tenant: Allowance(),
    )
    called = names[: round(versions * busy)]
    gateway: Any = Gateway()
    for number in range(count):
        told = [VersionDemand(f"{name}:1", 2.0, 2 + (at + number) % 2, 5, 5) for at, name in enumerate(called)]
        scaling.demand(gateway, Demand(told, 1.0))
        before = scaling.seconds
        scaling._at = 0.0
        scaling.tick(time.monotonic())
        yield scaling.seconds - before
