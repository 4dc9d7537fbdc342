"""Instances and standbys under the virtual clock: what is idle, being prepared, ordered for later; and what each of it costs."""

from collections import defaultdict
from dataclasses import dataclass, field
from enum import IntEnum

from graph.calls import StartKind
from graph.ids import FunctionId
from orchestrator.whatif.ledger import Ledger, Waste

Waiter = tuple[int, int]
"""A call that waits: (run, stage)."""


class State(IntEnum):
    SCHEDULED = 0  # ordered for later; no instance yet
    STARTING = 1
    IDLE = 2
    BUSY = 3
    GONE = 4


@dataclass(slots=True, eq=False)
class Instance:
    """One instance, from its order on. A standby has no function until a call of one it covers makes it into that.

    `covers`: of a standby, the functions it may become; empty: any. `run`: who caused it. `unused_s`: how long it was ready
    before its first use, or in vain. `token` changes with every use, so that an expiry set before one is void;
    `goes_at`: the latest one set.
    """

    decision_id: str
    function: FunctionId | None
    memory_gb: float
    run: int
    made_by: StartKind
    expires_s: float
    covers: frozenset[FunctionId] = frozenset()
    state: State = State.SCHEDULED
    ordered_at: float = 0.0
    started_at: float = 0.0
    ready_at: float = 0.0
    idle_since: float = 0.0
    served: int = 0
    unused_s: float = 0.0
    token: int = 0
    goes_at: float = 0.0
    waiter: Waiter | None = None


@dataclass
class Instances:
    """Bookkeeping only: the caller says what happens when."""

    ledger: Ledger
    idle: dict[FunctionId, list[Instance]] = field(default_factory=lambda: defaultdict(list))  # last in, first out
    preparing: dict[FunctionId, list[Instance]] = field(default_factory=lambda: defaultdict(list))  # nobody waits for it
    standbys: list[Instance] = field(default_factory=list)  # ready, without code
    scheduled: dict[tuple[int, FunctionId], list[Instance]] = field(default_factory=lambda: defaultdict(list))
    alive_gb: float = 0.0

    # -- looking

    def free(self, function: FunctionId) -> int:
        """Idle, or being prepared for whoever comes first."""
        return len(self.idle[function]) + len(self.preparing[function])

    def standby_for(self, function: FunctionId, run: int) -> Instance | None:
        """One that may become it, held for this run if there is one."""
        found = None
        for standby in self.standbys:
            if not standby.covers or function in standby.covers:
                if standby.run == run:
                    return standby
                found = found or standby
        return found

    # -- a life

    def start(self, one: Instance, now: float, ready_at: float) -> None:
        one.state = State.STARTING
        one.started_at = now
        one.ready_at = ready_at
        self.alive_gb += one.memory_gb
        if one.function is not None and one.waiter is None:
            self.preparing[one.function].append(one)

    def schedule(self, one: Instance, now: float) -> None:
        one.ordered_at = now
        if one.function is not None:
            self.scheduled[one.run, one.function].append(one)

    def unschedule(self, one: Instance) -> None:
        if one.function is not None:
            held = self.scheduled[one.run, one.function]
            held.remove(one)
            if not held:
                del self.scheduled[one.run, one.function]

    def adopt(self, function: FunctionId, waiter: Waiter) -> Instance | None:
        """The one that is ready first, of those being prepared that nobody waits for."""
        waiting = self.preparing[function]
        if not waiting:
            return None
        one = min(waiting, key=lambda each: each.ready_at)
        waiting.remove(one)
        one.waiter = waiter
        return one

    def rest(self, one: Instance, now: float) -> None:
        """It is ready, or its call is done: now it waits for the next."""
        if one.state is State.STARTING and one.waiter is None and one.function is not None:
            self.preparing[one.function].remove(one)
        one.state = State.IDLE
        one.idle_since = now
        if one.function is None:
            self.standbys.append(one)
        else:
            self.idle[one.function].append(one)

    def use(self, one: Instance, run: int, now: float) -> None:
        """A call begins in it."""
        if one.state is State.IDLE:
            self._waited(one, now)
            self.idle[one.function].remove(one)  # type: ignore[index]
        if not one.served:
            self.ledger.starting_s += one.ready_at - one.started_at
            one.unused_s += now - one.ready_at
        one.state = State.BUSY
        one.token += 1
        one.served += 1
        one.run = run
        one.idle_since = now

    def specialise(
        self, one: Instance, function: FunctionId, waiter: Waiter, now: float, ready_at: float, memory_gb: float
    ) -> None:
        """A standby becomes an instance of `function`, for a call that waits."""
        self.standbys.remove(one)
        self._waited(one, now)
        self.ledger.starting_s += one.ready_at - one.started_at
        self.ledger.lifetime_s += now - one.started_at
        one.unused_s += now - one.ready_at
        self.alive_gb += memory_gb - one.memory_gb
        one.token += 1
        one.function = function
        one.memory_gb = memory_gb
        one.state = State.STARTING
        one.made_by = StartKind.STANDBY
        one.started_at = now
        one.ready_at = ready_at
        one.waiter = waiter

    def worked(self, one: Instance, now: float) -> None:
        """Its call is done."""
        self.ledger.busy_s += now - one.idle_since
        self.ledger.busy_gb_s += (now - one.idle_since) * one.memory_gb
        one.idle_since = now

    def end(self, one: Instance, now: float) -> None:
        """It goes, from whatever state but busy."""
        if one.state is State.SCHEDULED:
            self.unschedule(one)
            one.state = State.GONE
            return
        if one.state is State.STARTING:
            if one.function is not None and one.waiter is None:
                self.preparing[one.function].remove(one)
            self.ledger.starting_s += now - one.started_at
            self.ledger.waste(self._kind(one), one.run, now - one.started_at, one.memory_gb)
        elif one.state is State.IDLE:
            self._waited(one, now)
            if not one.served:
                one.unused_s += now - one.ready_at
                self.ledger.starting_s += one.ready_at - one.started_at
                self.ledger.waste(self._kind(one), one.run, one.ready_at - one.started_at, one.memory_gb)
            (self.standbys if one.function is None else self.idle[one.function]).remove(one)
        one.state = State.GONE
        one.token += 1
        self.alive_gb -= one.memory_gb
        self.ledger.lifetime_s += now - one.started_at
        self.ledger.instances += 1

    def end_all(self, now: float) -> None:
        """Whatever is idle goes."""
        for one in [*self.standbys, *(one for idle in self.idle.values() for one in idle)]:
            self.end(one, now)

    def _waited(self, one: Instance, now: float) -> None:
        self.ledger.idle_s += now - one.idle_since
        self.ledger.waste(self._kind(one), one.run, now - one.idle_since, one.memory_gb)

    @staticmethod
    def _kind(one: Instance) -> Waste:
        if one.function is None:
            return Waste.POOL
        return Waste.KEEP_ALIVE if one.served else Waste.PREWARM
