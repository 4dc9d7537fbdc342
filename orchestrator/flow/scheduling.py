"""Scheduling: starts the instances a version asks for before it gets traffic, and says so in its condition `capacity`."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import structlog

from graph.ids import FunctionId, version_id
from orchestrator.catalog.functions import PendingVersion
from orchestrator.catalog.model import ConditionName, ConditionStatus, EventKind, Module
from orchestrator.catalog.outbox import OpenEvent
from orchestrator.catalog.store import Store
from orchestrator.flow.dependencies import Busy
from orchestrator.flow.starting import StartFailed, StartInterrupted
from workers.versions import VersionSpec

STARTS = 4
"""Versions whose instances are waited for at once: each holds a thread."""

DIED_TRIES = 3
"""A guest that ended without a word so often will do it again."""

log = structlog.get_logger(__name__)


class Starts(Protocol):
    """See starting.Starter."""

    def start(self, spec: VersionSpec, count: int, progress: Callable[[int], None]) -> None: ...
    def drain(self, versions: Sequence[str]) -> None: ...


class Scheduling:
    """One event at a time, any event any number of times."""

    module = Module.SCHEDULING

    def __init__(self, store: Store, starter: Starts) -> None:
        self._store = store
        self._starter = starter
        self._slots = threading.BoundedSemaphore(STARTS)

    def apply(self, event: OpenEvent) -> None:
        """Raises StartInterrupted when it is to be tried again, Busy when others are being waited for."""
        if event.kind is EventKind.REMOVED:
            self._starter.drain(event.payload.get("versions", []))
        elif event.kind is EventKind.DEPLOYED:
            self._schedule(event)

    def give_up(self, event: OpenEvent) -> None:
        """What did start is given up: the version will not serve."""
        if event.kind is EventKind.DEPLOYED:
            self._starter.drain([_version(event)])

    def _schedule(self, event: OpenEvent) -> None:
        version = self._store.functions.pending(FunctionId(event.subject), int(event.payload["number"]))
        if version is None:
            if event.payload.get("instances"):
                self._starter.drain([_version(event)])  # removed after an earlier try of this had begun
            return
        if version.conditions[ConditionName.CAPACITY] != ConditionStatus.UNKNOWN:
            return
        if not version.initial_instances:
            self._decide(event, ConditionStatus.NOT_NEEDED, "it asks for no initial_instances")
        elif version.conditions[ConditionName.CODE] != ConditionStatus.TRUE:
            self._decide(event, ConditionStatus.FALSE, "nothing to start: its code is not ready")
        elif version.superseded:
            self._decide(event, ConditionStatus.NOT_NEEDED, "a newer version serves already")
        else:
            self._start(event, version)

    def _start(self, event: OpenEvent, version: PendingVersion) -> None:
        if not self._slots.acquire(blocking=False):
            raise Busy("other versions are being started")
        wanted = version.initial_instances
        try:
            self._starter.start(version.spec, wanted, lambda ready: self._waiting(event, f"{ready} of {wanted} instances ready"))
        except StartFailed as error:
            self._failed(event, str(error))
        except StartInterrupted as error:
            if error.died and event.tries >= DIED_TRIES:
                self._failed(event, str(error))
            else:
                self._waiting(event, f"{error}; it is tried again, so far {event.tries} times")
                raise
        else:
            if not self._decide(event, ConditionStatus.TRUE, f"{wanted} instance{'s' if wanted > 1 else ''} started"):
                self._starter.drain([_version(event)])  # removed meanwhile
        finally:
            self._slots.release()

    def _failed(self, event: OpenEvent, reason: str) -> None:
        log.info("version.not_started", version=_version(event), reason=reason)
        self._starter.drain([_version(event)])  # first: once decided, nobody looks at it again
        self._decide(event, ConditionStatus.FALSE, f"an instance did not start: {reason}")

    def _waiting(self, event: OpenEvent, reason: str) -> None:
        self._decide(event, ConditionStatus.UNKNOWN, reason)

    def _decide(self, event: OpenEvent, status: ConditionStatus, reason: str) -> bool:
        function, number = FunctionId(event.subject), int(event.payload["number"])
        return self._store.functions.set_condition(function, number, ConditionName.CAPACITY, status, reason, time.time())


def _version(event: OpenEvent) -> str:
    return version_id(FunctionId(event.subject), int(event.payload["number"]))
