"""A fleet in memory: nodes as the planner sees them, and a planner loop with what it stands on."""

import time
from collections import Counter
from typing import Any

from doubles.gateways import route
from doubles.nodes import spec

from graph.callgraph import CallGraph
from graph.calls import Call, Trace
from graph.ids import FunctionId, TenantId
from graph.plans import Budget
from orchestrator.catalog.watch import RouteTable
from orchestrator.planner.log import DecisionLog
from orchestrator.planner.loop import PlannerLoop
from orchestrator.planner.peers import Fleet
from workers.rpc.messages import DecisionUpdate, PrepareItem, TriggerEvent, VersionCount
from workers.versions import VersionSpec

ACME = TenantId("acme")


def fid(name: str) -> FunctionId:
    return FunctionId(f"acme/{name}")


class FakeNode:
    """A node as the planner sees one: it takes orders and says what it has."""

    def __init__(self, name: str = "n1", free_mb: int = 4096) -> None:
        self.name, self.free_mb, self.connection = name, free_mb, object()
        self.driver = "process"
        self.free_standbys: dict[tuple[str, int], int] = {}
        self.have: Counter[str] = Counter()  # idle or on their way
        self.busy: Counter[str] = Counter()
        self.batches: list[list[PrepareItem]] = []
        self.revoked: list[tuple[str, str]] = []
        self.released: list[str] = []
        self.defined: list[str] = []
        self.keeps: list[tuple[str, dict[str, float] | None, dict[str, float], str, int]] = []
        self.more_s: dict[str, list[float]] = {}  # as told last
        self.floors: list[tuple[str, dict[str, int], bool]] = []
        self._inventories, self.silent = 0, False
        self.tunnels = frozenset[str]()
        self.zone, self.tenants = "default", frozenset[str]()

    def hold(self, tenant: str, floor: dict[str, int], only: bool, lease: str = "", epoch: int = 0) -> None:
        self.floors.append((tenant, floor, only))

    def idle(self, version: str) -> int:
        return self.have[version]

    @property
    def counts(self) -> dict[str, VersionCount]:
        return {
            version: VersionCount(version, self.have[version], self.busy[version], 0) for version in {**self.have, **self.busy}
        }

    def hosts(self, tenant: str) -> bool:
        return True

    @property
    def inventories(self) -> int:
        """What it says of itself is always the newest, but when it is `silent`."""
        self._inventories += not self.silent
        return self._inventories

    def define(self, one: VersionSpec) -> None:
        self.defined.append(one.version)

    def prepare(self, items: list[PrepareItem], lease: str = "", epoch: int = 0) -> None:
        assert all(item.version in self.defined for item in items), "a version is defined before it is ordered"
        self.batches.append(items)
        for item in items:
            if item.level == "ready" and item.delay_s <= 0:
                self.have[item.version] += 1

    def revoke(self, ids: list[str], why: str, lease: str = "", epoch: int = 0, release: bool = False) -> None:
        self.revoked += [(one, why) for one in ids]
        self.released += ids if release else []

    def keep(
        self,
        tenant: str,
        keep_s: dict[str, float] | None,
        needed_s: dict[str, float],
        lease: str = "",
        epoch: int = 0,
        more_s: dict[str, list[float]] | None = None,
    ) -> None:
        self.more_s = more_s or {}
        self.keeps.append((tenant, keep_s, needed_s, lease, epoch))

    @property
    def ordered(self) -> list[PrepareItem]:
        return [item for batch in self.batches for item in batch]

    @property
    def names(self) -> list[str]:
        return [item.version.partition("/")[2].partition(":")[0] for item in self.ordered]


class Bench:
    """A planner loop with what it stands on. `began` moves a run's beginning back, as if time had passed."""

    def __init__(self, budget: Budget | None = None, policy: str = "path", nodes: int = 1, **more: Any) -> None:
        self.graph, self.table, self.log = CallGraph(), RouteTable(), DecisionLog()
        self.nodes = [FakeNode(f"n{number + 1}") for number in range(nodes)]
        self.node = self.nodes[0]
        self.loop = PlannerLoop(
            self.graph,
            self.table,
            Fleet(self.nodes),  # type: ignore[arg-type]
            self.log,
            budget or Budget(),
            policy,
            {},
            **more,
        )
        self._numbers = 0

    def deploy(self, name: str, *calls: str, memory_mb: int = 128) -> None:
        one = spec(name, memory_mb=memory_mb)
        self.table.put(fid(name), route(one, calls=calls))
        self.graph.declare(fid(name), [fid(callee) for callee in calls], memory_mb, 0.0)

    def learn(self, entry: str, *path: str, times: int = 1, every_s: float = 0.1) -> None:
        """Runs in which `entry` called the functions of `path` one after the other, `every_s` apart from the first at 0."""
        for _ in range(times):
            self._numbers += 1
            calls = tuple(Call(fid(entry), fid(name), -1, every_s * at, every_s / 2) for at, name in enumerate(path))
            self.graph.observe(Trace(ACME, f"learned{self._numbers}", fid(entry), 1.0, calls), float(self._numbers))

    def takes(self, name: str, seconds: float, tier: str = "process/clone/tier1") -> None:
        """Starts of the function were measured to take so long."""
        for _ in range(4):
            self.graph.set_start_time(fid(name), seconds, tier)

    def starts(self, name: str, trace: str = "tr", parent: bool = False) -> None:
        self.loop.on_event(TriggerEvent(f"acme/{name}:1", trace, f"i{name}", "p" if parent else "", time.time()))

    def calls(self, name: str, trace: str = "tr") -> None:
        """A stage starts; its instance is idle no more."""
        for node in self.nodes:
            if node.have[f"acme/{name}:1"]:
                node.have[f"acme/{name}:1"] -= 1
                break
        self.starts(name, trace, parent=True)

    def ends(self, trace: str = "tr") -> None:
        self.loop.on_event(TriggerEvent("acme/any:1", trace, "i", "", time.time(), ended=True))

    def decision(self, name: str, nth: int = 0) -> str:
        return [one.decision_id for one in self.log.entries() if one.function == fid(name)][nth]

    def tell(self, decision_id: str, outcome: str, **more: Any) -> None:
        self.loop.on_outcomes([DecisionUpdate(decision_id, outcome, time.time(), **more)])
