"""Network deployment: decides a version's condition `network`, once the nodes reach the private network it asks for.

The tunnels are opened ahead of any start, by nodes that planners told of them; here they are waited for. What a version lacked
may come later, with an event of its network: one that failed for it alone begins anew, and one that serves says how it stands.
"""

import time

from graph.ids import FunctionId, tenant_of
from orchestrator.catalog.functions import PendingVersion
from orchestrator.catalog.model import ConditionName, ConditionStatus, EventKind, Module
from orchestrator.catalog.outbox import OpenEvent
from orchestrator.catalog.store import Store
from orchestrator.flow.dependencies import Busy
from orchestrator.flow.reaching import Reach, Reaching
from workers.networks import Egress

OPEN_S = 20.0
"""How long a tunnel that nothing stands against may take until a version is told that it does not come."""

LOOK_S = 0.5


class NetworkDeployment:
    """One event at a time, any event any number of times."""

    module = Module.NETWORK_DEPLOYMENT

    def __init__(self, store: Store, reaching: Reaching) -> None:
        self._store = store
        self._reaching = reaching

    def apply(self, event: OpenEvent) -> None:
        """Raises Busy while tunnels are being opened."""
        if event.kind is EventKind.DEPLOYED:
            self._decide(FunctionId(event.subject), int(event.payload["number"]), event.created)
        elif event.kind is EventKind.VPC:
            self._look_again(event)

    def give_up(self, event: OpenEvent) -> None:
        """Nothing to undo."""

    def _decide(self, function: FunctionId, number: int, since: float) -> None:
        version = self._store.functions.pending(function, number)
        if version is None or version.conditions[ConditionName.NETWORK] != ConditionStatus.UNKNOWN:
            return
        if not version.spec.vpc and version.egress == Egress.NONE:
            self._set(function, number, ConditionStatus.NOT_NEEDED, "it is in no private network")
            return
        found = self._reach(version)
        if found.ready:
            self._set(function, number, ConditionStatus.TRUE, found.reason)
        elif found.coming and time.time() - since < OPEN_S:
            self._set(function, number, ConditionStatus.UNKNOWN, found.reason)
            raise Busy(found.reason, LOOK_S)
        else:
            self._set(function, number, ConditionStatus.FALSE, found.reason)

    def _look_again(self, event: OpenEvent) -> None:
        """Raises Busy while what changed may still bring a tunnel that some version lacks."""
        lacking = ""
        for user in self._store.vpcs.users(event.subject):
            version = self._store.functions.pending(user.function, user.number)
            if version is None or version.conditions[ConditionName.NETWORK] == ConditionStatus.UNKNOWN:
                continue  # its own event decides that
            found = self._reach(version)
            status = ConditionStatus.TRUE if found.ready else ConditionStatus.FALSE
            self._store.functions.observe_network(user.function, user.number, status, found.reason, time.time())
            if found.ready:
                self._store.functions.retry_network(user.function, user.number, time.time())
            elif found.coming:
                lacking = found.reason
        if lacking and time.time() - event.created < OPEN_S:
            raise Busy(lacking, LOOK_S)

    def _reach(self, version: PendingVersion) -> Reach:
        tenant = tenant_of(FunctionId(version.spec.version.rpartition(":")[0]))
        if not version.spec.vpc:
            return self._reaching.internet(tenant)
        published = self._store.vpcs.published_one(version.spec.vpc)
        if published is None or published.spec is None:
            name = version.spec.vpc.partition("/")[2]
            return Reach(False, f"private network {name!r} is gone: `foreglow vpc create {name} --cidr ...`, and deploy again")
        return self._reaching.vpc(published.spec)

    def _set(self, function: FunctionId, number: int, status: ConditionStatus, reason: str) -> None:
        self._store.functions.set_condition(function, number, ConditionName.NETWORK, status, reason, time.time())
