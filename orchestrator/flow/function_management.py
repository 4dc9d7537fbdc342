"""Function management: checks and builds a version's code and dependencies, and says so in its condition `code`."""

import time
from collections.abc import Callable, Sequence

import structlog

from graph.ids import FunctionId
from orchestrator.catalog.model import ConditionName, ConditionStatus, EventKind, Module
from orchestrator.catalog.outbox import OpenEvent
from orchestrator.catalog.store import Store
from orchestrator.flow.building import Builder
from orchestrator.flow.dependencies import BuildFailed, BuildInterrupted

Fill = Callable[[str, Sequence[str]], str]
"""Brings layers of a tenant into the zones (filling.Filling): which have them not, and why."""

log = structlog.get_logger(__name__)


class FunctionManagement:
    """One event at a time, any event any number of times."""

    module = Module.FUNCTION_MANAGEMENT

    def __init__(self, store: Store, builder: Builder, fill: Fill = lambda tenant, layers: "") -> None:
        self._store = store
        self._builder = builder
        self._fill = fill

    def apply(self, event: OpenEvent) -> None:
        """Raises what may pass (the index or the origin is away): the event is then tried again."""
        if event.kind is not EventKind.DEPLOYED:
            return
        function, number = FunctionId(event.subject), int(event.payload["number"])
        try:
            self._build(function, number)
        except BuildInterrupted as error:
            self._decide(function, number, ConditionStatus.UNKNOWN, f"{error}; it is tried again, so far {event.tries} times")
            raise
        except BuildFailed as error:
            log.info("version.failed", function=function, number=number, reason=str(error))
            self._decide(function, number, ConditionStatus.FALSE, str(error))

    def give_up(self, event: OpenEvent) -> None:
        """Nothing to undo: the version has failed, the one before keeps serving."""

    def _build(self, function: FunctionId, number: int) -> None:
        functions = self._store.functions
        version = functions.pending(function, number)
        if version is None or version.conditions[ConditionName.CODE] != ConditionStatus.UNKNOWN:
            return
        package = self._store.packages.find(version.tenant, version.package)
        if package is None:
            raise BuildFailed(f"package: {version.package} is gone; upload it again")
        code = self._builder.code_layer(package, version.runtime, version.handler)
        dependencies = self._builder.dependency_layer(package, version.runtime)
        size = code.size + (dependencies.size if dependencies else 0)
        functions.set_layers(function, number, code.digest, dependencies.digest if dependencies else "", size)
        layers = [layer.digest for layer in (code, dependencies) if layer is not None]
        self._decide(function, number, ConditionStatus.TRUE, self._fill(version.tenant, layers))

    def _decide(self, function: FunctionId, number: int, status: ConditionStatus, reason: str) -> None:
        self._store.functions.set_condition(function, number, ConditionName.CODE, status, reason, time.time())
