"""The discrete-event simulation: runs of programs on instances, under one policy and a virtual clock. Deterministic by its seed.

Memory and processors are not scarce in it: starts that happen at one time do not slow each other.
"""

import heapq
from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum

import msgspec

from graph.calls import StartKind
from graph.ids import FunctionId
from orchestrator.whatif.dice import Dice
from orchestrator.whatif.instances import Instance, Instances, State
from orchestrator.whatif.ledger import Ledger
from orchestrator.whatif.policy import Policy, Run
from orchestrator.whatif.programs import FINISH, Program
from orchestrator.whatif.replay import Called, Ended, Replay
from orchestrator.whatif.running import Running
from orchestrator.whatif.starts import Starts

DEFAULT_MEMORY_MB = 256
_ROUNDING_S = 1e-6  # sums of the same times in another order differ by less


class Settings(msgspec.Struct, frozen=True):
    """`order_s`: from a policy's order until the node begins. `pool`: standbys kept ready for anybody, replaced when taken."""

    starts: Starts = Starts()
    memory_mb: Mapping[FunctionId, int] = {}
    default_memory_mb: int = DEFAULT_MEMORY_MB
    order_s: float = 0.001
    pool: int = 0
    seed: int = 1


class _Kind(IntEnum):
    """At one moment, what makes an instance available comes before what needs one, and expiry last."""

    READY = 0
    START = 1
    FINISH = 2
    CALL = 3
    ARRIVE = 4
    EXPIRE = 5
    LATER = 6


_Payload = Callable[[], None] | Instance | tuple[Instance, int] | tuple[int, int] | None


