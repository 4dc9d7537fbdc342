"""What is idle, busy and being prepared on this node. Bookkeeping only: no I/O, and `now` is passed in.

The node is the only authority on what is idle. `InstanceTable` answers an acquire in constant time: idle instances are
kept last-in first-out, so that the surplus ages and can be given up.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from graph.calls import StartKind
from tracing.records import Timings
from workers.rpc.messages import VersionCount
from workers.versions import VersionSpec

if TYPE_CHECKING:
    from workers.invocations import Invocation
    from workers.ports import Attachment, Clone


class State(StrEnum):
    PREPARING = "preparing"
    READY = "ready"  # idle, or busy with room left when concurrency > 1
    GONE = "gone"


@dataclass(slots=True, eq=False)
class Instance:
    """One running copy of a version. `waiting` holds invocations that adopted it before it was ready. `memory_mb`: its shape;
    `held_mb`: what it counts. `trace_id`: the run it was begun for. `source`: what it was made from: a function template, a
    standby, or a clone of the tenant's template. `probe`: see workers.probing."""

    spec: VersionSpec
    memory_mb: int
    decision_id: str = ""
    trace_id: str = ""
    source: str = ""
    needed_at: float = 0.0
    state: State = State.PREPARING
    made_by: StartKind = StartKind.COLD
    clone: "Clone | None" = None
    attachment: "Attachment | None" = None
    live: "dict[int, Invocation]" = field(default_factory=dict)
    waiting: "deque[Invocation]" = field(default_factory=deque)
    served: int = 0
    ready_at: float = 0.0
    idle_since: float = 0.0
    timings: Timings = Timings()
    next_id: int = 0
    beside_mb: int = 0
    probe: bool = False

    def detach(self) -> None:
        """Its network is nobody's any more, at once."""
        if self.attachment is not None:
            self.attachment.detach()
            self.attachment = None

    @property
    def held_mb(self) -> int:
        return self.memory_mb + self.beside_mb

    @property
    def adopted(self) -> bool:
        return bool(self.waiting)

    @property
    def free(self) -> int:
        """Invocations it can take now."""
        return self.spec.concurrency - len(self.live) if self.state is State.READY else 0

    def start_kind(self) -> StartKind:
        """How an invocation that finds it ready has found it."""
        return StartKind.PREWARMED if self.decision_id and not self.served else StartKind.WARM


class _Pool:
    """The instances of one version. An instance stands in `ready` exactly while it has room."""

    __slots__ = ("busy_full", "preparing", "ready")

    def __init__(self) -> None:
        self.ready: list[Instance] = []
        self.preparing: list[Instance] = []
        self.busy_full: set[Instance] = set()

    def __len__(self) -> int:
        return len(self.ready) + len(self.preparing) + len(self.busy_full)


class InstanceTable:
    """Every instance of this node, by version."""

    def __init__(self) -> None:
        self._pools: dict[str, _Pool] = {}
        self.changed: set[str] = set()  # versions whose counts moved since the owner last looked

    def __iter__(self) -> Iterator[Instance]:
        for pool in self._pools.values():
            yield from pool.ready
            yield from pool.preparing
            yield from pool.busy_full

    def __len__(self) -> int:
        return sum(map(len, self._pools.values()))

    def add(self, instance: Instance) -> None:
        """A new instance, being prepared."""
        self._pools.setdefault(instance.spec.version, _Pool()).preparing.append(instance)
        self.changed.add(instance.spec.version)

    def ready(self, instance: Instance, now: float) -> None:
        """Preparing is done."""
        pool = self._pools[instance.spec.version]
        pool.preparing.remove(instance)
        instance.state = State.READY
        instance.ready_at = instance.idle_since = now
        pool.ready.append(instance)
        self.changed.add(instance.spec.version)

    def take(self, version: str) -> Instance | None:
        """A ready instance with room, or None. The caller puts one invocation into it and then calls `occupied`."""
        pool = self._pools.get(version)
        return pool.ready[-1] if pool is not None and pool.ready else None

    def occupied(self, instance: Instance) -> None:
        """An invocation was put into `instance` (which `take` returned, or which is just ready)."""
        if instance.free <= 0:
            pool = self._pools[instance.spec.version]
            if pool.ready and pool.ready[-1] is instance:
                pool.ready.pop()
            else:
                pool.ready.remove(instance)
            pool.busy_full.add(instance)
        self.changed.add(instance.spec.version)

    def released(self, instance: Instance, now: float) -> None:
        """An invocation left `instance`, which is still alive."""
        pool = self._pools[instance.spec.version]
        instance.idle_since = now
        if instance in pool.busy_full:
            pool.busy_full.remove(instance)
            pool.ready.append(instance)
        self.changed.add(instance.spec.version)

    def adoptable(self, version: str) -> Instance | None:
        """One being prepared with room for one more waiter; the earliest first."""
        pool = self._pools.get(version)
        if pool is None:
            return None
        return next((one for one in pool.preparing if len(one.waiting) < one.spec.concurrency), None)

    def remove(self, instance: Instance) -> None:
        """It is gone, whatever it was. Idempotent."""
        if instance.state is State.GONE:
            return
        instance.state = State.GONE
        version = instance.spec.version
        pool = self._pools[version]
        if instance in pool.busy_full:
            pool.busy_full.remove(instance)
        elif instance in pool.preparing:
            pool.preparing.remove(instance)
        else:
            pool.ready.remove(instance)
        if not len(pool):
            del self._pools[version]
        self.changed.add(version)

    def of(self, version: str) -> list[Instance]:
        pool = self._pools.get(version)
        return [] if pool is None else [*pool.ready, *pool.preparing, *pool.busy_full]

    def idle(self) -> list[Instance]:
        """Ready instances that run nothing, longest idle first."""
        found = [one for pool in self._pools.values() for one in pool.ready if not one.live]
        found.sort(key=lambda one: one.idle_since)
        return found

    def victims(self, needed_mb: int) -> list[Instance]:
        """What to give up for `needed_mb`; [] if it is not enough. First what plans have that nobody waits for, being prepared or
        ready and unused, then what is idle longest."""
        planned = [one for pool in self._pools.values() for one in pool.preparing if one.decision_id and not one.waiting]
        chosen: list[Instance] = []
        for one in [*planned, *sorted(self.idle(), key=lambda one: (one.served > 0, one.idle_since))]:
            if needed_mb <= 0:
                break
            chosen.append(one)
            needed_mb -= one.held_mb
        return chosen if needed_mb <= 0 else []

    def count(self, version: str) -> VersionCount:
        """Counts as the planner sees them; an adopted instance is as good as busy."""
        pool = self._pools.get(version)
        if pool is None:
            return VersionCount(version, 0, 0, 0)
        idle = sum(1 for one in pool.ready if not one.live)
        preparing = sum(1 for one in pool.preparing if not one.waiting)
        return VersionCount(version, idle, len(pool) - idle - preparing, preparing)

    def counts(self) -> list[VersionCount]:
        return [self.count(version) for version in self._pools]
