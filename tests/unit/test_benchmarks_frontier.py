"""The workloads and the frontier of topic replay."""

import random
from types import SimpleNamespace

import pytest
from doubles.chains import chain
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.replay.frontier import Case, Found, calibration, cases, envelope, replay, workload
from benchmarks.replay.load import Loaded
from benchmarks.replay.machines import ITEMS, Machine, Shape
from benchmarks.replay.workloads import _below
from graph.calls import Call, Trace
from orchestrator.whatif.compare import Basis
from orchestrator.whatif.programs import program_of
from orchestrator.whatif.starts import Starts

LOAD = [Loaded(f"owner{calls}", (calls, 0, 0, 0), 0.1) for calls in (5, 30, 60, 500, 5000)]


def test_entries_stand_for_functions_of_the_load_and_what_teaches_is_not_run():
    runs = [[chain(number=number) for number in range(entry * 1000, entry * 1000 + 210)] for entry in range(3)]
    made = workload("w", "", runs, LOAD, 1.0, 1, Starts())
    assert len(made.taught) == 300
    assert len(made.arrivals) == 30 + 60 + 500  # those called 24 to 1,000 times
    assert [at for at, _ in made.arrivals] == sorted(at for at, _ in made.arrivals)
    assert all(at < 60.0 for at, _ in made.arrivals)


def test_every_case_has_a_policy_and_one_of_ours_and_of_whole_path_is_the_default():
    runs = [[chain(number=number) for number in range(20)]]
    made = workload("w", "", runs, LOAD[1:2], 1.0, 1, Starts())
    listed = cases(made)
    assert len({(case.policy, case.setting) for case in listed}) == len(listed)
    assert sorted(case.policy for case in listed if case.default) == ["path", "priced"]
    found = replay(made, Case("keep-alive", "", Basis(keep_s=60.0)))
    assert found.figures.runs == 30
    assert calibration(made).error() is None  # all of 20 runs teach


def point(waste_s: float, added_s: float) -> Found:
    figures = SimpleNamespace(wasted_s=SimpleNamespace(value=waste_s * 1000), added_s=SimpleNamespace(value=added_s))
    return Found("w", Case("p", "", Basis()), figures)  # type: ignore[arg-type]


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100)), min_size=1, max_size=30))
def test_the_envelope_beats_all_that_it_leaves_out(points: list[tuple[float, float]]):
    kept = [(one.waste_s, one.figures.added_s.value) for one in envelope([point(*each) for each in points])]
    assert kept == sorted(kept)
    assert [added for _, added in kept] == sorted((added for _, added in kept), reverse=True)
    for waste, added in points:
        assert any(other <= waste + 1e-9 and less <= added for other, less in kept)


MACHINE = {
    "root": "first",
    "states": {
        "first": {"type": "task", "func_name": "first", "next": "which", "failure": "undo"},
        "which": {"type": "switch", "cases": [{"next": "many"}, {"next": "both"}], "default": "many"},
        "many": {"type": "map", "root": "part", "states": {"part": {"type": "task", "func_name": "part"}}, "next": "twice"},
        "both": {
            "type": "parallel",
            "parallel_functions": [
                {"root": name, "states": {name: {"type": "task", "func_name": name, "runtime_s": 2.0}}} for name in ("l", "r")
            ],
        },
        "twice": {"type": "repeat", "func_name": "twice", "count": 2},
        "undo": {"type": "task", "func_name": "undo"},
    },
}


def test_a_state_machine_runs_as_its_states_say():
    machine = Machine("m", MACHINE, [0.1], random.Random(1))
    dice = random.Random(2)
    ways = set()
    for number in range(200):
        run = machine.run(f"{number:032x}", dice)
        names = [call.callee.removeprefix("workflows/m_") for call in run.calls]
        ways.add(names[-1])
        assert names[0] == "first"
        assert all(call.caller == "workflows/m" for call in run.calls)
        assert run.duration_s > max(call.offset_s + call.duration_s for call in run.calls)
        if names[-1] == "twice":
            parts = [call for call in run.calls if call.callee.endswith("part")]
            assert ITEMS[0] <= len(parts) <= ITEMS[1]
            assert len({call.offset_s for call in parts}) == 1
            assert names.count("twice") == 2
        elif names[-1] == "r":
            assert names[1:] == ["l", "r"]
        else:
            assert names[1:] == ["undo"]
            assert run.calls[0].failed
    assert ways == {"twice", "r", "undo"}


@pytest.mark.parametrize("number", range(20))
def test_a_shape_is_a_tree_that_can_be_run_again(number: int):
    dice = random.Random(number)
    shape = Shape(number, [0.05, 1.0], dice)
    for at in range(5):
        run = shape.run(f"{at:032x}", dice)
        assert len(run.calls) <= 17
        program = program_of(run)
        assert program.warm_s == pytest.approx(run.duration_s, abs=1e-5)


def test_what_a_call_of_a_trace_reached_is_a_trace_of_its_own():
    calls = (
        Call("t/g", "t/a", -1, 1.0, 5.0),
        Call("t/a", "t/b", 0, 2.0, 3.0),
        Call("t/g", "t/c", -1, 7.0, 1.0),
        Call("t/b", "t/d", 1, 2.5, 1.0),
    )
    below = _below(Trace("t", "0", "t/g", 9.0, calls), 0)
    assert (below.entry, below.duration_s) == ("t/a", 5.0)
    assert [(call.callee, call.caller_index, call.offset_s) for call in below.calls] == [("t/b", -1, 1.0), ("t/d", 0, 1.5)]