class Simulation:
    """`arrivals`: (when, program), in order of time. The World that policies see."""

    def __init__(self, arrivals: Sequence[tuple[float, Program]], policy: Policy, settings: Settings) -> None:
        self.now = min(0.0, arrivals[0][0]) if arrivals else 0.0
        self.starts = settings.starts
        self._settings = settings
        self._arrivals = arrivals
        self._policy = policy
        self._events: list[tuple[float, int, int, _Payload]] = []
        self._pushed = 0
        self._live: dict[int, Running] = {}
        self._ledger = Ledger(len(arrivals))
        self._instances = Instances(self._ledger)
        self._dice = Dice(settings.starts, settings.seed)
        self._ended: list[Ended] = [Ended(at, 0.0, program.warm_s, len(program.stages)) for at, program in arrivals]
        self._calls: list[Called] = []
        self._pool: list[Instance] = []
        self._arrived = 0

    def run(self) -> Replay:
        """All of it, until every instance is gone: what is kept alive after the last run is paid for, too. What would never
        go goes then."""
        began = self.now
        self._policy.attach(self, self._arrivals)
        for _ in range(self._settings.pool):
            self._refill(0.0)
        if self._arrivals:
            self._push(self._arrivals[0][0], _Kind.ARRIVE, (0, 0))
        while self._events:
            self.now, kind, _, payload = heapq.heappop(self._events)
            if kind == _Kind.CALL:
                self._call(*payload)  # type: ignore[misc]
            elif kind == _Kind.FINISH:
                self._finish(*payload)  # type: ignore[misc]
            elif kind == _Kind.READY:
                self._ready(*payload)  # type: ignore[misc]
            elif kind == _Kind.EXPIRE:
                one, token = payload  # type: ignore[misc]
                if one.state is State.IDLE and one.token == token:  # type: ignore[union-attr]
                    self._instances.end(one, self.now)  # type: ignore[arg-type]
                    self._policy.expired(one)  # type: ignore[arg-type]
            elif kind == _Kind.LATER:
                if self._live or self._arrived < len(self._arrivals):
                    payload()  # type: ignore[operator,misc]
            elif kind == _Kind.START:
                self._start_ordered(payload)  # type: ignore[arg-type]
            else:
                self._arrive(payload[0])  # type: ignore[index,arg-type]
        self._instances.end_all(self.now)
        used = {stage.function for _, program in self._arrivals for stage in program.stages}
        mean_s = sum(map(self.starts.mean_s, used)) / max(1, len(used))
        return Replay(self._policy.name, self._ended, self._calls, self._ledger, self.now - began, mean_s)

    # -- what policies may do

    def memory_mb(self, function: FunctionId) -> int:
        return self._settings.memory_mb.get(function, self._settings.default_memory_mb)

    def free(self, function: FunctionId) -> int:
        return self._instances.free(function)

    def idle(self, function: FunctionId) -> Sequence[Instance]:
        return self._instances.idle[function]

    def alive_gb(self) -> float:
        return self._instances.alive_gb

    def prepare(
        self, run: int, function: FunctionId, in_s: float = 0.0, expires_s: float = 60.0, decision_id: str = ""
    ) -> Instance:
        one = self._new(function, run, StartKind.COLD, expires_s, decision_id)
        self._instances.schedule(one, self.now)
        self._push(self.now + max(in_s, self._settings.order_s), _Kind.START, one)
        return one

    def hold(self, run: int, covers: Sequence[FunctionId], in_s: float, expires_s: float, decision_id: str = "") -> Instance:
        one = self._standby(run, frozenset(covers), expires_s, decision_id)
        one.ordered_at = self.now
        self._push(self.now + max(in_s, self._settings.order_s), _Kind.START, one)
        return one

    def ready_at(self, run: int, function: FunctionId, at: float) -> None:
        one = self._new(function, run, StartKind.COLD, _ROUNDING_S, "")
        self._instances.schedule(one, self.now)
        one.ready_at = at
        self._push(at - self._dice.start_s(function), _Kind.START, one)

    def give_up(self, one: Instance) -> None:
        if one.state in (State.SCHEDULED, State.STARTING, State.IDLE) and one.waiter is None:
            self._instances.end(one, self.now)

    def later(self, in_s: float, what: Callable[[], None]) -> None:
        self._push(self.now + in_s, _Kind.LATER, what)

    def expire(self, one: Instance, in_s: float) -> None:
        one.token += 1
        one.goes_at = self.now + in_s
        if in_s < float("inf"):
            self._push(self.now + in_s, _Kind.EXPIRE, (one, one.token))

    # -- runs

    def _arrive(self, number: int) -> None:
        at, program = self._arrivals[number]
        self._arrived += 1
        if number + 1 < len(self._arrivals):
            self._push(self._arrivals[number + 1][0], _Kind.ARRIVE, (number + 1, 0))
        self._live[number] = Running(program, Run(number, program.entry, at))
        self._call(number, 0)

    def _call(self, number: int, stage: int) -> None:
        live = self._live[number]
        function = live.program.stages[stage].function
        live.called[stage] = self.now
        self._policy.wanted(function)
        self._acquire(number, stage, function, live)
        if stage:
            live.seen.seen.append(function)
            live.seen.seen_at_s.append(self.now - live.called[0])
            self._policy.called(live.seen, function)
        else:
            live.seen.waits = live.holds[0] is None
            self._policy.begins(live.seen)

    def _acquire(self, number: int, stage: int, function: FunctionId, live: Running) -> None:
        held = self._instances
        if idle := held.idle[function]:
            one = idle[-1]
            live.starts[stage] = StartKind.WARM if one.served else StartKind.PREWARMED
            self._begin(number, stage, one)
            return
        waiter = (number, stage)
        if held.adopt(function, waiter) is not None:
            live.starts[stage] = StartKind.ALMOST_WARM
            return
        self._policy.starting(function)
        if ordered := held.scheduled.get((number, function)):
            one = ordered[0]  # its own, meant for later: it comes now
            held.unschedule(one)
            live.starts[stage] = StartKind.COLD
        elif (standby := held.standby_for(function, number)) is not None:
            ready_at = self.now + self._dice.start_s(function, standby=True)
            held.specialise(standby, function, waiter, self.now, ready_at, self.memory_mb(function) / 1024)
            live.starts[stage] = StartKind.STANDBY
            self._push(ready_at, _Kind.READY, (standby, standby.token))
            if standby in self._pool:
                self._pool.remove(standby)
                self._refill(self._dice.clone_s(function))
            return
        else:
            one = self._new(function, number, StartKind.COLD, 0.0, "")
            live.starts[stage] = StartKind.COLD
        one.waiter = waiter
        self._start(one, self.now + self._dice.start_s(function))

    def _begin(self, number: int, stage: int, one: Instance) -> None:
        live = self._live[number]
        self._instances.use(one, number, self.now)
        live.holds[stage] = one
        wait_s = live.waits[stage] = self.now - live.called[stage]
        self._calls.append(Called(number, stage, live.called[stage], wait_s, live.starts[stage]))
        self._advance(number, stage, live)

    def _advance(self, number: int, stage: int, live: Running) -> None:
        for step in live.due(stage):
            if step.callee == FINISH:
                self._push(self.now + step.gap_s, _Kind.FINISH, (number, stage))
            else:
                self._push(self.now + step.gap_s, _Kind.CALL, (number, step.callee))

    def _finish(self, number: int, stage: int) -> None:
        live = self._live[number]
        goes_on = live.answer(stage, self.now)
        one = live.holds[stage]
        assert one is not None
        live.holds[stage] = None
        self._free(one)
        if goes_on:
            self._advance(number, live.program.stages[stage].caller, live)
        elif not stage:
            self._ended[number].took_s = self.now - live.called[0]
        if not live.left:
            del self._live[number]
            self._policy.ended(live.seen, live.trace())
            if not self._live and self._arrived == len(self._arrivals):
                self._close_pool()

    # -- instances

    def _free(self, one: Instance) -> None:
        self._instances.worked(one, self.now)
        keep_s = self._policy.keep_s(one)
        self._instances.rest(one, self.now)
        if keep_s <= 0.0:
            self._instances.end(one, self.now)
        else:
            self.expire(one, keep_s)

    def _start_ordered(self, one: Instance) -> None:
        if one.state is not State.SCHEDULED:
            return  # given up, or its call came before
        self._instances.unschedule(one)
        if one.ready_at:
            self._start(one, max(self.now, one.ready_at))
        elif one.function is None:
            self._start(one, self.now + self._dice.clone_s())
        else:
            self._start(one, self.now + self._dice.start_s(one.function))

    def _start(self, one: Instance, ready_at: float) -> None:
        self._instances.start(one, self.now, ready_at)
        self._push(ready_at, _Kind.READY, (one, one.token))

    def _ready(self, one: Instance, token: int) -> None:
        if one.state is not State.STARTING or one.token != token:
            return
        self._policy.ready(one, self.now - one.started_at)
        if one.waiter is not None:
            number, stage = one.waiter
            one.waiter = None
            self._begin(number, stage, one)
            return
        self._instances.rest(one, self.now)
        self.expire(one, one.expires_s)

    def _new(self, function: FunctionId, run: int, made_by: StartKind, expires_s: float, decision_id: str) -> Instance:
        return Instance(decision_id, function, self.memory_mb(function) / 1024, run, made_by, expires_s)

    def _standby(self, run: int, covers: frozenset[FunctionId], expires_s: float, decision_id: str) -> Instance:
        memory_gb = self.starts.driver.standby_mb / 1024
        return Instance(decision_id, None, memory_gb, run, StartKind.STANDBY, expires_s, covers)

    def _refill(self, in_s: float) -> None:
        one = self._standby(-1, frozenset(), float("inf"), "")
        self._pool.append(one)
        self._start(one, self.now + in_s)

    def _close_pool(self) -> None:
        """The last run is over: nobody will take one any more."""
        for one in self._pool:
            self.give_up(one)
        self._pool.clear()

    def _push(self, at: float, kind: _Kind, payload: _Payload) -> None:
        self._pushed += 1
        heapq.heappush(self._events, (at, kind, self._pushed, payload))
