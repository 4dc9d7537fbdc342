"""The decision log: every prewarm decision with its reason, its evidence and how it ended. Bounded; no I/O."""

from collections import Counter
from collections.abc import Iterable

import msgspec

from graph.fairbook import FairBook
from graph.ids import function_of, number_of, tenant_of
from graph.plans import EdgeSource, Evidence, Outcome, PrewarmDecision, PrewarmPlan, Trigger, deploy_decision
from tracing.records import Timings
from workers.rpc.messages import DecisionUpdate
from workers.tallies import Histogram

KEPT = 20_000

ASKED_FOR = (Trigger.DEPLOY, Trigger.WANTED, Trigger.RELEASE)
"""Triggers of what is no guess."""

LATE_S = 5.0
"""A node gives up what stayed unused this much after its time at the latest. Longer times are those of a clock that was set."""


class LogEntry(msgspec.Struct):
    """`revision` grows with each change of any entry, so that a reader can follow by asking for what is newer.

    `saved_s`: preparing that its invocation did not have to wait for; all of it with a hit, what was done by then when late.
    `start_in_s`: its delay; `covers`: the functions that one of level `standby` can become, `became`: the version it did;
    `source`: what it was made from, as workers.instances has it.
    """

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
    saved_s: float = 0.0
    level: str = "ready"
    start_in_s: float = 0.0
    expires_s: float = 0.0
    covers: tuple[str, ...] = ()
    source: str = ""
    became: str = ""
    policy: str = ""

    @property
    def idle_s(self) -> float:
        """How long it stood ready, unused; of one that has ended. At most as long as it was let: the times are of clocks that may
        be set meanwhile, and an hour that never was would be taken from what its tenant may spend."""
        if not self.ready_at or not self.ended_at:
            return 0.0
        idle_s = max(0.0, self.ended_at - self.ready_at)
        return min(idle_s, self.expires_s + LATE_S) if self.expires_s > 0 else idle_s


class DecisionTally:
    """Since the process started: decisions made by trigger and ended by outcome; seconds to its use, and of standing ready."""

    def __init__(self) -> None:
        self.made: Counter[str] = Counter()
        self.ended: Counter[str] = Counter()
        self.lead = {outcome: Histogram() for outcome in (Outcome.HIT, Outcome.LATE)}
        self.idle = {outcome: Histogram() for outcome in (Outcome.HIT, Outcome.WASTED)}

    def end(self, entry: LogEntry) -> None:
        self.ended[entry.outcome] += 1
        if (lead := self.lead.get(entry.outcome)) is not None:
            lead.add(max(0.0, entry.ended_at - entry.created_at))
        if (idle := self.idle.get(entry.outcome)) is not None:
            idle.add(max(0.0, entry.ended_at - entry.ready_at))


