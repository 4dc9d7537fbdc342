"""A recorded trace as a program: run without waits it is what was recorded; waits of the record are taken off."""

import pytest
from doubles.chains import chain, simulate, trace
from hypothesis import given
from hypothesis import strategies as st

from graph.calls import Call, Trace
from orchestrator.whatif.policy import Policy
from orchestrator.whatif.programs import FINISH, Step, program_of


@st.composite
def traces(draw: st.DrawFn) -> Trace:
    """Trees of up to 12 calls; callees of one caller come one after the other or side by side."""
    calls: list[tuple[int, str, float, float]] = []

    def node(place: int, began: float, depth: int) -> float:
        at = began + draw(st.floats(0.01, 0.5))
        ended = at
        for _ in range(draw(st.integers(0, 3)) if depth < 3 and len(calls) < 12 else 0):
            calls.append((place, draw(st.sampled_from("abcd")), at, 0.0))
            index = len(calls) - 1
            answered = node(index, at, depth + 1)
            calls[index] = (place, calls[index][1], at, answered - at)
            ended = max(ended, answered)
            at = (at if draw(st.booleans()) else ended) + draw(st.floats(0.01, 0.2))
        return max(ended, at) + draw(st.floats(0.01, 0.5))

    took = node(-1, 0.0, 0)
    return trace("e", took, *calls)


def test_a_chain():
    program = program_of(chain(0.125))
    assert [stage.function for stage in program.stages] == ["t/e", "t/a"]
    assert program.stages[0].steps == (Step(0, 0.125, 1), Step(1, 0.125, FINISH))
    assert program.stages[1].steps == (Step(0, 0.25, FINISH),)
    assert program.called_s == (0.0, 0.125)
    assert program.warm_s == 0.5


def test_the_caller_goes_on_with_the_last_of_the_answers_it_had():
    program = program_of(trace("e", 1.0, (-1, "a", 0.125, 0.25), (-1, "b", 0.125, 0.5), (-1, "c", 0.75, 0.125)))
    entry = program.stages[0]
    assert entry.answers == (1, 2, 3)
    assert entry.steps == (Step(0, 0.125, 1), Step(0, 0.125, 2), Step(2, 0.125, 3), Step(3, 0.125, FINISH))


def test_nobody_waits_for_an_answer_that_came_after_the_caller_had_ended():
    program = program_of(trace("e", 0.5, (-1, "a", 0.25, 5.0)))
    assert program.stages[0].steps == (Step(0, 0.25, 1), Step(0, 0.5, FINISH))
    assert program.warm_s == 0.5


def test_skewed_times_wait_for_nothing_that_is_not_there():
    before = program_of(trace("e", 1.0, (-1, "a", -0.5, 0.25), (-1, "b", 2.0, 0.0)))
    assert before.called_s[0] == 0.0
    assert all(step.gap_s >= 0.0 for stage in before.stages for step in stage.steps)
    assert before.warm_s == 1.0


def test_a_trace_that_contradicts_itself_names_the_field():
    broken = Trace("t", "0", "t/e", 1.0, (Call("t/e", "t/a", 0, 0.0, 0.1),))
    with pytest.raises(ValueError, match=r"calls\[0\].caller_index: 0"):
        program_of(broken)


@given(traces())
def test_without_waits_it_is_the_record(recorded: Trace):
    program = program_of(recorded)
    assert program.warm_s == pytest.approx(recorded.duration_s, abs=1e-5)
    assert program.called_s[1:] == pytest.approx([call.offset_s for call in recorded.calls], abs=1e-5)


@given(traces())
def test_what_was_recorded_cold_is_the_same_program(recorded: Trace):
    class Records(Policy):
        def ended(self, run, trace):
            self.cold = trace

    policy = Records()
    simulate(policy, [(0.0, recorded)])
    assert policy.cold.duration_s > recorded.duration_s + 0.4
    again = program_of(policy.cold)
    assert again.warm_s == pytest.approx(program_of(recorded).warm_s, abs=1e-4)
    assert again.called_s == pytest.approx(program_of(recorded).called_s, abs=1e-4)
