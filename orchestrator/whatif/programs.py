"""A recorded trace as a program that can be run again, with other waits: who calls whom, after whose answers, how much later."""

from collections.abc import Sequence

import msgspec

from graph.calls import Trace
from graph.ids import FunctionId

FINISH = -1
_GRAIN_S = 1e-6  # two moments of one caller closer than this are one after the other


class Step(msgspec.Struct, frozen=True, array_like=True):
    """What a call does `gap_s` after the first `answered` of its callees (in `Stage.answers`) have answered, or after it began.

    `callee` is an index into the program's stages, or FINISH.
    """

    answered: int
    gap_s: float
    callee: int


class Stage(msgspec.Struct, frozen=True, array_like=True):
    """One call. `answers`: its callees in the order in which they answered. `caller`: -1 for the entry, which is stage 0."""

    function: FunctionId
    caller: int
    steps: tuple[Step, ...]
    answers: tuple[int, ...] = ()
    failed: bool = False


class Program(msgspec.Struct, frozen=True):
    """`warm_s`: how long a run takes when nothing waits for an instance. `called_s[i]`: when stage i is called then."""

    entry: FunctionId
    stages: tuple[Stage, ...]
    called_s: tuple[float, ...]
    warm_s: float

    @property
    def functions(self) -> set[FunctionId]:
        return {stage.function for stage in self.stages}


def program_of(trace: Trace) -> Program:
    """Waits are taken off: a call's work begins `wait_s` after it was sent.

    Skewed clocks: a call sent before its caller's work began counts as sent with that, one sent after its answer as sent with
    the answer. A call that is still running when its caller answers is not waited for. Raises ValueError when callers do not
    come before callees.
    """
    begins = [max(0.0, trace.wait_s)]
    ends = [max(trace.duration_s, begins[0])]
    sent = [0.0]
    children: list[list[int]] = [[] for _ in range(len(trace.calls) + 1)]
    for number, call in enumerate(trace.calls, start=1):
        if not -1 <= call.caller_index < number - 1:
            raise ValueError(f"calls[{number - 1}].caller_index: {call.caller_index} is neither an earlier call nor -1")
        above = call.caller_index + 1
        at = min(max(call.offset_s, begins[above]), ends[above])
        sent.append(at)
        begins.append(at + call.wait_s)
        ends.append(at + max(call.duration_s, call.wait_s))
        children[call.caller_index + 1].append(number)
    stages = []
    for number, below in enumerate(children):
        own = trace.calls[number - 1] if number else None
        below.sort(key=lambda child: (sent[child], child))
        answers = tuple(sorted(below, key=lambda child: (ends[child], sent[child], child)))
        stages.append(
            Stage(
                function=own.callee if own else trace.entry,
                caller=own.caller_index + 1 if own else -1,
                steps=_steps(begins[number], ends[number], below, answers, sent, ends),
                answers=answers,
                failed=own.failed if own else trace.failed,
            )
        )
    called, finished = _warm(stages)
    return Program(trace.entry, tuple(stages), called, finished)


def _steps(
    began: float, ended: float, below: Sequence[int], answers: Sequence[int], sent: Sequence[float], ends: Sequence[float]
) -> tuple[Step, ...]:
    place = {child: at for at, child in enumerate(below)}
    steps = []
    answered = 0
    for at, child in enumerate((*below, FINISH)):
        moment = ended if child == FINISH else sent[child]
        while (
            answered < len(answers) and ends[answers[answered]] <= moment + _GRAIN_S and place[answers[answered]] < at
        ):  # only what was sent before can have answered: nothing waits for itself
            answered += 1
        since = max(began, ends[answers[answered - 1]]) if answered else began
        steps.append(Step(answered, max(0.0, moment - since), child))
    return tuple(steps)


def _warm(stages: Sequence[Stage]) -> tuple[tuple[float, ...], float]:
    """When each stage is called, and when the entry is done, if nothing waits."""
    took = [0.0] * len(stages)  # from its call to its answer
    within = [0.0] * len(stages)  # from its caller's call to its own
    for number in range(len(stages) - 1, -1, -1):  # callees come after callers
        answered_at = 0.0
        seen = 0
        stage = stages[number]
        for step in stage.steps:
            for child in stage.answers[seen : step.answered]:
                answered_at = max(answered_at, within[child] + took[child])
            seen = step.answered
            if step.callee == FINISH:
                took[number] = answered_at + step.gap_s
            else:
                within[step.callee] = answered_at + step.gap_s
    called = [0.0] * len(stages)
    for number, stage in enumerate(stages[1:], start=1):
        called[number] = called[stage.caller] + within[number]
    return tuple(called), took[0]