class DecisionLog:
    """Newest KEPT decisions, tenants sharing them fairly. `open_of` counts what is speculative and alive, for the budget."""

    def __init__(self, entries: list[LogEntry] | None = None) -> None:
        self._entries: FairBook[str, LogEntry] = FairBook(KEPT)
        for one in entries or []:
            self._entries.put(one.tenant, one.decision_id, one)
        self._open: dict[str, LogEntry] = {}
        self._of_tenant: dict[str, dict[str, LogEntry]] = {}  # the open ones again
        self._leaving: set[str] = set()  # pending, and to be given up: their nodes have not said so yet
        self.tally = DecisionTally()
        self._revision = max((one.revision for one in self._entries.values()), default=0)
        for one in self._entries.values():
            if not one.outcome.final:  # its planner died; its instance is the node's to give up
                one.outcome, one.detail = _given_up(one), "the planner restarted"

    def entries(self) -> list[LogEntry]:
        return list(self._entries.values())

    @property
    def revision(self) -> int:
        return self._revision

    @property
    def open(self) -> int:
        return len(self._open)

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
            level=decision.level,
            start_in_s=decision.start_in_s,
            expires_s=decision.expires_s,
            covers=tuple(decision.covers),
            policy=plan.policy,
        )
        gone = self._entries.put(entry.tenant, decision.decision_id, entry)
        self.tally.made[plan.trigger] += 1
        self._open[decision.decision_id] = entry
        self._of_tenant.setdefault(entry.tenant, {})[decision.decision_id] = entry
        if gone is not None:
            self._close(gone[1])
        return entry

    def _close(self, entry: LogEntry) -> None:
        """It is not open any more."""
        self._leaving.discard(entry.decision_id)
        if self._open.pop(entry.decision_id, None) is not None:
            left = self._of_tenant[entry.tenant]
            del left[entry.decision_id]
            if not left:
                del self._of_tenant[entry.tenant]

    def update(self, update: DecisionUpdate, node: str = "") -> LogEntry | None:
        """What a node said of a decision; None when it is not known (any more) or has ended already."""
        entry = self._open.get(update.decision_id) or self._adopt(update, node)
        if entry is None or (node and entry.node != node):  # a node speaks of its own
            return None
        self._revision += 1
        entry.revision = self._revision
        entry.outcome = Outcome(update.outcome)
        self._leaving.discard(update.decision_id)
        entry.detail = update.detail
        if entry.outcome is Outcome.READY:
            entry.ready_at, entry.start_s, entry.timings = update.at, update.start_s, update.timings
            entry.source = update.source
        if entry.outcome in (Outcome.HIT, Outcome.LATE):
            entry.saved_s = entry.start_s if entry.outcome is Outcome.HIT else update.start_s
        if entry.outcome.final:
            entry.ended_at, entry.invocation_id, entry.became = update.at, update.invocation_id, update.became
            self.tally.end(entry)
            self._close(entry)
        return entry

    def _adopt(self, update: DecisionUpdate, node: str) -> LogEntry | None:
        """The control flow orders instances for new versions; the log first hears of them when they are ready or have failed."""
        ordered = deploy_decision(update.decision_id)
        if ordered is None or update.decision_id in self._entries:
            return None
        function = function_of(ordered.version)
        decision = PrewarmDecision(
            update.decision_id,
            function,
            ordered.ordinal,
            ordered.memory_mb,
            0.0,
            0.0,
            f"version {number_of(ordered.version)} has initial_instances",
            Evidence(EdgeSource.REQUESTED, 1.0, 1.0, 0),
        )
        created = update.at - update.start_s
        plan = PrewarmPlan(f"{Trigger.DEPLOY}-{ordered.attempt}", tenant_of(function), function, Trigger.DEPLOY, "", created)
        return self.add(plan, decision, ordered.version, node)

    def open_of(self, tenant: str) -> list[LogEntry]:
        """Speculative ones: what a version asked for is no guess, and takes nothing from them."""
        return [one for one in self._of_tenant.get(tenant, {}).values() if one.trigger not in ASKED_FOR]

    def one(self, tenant: str, decision_id: str) -> LogEntry | None:
        """None when the tenant has none of this id, or has it no more."""
        found = self._entries.get(decision_id)
        return found if found is not None and found.tenant == tenant else None

    def open_one(self, decision_id: str) -> LogEntry | None:
        """It has not ended."""
        return self._open.get(decision_id)

    def leave(self, decision_ids: Iterable[str]) -> None:
        """Their nodes are told to give them up: nobody may count on those that are pending any more."""
        self._leaving.update(one for one in decision_ids if self.unready(one))

    def coming_of(self, tenant: str) -> list[LogEntry]:
        """What is ordered and not ready."""
        return [one for one in self.open_of(tenant) if one.outcome is Outcome.PENDING and one.decision_id not in self._leaving]

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

    def forget_tenant(self, tenant: str) -> None:
        for entry in list(self._entries.of(tenant).values()):
            self._entries.pop(entry.decision_id)
            self._close(entry)
            self._revision += 1

    def read(self, tenant: str, function: str = "", run: str = "", limit: int = 100, after: int | None = None) -> list[LogEntry]:
        """Newest last. `function` is a name, `run` a trace id; with `after`, what changed since that revision."""
        if after is not None and after >= self._revision:
            return []
        found = [
            one
            for one in self._entries.of(tenant).values()
            if (not function or one.function == f"{tenant}/{function}")
            and (not run or one.trace_id == run)
            and (after is None or one.revision > after)
        ]
        found.sort(key=lambda one: one.revision if after is not None else one.created_at)
        return found[:limit] if after is not None else found[-limit:]


def _given_up(entry: LogEntry) -> Outcome:
    return Outcome.WASTED if entry.outcome is Outcome.READY else Outcome.CANCELLED
