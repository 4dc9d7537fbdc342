"""A run under way: how far each of its calls is, and the trace it leaves. Bookkeeping only: the caller says what happens when."""

from collections.abc import Sequence

from graph.calls import Call, StartKind, Trace
from graph.ids import tenant_of
from orchestrator.whatif.instances import Instance
from orchestrator.whatif.policy import Run
from orchestrator.whatif.programs import Program, Step


class Running:
    """Per stage: `called` (when), `waits` (seconds, for an instance), `starts` (what it found), `holds` (the instance it is in).
    `seen`: the run as policies know it. `left`: calls not answered yet."""

    __slots__ = ("_answered", "_ends", "_next", "called", "holds", "left", "program", "seen", "starts", "waits")

    def __init__(self, program: Program, seen: Run) -> None:
        stages = len(program.stages)
        self.program = program
        self.seen = seen
        self.left = stages
        self.called = [0.0] * stages
        self.waits = [0.0] * stages
        self.starts = [StartKind.WARM] * stages
        self.holds: list[Instance | None] = [None] * stages
        self._next = [0] * stages
        self._answered = [0] * stages
        self._ends = [-1.0] * stages

    def due(self, stage: int) -> Sequence[Step]:
        """The steps of this call that wait for nothing any more; each is told once."""
        steps = self.program.stages[stage].steps
        first = at = self._next[stage]
        answered = self._answered[stage]
        while at < len(steps) and steps[at].answered <= answered:
            at += 1
        self._next[stage] = at
        return steps[first:at]

    def answer(self, stage: int, now: float) -> bool:
        """The call is done. Whether its caller has one answer more in the order it knows, and may go on."""
        self._ends[stage] = now
        self.left -= 1
        if not stage:
            return False
        caller = self.program.stages[stage].caller
        answers = self.program.stages[caller].answers
        before = answered = self._answered[caller]
        while answered < len(answers) and self._ends[answers[answered]] >= 0.0:
            answered += 1
        self._answered[caller] = answered
        return answered != before

    def trace(self) -> Trace:
        """What the platform would have recorded of the run; all of it is answered."""
        stages = self.program.stages
        began = self.called[0]
        return Trace(
            tenant=tenant_of(self.program.entry),
            trace_id=f"{self.seen.number:032x}",
            entry=self.program.entry,
            duration_s=self._ends[0] - began,
            calls=tuple(
                Call(
                    caller=stages[stage.caller].function,
                    callee=stage.function,
                    caller_index=stage.caller - 1,
                    offset_s=self.called[index] - began,
                    duration_s=self._ends[index] - self.called[index],
                    wait_s=self.waits[index],
                    start=self.starts[index],
                    failed=stage.failed,
                )
                for index, stage in enumerate(stages[1:], start=1)
            ),
            wait_s=self.waits[0],
            failed=stages[0].failed,
        )
