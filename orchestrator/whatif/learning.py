"""What all policies that learn from traces share: the platform's own call graph, and a keep-alive after use."""

from collections.abc import Sequence

from graph.callgraph import CallGraph
from graph.calls import Trace
from graph.ids import FunctionId, tenant_of
from graph.plans import ExpectedCall
from graph.prediction import predict
from orchestrator.whatif.instances import Instance, State
from orchestrator.whatif.policy import Policy, Run, World
from orchestrator.whatif.programs import Program

UNUSED_S = 60.0
"""How long what was prepared waits for its first use, where a policy does not say; the platform's own."""

MIN_REACH = 0.05


class Learning(Policy):
    """`keep_s`: how long an instance waits after a use."""

    def __init__(self, keep_s: float) -> None:
        super().__init__()
        self._keep_s = keep_s
        self.graph = CallGraph()

    def attach(self, world: World, arrivals: Sequence[tuple[float, Program]]) -> None:
        super().attach(world, arrivals)
        for function in sorted({stage.function for _, program in arrivals for stage in program.stages}):
            self.graph.declare(function, (), world.memory_mb(function), 0.0)

    def taught(self, trace: Trace) -> None:
        self.graph.observe(trace, 0.0)

    def keep_s(self, one: Instance) -> float:
        return self._keep_s

    def ended(self, run: Run, trace: Trace) -> None:
        self.graph.observe(trace, self.world.now)


class MostLikely(Learning):
    """Xanadu (Middleware'20): at the start of a run one instance of each function on the likeliest path.

    From the entry on, a caller's path goes to the callees that at least half of its runs call and, where no single one is,
    to its likeliest callee, if half of its runs call anything at all.
    """

    name = "most likely path"

    def begins(self, run: Run) -> None:
        for function in self._path(run.entry):
            if not self.world.free(function):
                self.world.prepare(run.number, function, 0.0, UNUSED_S)

    def _path(self, entry: FunctionId) -> list[FunctionId]:
        path: dict[FunctionId, None] = {}
        callers = [entry]
        while callers:
            caller = callers.pop()
            shares = self._callees(caller)
            taken = [callee for callee, share in shares if share >= 0.5]
            if not taken and sum(share for _, share in shares) >= 0.5:
                taken = [max(shares, key=lambda pair: pair[1])[0]]
            fresh = [callee for callee in taken if callee not in path and callee != entry]
            path.update(dict.fromkeys(fresh))
            callers += fresh
        return list(path)

    def _callees(self, caller: FunctionId) -> list[tuple[FunctionId, float]]:
        reach = self.graph.reach(caller)
        tenant = self.graph.tenants.get(tenant_of(caller))
        if reach is None or tenant is None:
            return []
        return [(callee, edge.value(reach.clock)) for callee, edge in tenant.out(caller)]


class MeanJustInTime(Learning):
    """Each function that is at least as likely as the whole-path policy asks (0.05) is started so that it would be ready at the
    mean time of its call; timed anew at every stage start, from that stage's own mean time."""

    name = "mean just in time"

    def __init__(self, keep_s: float) -> None:
        super().__init__(keep_s)
        self._ordered: dict[int, dict[FunctionId, Instance]] = {}

    def begins(self, run: Run) -> None:
        self._ordered[run.number] = {}
        self._time(run, 0.0, predict(self.graph, run.entry))

    def called(self, run: Run, function: FunctionId) -> None:
        self._ordered[run.number].pop(function, None)
        reach = self.graph.reach(run.entry)
        own = reach.reached.get(function) if reach else None
        passed = _mean(own.offsets.samples()) if own else self.world.now - run.began
        self._time(run, passed, predict(self.graph, run.entry, run.seen))

    def ended(self, run: Run, trace: Trace) -> None:
        for one in self._ordered.pop(run.number).values():
            if not one.ready_at or one.ready_at > self.world.now:
                self.world.give_up(one)
        super().ended(run, trace)

    def _time(self, run: Run, passed_s: float, expected: Sequence[ExpectedCall]) -> None:
        ordered = self._ordered[run.number]
        for call in expected:
            before = ordered.get(call.function)
            if before is not None and before.state is State.SCHEDULED:
                self.world.give_up(before)
                del ordered[call.function]
            if call.reach < MIN_REACH or call.function in ordered or self.world.free(call.function):
                continue
            lead_s = _mean(call.offsets_s) - passed_s - self.world.starts.mean_s(call.function)
            ordered[call.function] = self.world.prepare(run.number, call.function, max(0.0, lead_s), UNUSED_S)


def _mean(samples: Sequence[float]) -> float:
    return sum(samples) / len(samples) if samples else 0.0
