"""Network deployment: decides a version's condition `network`, once the network it asks for is there on the nodes."""

import time

from graph.ids import FunctionId
from orchestrator.catalog.functions import PendingVersion
from orchestrator.catalog.model import ConditionName, ConditionStatus, EventKind, Module
from orchestrator.catalog.outbox import OpenEvent
from orchestrator.catalog.store import Store


class NetworkDeployment:
    """One event at a time, any event any number of times."""

    module = Module.NETWORK_DEPLOYMENT

    def __init__(self, store: Store) -> None:
        self._store = store

    def apply(self, event: OpenEvent) -> None:
        if event.kind is not EventKind.DEPLOYED:
            return
        function, number = FunctionId(event.subject), int(event.payload["number"])
        version = self._store.functions.pending(function, number)
        if version is None or version.conditions[ConditionName.NETWORK] != ConditionStatus.UNKNOWN:
            return
        status, reason = network_of(version)
        self._store.functions.set_condition(function, number, ConditionName.NETWORK, status, reason, time.time())

    def give_up(self, event: OpenEvent) -> None:
        """Nothing to undo."""


def network_of(version: PendingVersion) -> tuple[ConditionStatus, str]:
    """What a version's network comes to: status and why."""
    if version.egress == "none":
        return ConditionStatus.NOT_NEEDED, "it is in no private network"
    return ConditionStatus.FALSE, f"egress {version.egress} is on no node; use none"
