"""Decisions to nodes: which node, one batch for each, and taking back what is not wanted any more."""

from collections.abc import Callable, Sequence

from graph.ids import FunctionId
from graph.plans import Evidence, Level, PrewarmDecision, PrewarmPlan
from orchestrator.planner.log import DecisionLog
from orchestrator.planner.peers import Fleet, NodePeer
from orchestrator.planner.places import Places
from workers.rpc.messages import PrepareItem
from workers.versions import VersionSpec

LEAD_FLOOR_S = 0.01  # leads are short where starts are not: without it reach would say little

TRAVEL_S = 0.01
"""Orders for later begin so much earlier: they travel, and timers fire late. What is ready that much too soon costs next to
nothing, what is late costs a wait."""

Right = Callable[[str], tuple[str, int] | None]
"""The lease and epoch under which orders for a tenant go out now, None while another planner decides for it."""


class Dispatch:
    """`latest(function, trace id)`: the version that would be prepared for that run, None when it is not deployed.
    `tried(version)`: it was ordered."""

    def __init__(
        self,
        fleet: Fleet,
        decisions: DecisionLog,
        latest: Callable[[FunctionId, str], VersionSpec | None],
        right: Right,
        tried: Callable[[str], None],
    ) -> None:
        self._fleet = fleet
        self.places = Places(fleet)
        self._log = decisions
        self._latest = latest
        self._right = right
        self._tried = tried

    def send(self, made: PrewarmPlan) -> list[PrewarmDecision]:
        """Orders what was decided; returns what a node was found for. Nothing while another planner decides."""
        right = self._right(made.tenant)
        if right is None:
            return []
        sent: list[PrewarmDecision] = []
        orders: dict[NodePeer, list[PrepareItem]] = {}
        nodes = self.places.current() if made.decisions else {}
        for decision in made.decisions:
            spec = self._latest(decision.function, made.trace_id or "")
            node = self.places.choose(spec, decision.level is Level.READY, nodes) if spec is not None else None
            if spec is None or node is None:
                continue
            self._log.add(made, decision, spec.version, node.name)
            node.define(spec)
            if decision.level is Level.READY:
                self._tried(spec.version)
            orders.setdefault(node, []).append(_item(decision, spec, made.trace_id or ""))
            sent.append(decision)
        for node, items in orders.items():
            node.prepare(items, *right)
        return sent

    def place(
        self, made: PrewarmPlan, spec: VersionSpec, placed: Sequence[tuple[PrewarmDecision, NodePeer]], probe: bool = False
    ) -> None:
        """Orders of one version whose nodes are chosen. Nothing while another planner decides. `probe`: each is ready when its
        guest has answered a question."""
        right = self._right(made.tenant)
        if right is None:
            return
        orders: dict[NodePeer, list[PrepareItem]] = {}
        for decision, node in placed:
            self._log.add(made, decision, spec.version, node.name)
            self._tried(spec.version)
            orders.setdefault(node, []).append(_item(decision, spec, "", probe))
        for node, items in orders.items():
            node.define(spec)
            node.prepare(items, *right)

    def revoke(self, tenant: str, gone: Sequence[tuple[str, str]], release: bool = False) -> None:
        """`gone`: decision ids, each with why it is not wanted any more. `release`: ready ones, too."""
        right = self._right(tenant)
        if right is None:
            return
        self._log.leave(decision_id for decision_id, _ in gone)
        by_why: dict[str, list[str]] = {}
        for decision_id, why in gone:
            by_why.setdefault(why, []).append(decision_id)
        for why, ids in by_why.items():
            for node in self._fleet.up():
                node.revoke(ids, why, *right, release)


def _item(decision: PrewarmDecision, spec: VersionSpec, trace_id: str, probe: bool = False) -> PrepareItem:
    return PrepareItem(
        decision.decision_id,
        spec.version,
        decision.level,
        max(0.0, decision.start_in_s - TRAVEL_S),
        decision.expires_s,
        needed_in(decision.evidence),
        trace_id,
        probe=probe,
    )


def needed_in(evidence: Evidence) -> float:
    """Seconds by which nodes order what they prepare: the time until needed, longer for what is unlikely to be needed at all.

    A branch taken in one run of four waits behind a stage of every run that comes a little later.
    """
    return ((evidence.lead_s or 0.0) + LEAD_FLOOR_S) / max(evidence.reach, 0.01)
