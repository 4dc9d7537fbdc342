"""The decision log: every prewarm decision with its reason, its evidence and how it ended. Bounded; no I/O."""

from collections import OrderedDict
from typing import Any

import msgspec

from graph.ids import VersionId, number_of
from graph.plans import Evidence, Outcome, PrewarmDecision, PrewarmPlan
from tracing.records import Timings
from workers.rpc.messages import DecisionUpdate

KEPT = 20_000


class LogEntry(msgspec.Struct):
    """`revision` grows with each change of any entry, so that a reader can follow by asking for what is newer."""

    revision: int
    decision_id: str
    plan_id: str
    tenant: str
    entry: str
    function: str
    version: str
    ordinal: int
    node: str
    trigger: str
    trace_id: str
    reason: str
    evidence: Evidence
    memory_mb: int
    created_at: float
    outcome: Outcome = Outcome.PENDING
    ready_at: float = 0.0
    ended_at: float = 0.0
    start_s: float = 0.0
    invocation_id: str = ""
    detail: str = ""
    timings: Timings = Timings()


class DecisionLog:
    """Newest KEPT decisions of all tenants. `open_of` counts what is speculative and alive, for the budget."""

    def __init__(self, entries: list[LogEntry] | None = None) -> None:
        self._entries: OrderedDict[str, LogEntry] = OrderedDict((one.decision_id, one) for one in entries or [])
        self._open: dict[str, LogEntry] = {}
        self._revision = max((one.revision for one in self._entries.values()), default=0)
        for one in self._entries.values():
            if not one.outcome.final:  # its planner died; its instance is the node's to give up
                one.outcome, one.detail = _given_up(one), "the planner restarted"

    def entries(self) -> list[LogEntry]:
        return list(self._entries.values())

    @property
    def revision(self) -> int:
        return self._revision

    def add(self, plan: PrewarmPlan, decision: PrewarmDecision, version: str, node: str) -> LogEntry:
        self._revision += 1
        entry = LogEntry(
            self._revision,
            decision.decision_id,
            plan.plan_id,
            plan.tenant,
            plan.entry,
            decision.function,
            version,
            decision.ordinal,
            node,
            plan.trigger,
            plan.trace_id or "",
            decision.reason,
            decision.evidence,
            decision.memory_mb,
            plan.created_at,
        )
        self._entries[decision.decision_id] = entry
        self._open[decision.decision_id] = entry
        if len(self._entries) > KEPT:
            oldest, _ = self._entries.popitem(last=False)
            self._open.pop(oldest, None)
        return entry

    def update(self, update: DecisionUpdate) -> LogEntry | None:
        """What a node said of a decision; None when it is not known (any more) or has ended already."""
        entry = self._open.get(update.decision_id)
        if entry is None:
            return None
        self._revision += 1
        entry.revision = self._revision
        entry.outcome = Outcome(update.outcome)
        entry.detail = update.detail
        if entry.outcome is Outcome.READY:
            entry.ready_at, entry.start_s, entry.timings = update.at, update.start_s, update.timings
        if entry.outcome.final:
            entry.ended_at, entry.invocation_id = update.at, update.invocation_id
            del self._open[update.decision_id]
        return entry

    def open_of(self, tenant: str) -> list[LogEntry]:
        return [one for one in self._open.values() if one.tenant == tenant]

    def unready(self, decision_id: str) -> bool:
        """Still to be prepared, or on its way."""
        entry = self._open.get(decision_id)
        return entry is not None and entry.outcome is Outcome.PENDING

    def lost_node(self, node: str, now: float) -> list[LogEntry]:
        """A node went away with everything it held; what that was."""
        lost = [one for one in self._open.values() if one.node == node]
        for entry in lost:
            self.update(DecisionUpdate(entry.decision_id, _given_up(entry), now, detail="the node was lost"))
        return lost

    def read(self, tenant: str, function: str = "", run: str = "", limit: int = 100, after: int | None = None) -> list[LogEntry]:
        """Newest last. `function` is a name, `run` a trace id; with `after`, what changed since that revision."""
        found = [
            one
            for one in self._entries.values()
            if one.tenant == tenant
            and (not function or one.function == f"{tenant}/{function}")
            and (not run or one.trace_id == run)
            and (after is None or one.revision > after)
        ]
        found.sort(key=lambda one: one.revision if after is not None else one.created_at)
        return found[:limit] if after is not None else found[-limit:]


def _given_up(entry: LogEntry) -> Outcome:
    return Outcome.WASTED if entry.outcome is Outcome.READY else Outcome.CANCELLED


def as_json(entry: LogEntry) -> dict[str, Any]:
    """The entry in the API's terms: names without their tenant, milliseconds."""
    evidence = entry.evidence
    return {
        "revision": entry.revision,
        "decision_id": entry.decision_id,
        "plan_id": entry.plan_id,
        "function": entry.function.partition("/")[2],
        "version": number_of(VersionId(entry.version)),
        "ordinal": entry.ordinal,
        "entry": entry.entry.partition("/")[2],
        "node": entry.node,
        "trigger": entry.trigger,
        "trace_id": entry.trace_id,
        "reason": entry.reason,
        "evidence": {
            "source": evidence.source,
            "reach": evidence.reach,
            "concurrent": evidence.concurrent,
            "samples": evidence.samples,
            "lead_ms": None if evidence.lead_s is None else evidence.lead_s * 1000,
            "start_ms": None if evidence.start_s is None else evidence.start_s * 1000,
            "price": evidence.price,
            "trace_ids": list(evidence.trace_ids),
        },
        "memory_mb": entry.memory_mb,
        "created_at": entry.created_at,
        "outcome": entry.outcome,
        "ready_at": entry.ready_at or None,
        "ended_at": entry.ended_at or None,
        "start_ms": entry.start_s * 1000,
        "steps_ms": msgspec.structs.asdict(entry.timings),
        "invocation_id": entry.invocation_id,
        "detail": entry.detail,
    }
