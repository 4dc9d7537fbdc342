"""What planners and the control flow order ahead of requests: versions, decisions to prepare, what is worth keeping, what goes.

No order blocks, and none of an older epoch of its lease is obeyed.
"""

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from workers.decisions import DecisionBook
from workers.execution import Execution
from workers.held_standbys import HeldStandbys
from workers.planned_code import PlannedCode
from workers.ports import CodeTier
from workers.rpc.connection import Connection
from workers.rpc.messages import DecisionUpdate, Drain, Hosted, Keep, PrepareBatch, PrepareItem, Revoke, Rpc
from workers.standbys import StandbyPool
from workers.standing import Standing
from workers.templating import FunctionTemplates
from workers.versions import VersionSpec

MOST_SPECS = 10_000


class Orders:
    """`specs`: the versions that the node was told of, the newest last. `handlers`: what is done at each kind of message. `tell`
    hears of decisions that never get into the book."""

    def __init__(
        self,
        execution: Execution,
        decisions: DecisionBook,
        standbys: StandbyPool,
        held: HeldStandbys,
        templates: FunctionTemplates,
        code: CodeTier,
        planned: PlannedCode,
        standing: Standing,
        tell: Callable[[DecisionUpdate], None],
    ) -> None:
        self.specs: OrderedDict[str, VersionSpec] = OrderedDict()
        self.handlers: dict[int, Callable[[Connection, Any], None]] = {
            Rpc.DEFINE: lambda _, spec: self.define(spec),
            Rpc.PREPARE: self.prepare,
            Rpc.REVOKE: self.revoke,
            Rpc.HOSTED: self.host,
            Rpc.KEEP: self.keep,
            Rpc.DRAIN: lambda _, message: self.drain(message),
        }
        self._execution = execution
        self._instances = execution.instances
        self._idling = execution.idling
        self._keeps = execution.idling.keeps
        self._decisions = decisions
        self._standbys = standbys
        self._held = held
        self._templates = templates
        self._code = code
        self._planned = planned
        self._standing = standing
        self._tell = tell
        self._retired: set[str] = set()  # tenants; a name is never given again, so this is for good

    # -- versions

    def define(self, spec: VersionSpec) -> None:
        """It may be invoked, and one that was draining is not any more. The oldest of MOST_SPECS is forgotten."""
        if spec.tenant in self._retired:
            return
        self.specs[spec.version] = spec
        self._execution.draining.discard(spec.version)
        self.specs.move_to_end(spec.version)
        if len(self.specs) > MOST_SPECS:
            forgotten, _ = self.specs.popitem(last=False)
            self._execution.draining.discard(forgotten)
        self._standbys.want(spec.tenant, spec.memory_mb)

    def drain(self, message: Drain) -> None:
        """None is made any more, idle ones go now, busy ones when they are done. Forgotten with the spec."""
        if message.version in self.specs:
            self._execution.draining.add(message.version)
            self._keeps.forget_version(message.version)
        self._templates.drop(message.version, "draining")
        for instance in self._instances.table.of(message.version):
            if not instance.live and not instance.waiting:
                self._instances.kill(instance, "draining")

    def retire(self, tenant: str) -> None:
        """The tenant is gone: what is ordered for it comes to nothing from now on."""
        self._retired.add(tenant)
        for version in [name for name, spec in self.specs.items() if spec.tenant == tenant]:
            del self.specs[version]
            self._execution.draining.discard(version)
        self._keeps.forget_tenant(tenant)

    # -- decisions

    def prepare(self, connection: Connection, batch: PrepareBatch) -> None:
        """Every decision in it is told of until it has ended, those that are refused too."""
        obeyed = self._obeys(connection, batch.lease, batch.epoch)
        if obeyed:
            self._decisions.void(batch.lease, batch.epoch)
            self._expect_standbys(batch)
        for item in batch.items:
            if not obeyed:
                self._refuse(item, "older epoch")
            elif item.level == "code":
                self._bring_code(item)
            elif item.decision_id not in self._decisions:  # the same order again: it stands, and ends once
                self._expect_code(item)
                if not self._decisions.accept(item, self._begin_decision, (batch.lease, batch.epoch)):
                    self._refuse(item, "too many open decisions")

    def _begin_decision(self, item: PrepareItem) -> None:
        spec, needed_at = self.specs.get(item.version), time.monotonic() + item.needed_in_s
        if spec is None or item.version in self._execution.draining:
            self._decisions.lost(item.decision_id, "the node does not know this version" if spec is None else "draining")
        elif item.level == "standby":
            self._held.hold(item.decision_id, spec.tenant, spec.memory_mb, item.trace_id, needed_at)
        elif self._instances.begin(spec, needed_at, item.decision_id, trace_id=item.trace_id, probe=item.probe) is None:
            self._decisions.lost(item.decision_id, "no memory left on the node")

    def _expect_standbys(self, batch: PrepareBatch) -> None:
        """As many as the plan draws are kept while it lives: where one is dear, the next plan must find as many."""
        shapes = {
            item.decision_id: (spec.tenant, spec.memory_mb)
            for item in batch.items
            if item.level != "code" and (spec := self.specs.get(item.version)) is not None
        }
        self._standbys.plan(shapes)

    def _expect_code(self, item: PrepareItem) -> None:
        spec = self.specs.get(item.version)
        if spec is not None and item.level != "standby":
            self._planned.expect(item, spec)

    def _bring_code(self, item: PrepareItem) -> None:
        spec = self.specs.get(item.version)
        if spec is not None:
            self._planned.bring(spec)

    def _refuse(self, item: PrepareItem, why: str) -> None:
        self._tell(DecisionUpdate(item.decision_id, "cancelled", time.time(), detail=why))

    def revoke(self, connection: Connection, message: Revoke) -> None:
        """What is not ready yet is given up. A ready one costs nothing more than to keep it for its lifetime, and goes only when
        the order says so."""
        if not self._obeys(connection, message.lease, message.epoch):
            return
        for decision_id in message.decision_ids:
            if decision_id in self._decisions and (message.release or not self._decisions.is_ready(decision_id)):
                self._held.give_up(decision_id)
                self._idling.give_up(decision_id, message.why)
                self._decisions.lost(decision_id, message.why)

    # -- what stays

    def host(self, connection: Connection, message: Hosted) -> None:
        """The tenant is hosted here: its code comes, the most wanted first."""
        if message.tenant in self._retired or not self._obeys(connection, message.lease, message.epoch):
            return
        known = [spec for version in message.versions if (spec := self.specs.get(version)) is not None]
        self._code.bring(message.tenant, [spec for spec in known if spec.tenant == message.tenant])

    def keep(self, connection: Connection, message: Keep) -> None:
        """Only a planner knows what is worth keeping."""
        if connection.peer.role != "planner" or message.tenant in self._retired:
            return
        if self._standing.obeys(message.lease, message.epoch):
            now = time.monotonic()
            if message.keep_s is not None:
                self._keeps.tell(message.tenant, message.keep_s, now, message.more_s)
            self._keeps.need(message.tenant, message.needed_s, now)
            if message.floor is not None:
                self._keeps.hold(message.tenant, message.floor, message.only, now)

    def _obeys(self, connection: Connection, lease: str, epoch: int) -> bool:
        """Leases are the planner's; what the control flow orders for a new version holds whoever plans."""
        return connection.peer.role == "flow" or self._standing.obeys(lease, epoch)
