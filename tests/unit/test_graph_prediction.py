"""predict(): what a run is still going to call."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graph.callgraph import CallGraph
from graph.calls import Call, Trace
from graph.ids import function_id
from graph.plans import EdgeSource
from graph.prediction import predict


def named(name):
    return function_id("t", name)


def run(number, entry, *calls, **more):
    names, built = [named(entry)], []
    for callee, caller_index, offset, duration, *wait in calls:
        built.append(Call(names[caller_index + 1], named(callee), caller_index, offset, duration, *wait))
        names.append(named(callee))
    return Trace("t", f"{number:032x}", named(entry), 1.0, tuple(built), **more)


def shown(expected):
    return {call.function.partition("/")[2]: call for call in expected}


def branching(runs, seed=1):
    """e calls a; then either left and leaf, or right. What comes after the branch hangs on it."""
    graph, source = CallGraph(), random.Random(seed)
    for number in range(runs):
        branch = [("left", -1, 0.2, 0.3), ("leaf", 1, 0.3, 0.1)] if source.random() < 0.5 else [("right", -1, 0.2, 0.1)]
        graph.observe(run(number, "e", ("a", -1, 0.1, 0.05), *branch, ("end", -1, 0.6, 0.1)), float(number))
    return graph


def test_declared_calls_are_expected_before_any_trace_transitively_and_cycles_end():
    graph = CallGraph()
    graph.declare(named("e"), [named("a")], 128, 0.0)
    graph.declare(named("a"), [named("b"), named("e")], 512, 0.0)
    graph.declare(named("b"), [named("a"), named("b")], 128, 0.0)
    graph.set_start_time(named("b"), 0.7)
    expected = predict(graph, named("e"))
    assert [(call.function, call.reach, call.source, call.samples) for call in expected] == [
        (named("a"), 1.0, EdgeSource.DECLARED, 0),
        (named("b"), 1.0, EdgeSource.DECLARED, 0),
    ]
    assert (expected[0].memory_mb, expected[1].start_s, expected[1].offsets_s) == (512, 0.7, ())


def test_learned_calls_count_from_the_third_trace_and_what_was_always_seen_is_kept():
    graph = CallGraph()
    for number in range(3):
        assert predict(graph, named("e")) == []
        graph.observe(run(number, "e", ("a", -1, 0.1, 0.2), ("b", 0, 0.2, 0.1)), float(number))
    expected = shown(predict(graph, named("e")))
    assert set(expected) == {"a", "b"}
    assert 0.05 <= expected["a"].reach < 1.0
    assert expected["a"].samples == 3
    assert expected["a"].source == EdgeSource.LEARNED
    assert len(expected["a"].trace_ids) == 3
    for number in range(3, 25):
        graph.observe(run(number, "e", ("a", -1, 0.1, 0.2), ("b", 0, 0.2, 0.1)), float(number))
    assert shown(predict(graph, named("e")))["b"].reach == pytest.approx(1.0)


def test_a_function_only_seen_as_a_callee_can_be_predicted_as_an_entry():
    graph = branching(30)
    assert shown(predict(graph, named("left")))["leaf"].reach > 0.9
    assert predict(graph, named("leaf")) == []
    assert predict(graph, named("nobody")) == []


def test_learned_and_declared_blend_until_traces_outweigh_the_declaration():
    graph = CallGraph()
    graph.declare(named("e"), [named("a"), named("never")], 128, 0.0)
    reaches = []
    for number in range(200):
        graph.observe(run(number, "e", ("a", -1, 0.1, 0.2)), float(number))
        reaches.append(shown(predict(graph, named("e"))))
    assert reaches[0]["never"].reach == 1.0  # learning counts from the third run on
    assert 0.5 < reaches[10]["never"].reach < 0.9
    assert reaches[10]["never"].source == EdgeSource.DECLARED
    assert "never" not in reaches[199] or reaches[199]["never"].reach < 0.05
    assert reaches[199]["a"].reach > 0.99
    assert reaches[199]["a"].source == EdgeSource.BOTH


def test_what_a_learned_callee_newly_declares_is_expected_with_its_probability():
    graph = branching(60)
    graph.declare(named("left"), [named("fresh")], 128, 0.0)
    expected = shown(predict(graph, named("e")))
    assert expected["fresh"].reach == pytest.approx(expected["left"].reach * 20 / (20 + expected["fresh"].weight), rel=0.01)


def test_a_branch_taken_tells_what_comes_after_it():
    graph = branching(120)
    before = shown(predict(graph, named("e")))
    assert 0.3 < before["leaf"].reach < 0.7
    after = shown(predict(graph, named("e"), [named("a"), named("right")]))
    assert "leaf" not in after or after["leaf"].reach < 0.05
    assert after["end"].reach > 0.9
    assert after["end"].given == named("right")
    other = shown(predict(graph, named("e"), [named("a"), named("left")]))
    assert other["leaf"].reach > 0.9
    assert "right" not in other or other["right"].reach < 0.05


def test_the_branch_stays_resolved_however_many_stages_follow():
    graph, source = CallGraph(), random.Random(4)
    for number in range(100):
        left = source.random() < 0.5
        common = [(f"s{n}", -1, 0.2 + 0.1 * n, 0.05) for n in range(6)]
        last = ("late-left" if left else "late-right", -1, 0.9, 0.05)
        graph.observe(run(number, "e", ("left" if left else "right", -1, 0.1, 0.05), *common, last), float(number))
    seen = [named("left"), *(named(f"s{n}") for n in range(6))]
    expected = shown(predict(graph, named("e"), seen))
    assert expected["late-left"].reach > 0.9
    assert "late-right" not in expected or expected["late-right"].reach < 0.05


def test_fewer_than_8_comparable_runs_fall_back_to_fewer_stages():
    graph = branching(120)
    graph.observe(run(999, "e", ("a", -1, 0.1, 0.05), ("rare", -1, 0.15, 0.02), ("right", -1, 0.2, 0.1)), 999.0)
    expected = shown(predict(graph, named("e"), [named("rare"), named("right")]))
    assert expected["end"].samples >= 8
    assert expected["end"].reach > 0.9


def test_a_stage_the_entry_never_reached_before_does_not_blind_it():
    graph = branching(60)
    expected = shown(predict(graph, named("e"), [named("stranger"), named("right")]))
    assert expected["end"].reach > 0.9
    assert "stranger" not in expected


def test_a_started_function_is_left_out_unless_more_of_it_run_at_once():
    graph = CallGraph()
    for number in range(40):
        fan = [("part", -1, 0.1, 0.5) for _ in range(3)]
        loop = [("step", -1, 0.7 + 0.1 * n, 0.05) for n in range(3)]
        graph.observe(run(number, "e", *fan, *loop), float(number))
    first = shown(predict(graph, named("e")))
    assert first["part"].concurrent == pytest.approx((1.0, 1.0, 1.0))
    assert first["step"].concurrent == pytest.approx((1.0,))
    again = shown(predict(graph, named("e"), [named("part")]))
    assert again["part"].concurrent == pytest.approx((1.0, 1.0))
    over = shown(predict(graph, named("e"), [named("part")] * 3 + [named("step")]))
    assert over == {}


def test_fan_out_is_a_distribution():
    graph, source = CallGraph(), random.Random(2)
    for number in range(200):
        width = source.choice([1, 1, 1, 4])
        graph.observe(run(number, "e", *[("part", -1, 0.1, 0.5)] * width), float(number), decay=False)
    concurrent = shown(predict(graph, named("e")))["part"].concurrent
    assert len(concurrent) == 4
    assert concurrent[0] == pytest.approx(1.0)
    assert concurrent[1] == concurrent[3]
    assert 0.15 < concurrent[3] < 0.35


def test_cold_runs_predict_the_times_of_warm_ones():
    graph = CallGraph()
    for number in range(10):
        graph.observe(run(number, "e", ("a", -1, 1.1, 1.2, 1.0), ("b", -1, 2.4, 0.1), wait_s=1.0), float(number))
    expected = shown(predict(graph, named("e")))
    assert expected["a"].offsets_s[0] == pytest.approx(0.1)
    assert expected["b"].offsets_s[0] == pytest.approx(0.4)
    assert [call.function for call in predict(graph, named("e"))] == [named("a"), named("b")]


def test_old_runs_of_a_busy_callee_still_compare():
    """An entry that is mostly a callee: its runs as a root are thousands of runs apart."""
    graph = CallGraph()
    for number in range(12):
        graph.observe(run(number, "e", ("a", -1, 0.1, 0.1), ("b", -1, 0.3, 0.1)), float(number))
    for number in range(4000):
        graph.observe(run(number, "other", ("e", -1, 0.1, 0.5), ("a", 0, 0.2, 0.1), ("b", 0, 0.4, 0.1)), float(number))
    expected = shown(predict(graph, named("e"), [named("a")]))
    assert expected["b"].reach > 0.7


names = st.sampled_from([f"f{n}" for n in range(6)])


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(names, st.lists(names, max_size=4), max_size=6),
    st.lists(st.tuples(names, st.lists(st.tuples(names, st.integers(-1, 6)), max_size=7)), max_size=15),
    names,
    st.lists(names, max_size=5),
)
def test_a_prediction_holds_its_promises_for_any_graph(declared, traces, entry, seen):
    graph = CallGraph()
    for function, calls in declared.items():
        graph.declare(named(function), [named(call) for call in calls], 128, 0.0)
    for number, (root, calls) in enumerate(traces):
        shape = [(callee, min(caller, n - 1), 0.1 * n, 0.15) for n, (callee, caller) in enumerate(calls)]
        graph.observe(run(number, root, *shape), float(number))
    expected = predict(graph, named(entry), [named(stage) for stage in seen])
    functions = [call.function for call in expected]
    assert named(entry) not in functions
    assert len(set(functions)) == len(functions)
    for call in expected:
        assert 0.0 < call.reach <= 1.0
        assert call.concurrent[0] == call.reach
        assert all(a >= b > 0.0 for a, b in zip(call.concurrent, call.concurrent[1:], strict=False))
        assert list(call.offsets_s) == sorted(call.offsets_s)
        assert len(call.offsets_s) <= 64
        assert (call.samples == 0) == (call.source == EdgeSource.DECLARED)
    medians = [call.offsets_s[len(call.offsets_s) // 2] for call in expected if call.offsets_s]
    assert len(medians) == sum(1 for call in expected[: len(medians)] if call.offsets_s)  # never observed comes last


def test_a_function_that_comes_before_the_last_stage_or_not_at_all_is_not_expected_after_it():
    graph, source = CallGraph(), random.Random(6)
    for number in range(150):
        optional = [("optional", -1, 0.1, 0.05)] if source.random() < 0.5 else []
        graph.observe(run(number, "e", *optional, ("a", -1, 0.2, 0.1), ("end", -1, 0.4, 0.1)), float(number))
    assert 0.3 < shown(predict(graph, named("e")))["optional"].reach < 0.7
    after = shown(predict(graph, named("e"), [named("a")]))
    assert "optional" not in after or after["optional"].reach < 0.05
    assert after["end"].reach > 0.95


def test_a_function_that_always_precedes_is_still_expected_when_the_order_turns_once():
    """Calls made side by side: the slower one's start may be told after the faster one's."""
    graph = CallGraph()
    for number in range(100):
        graph.observe(run(number, "e", ("first", -1, 0.1, 0.2), ("second", -1, 0.1001, 0.2)), float(number))
    assert shown(predict(graph, named("e"), [named("second")]))["first"].reach > 0.5


def test_of_a_function_that_stopped_only_the_latest_runs_count_after_a_stage_too():
    graph = CallGraph()
    for number in range(250):
        old = [("old", -1, 0.3, 0.1)] if number < 190 else []
        graph.observe(run(number, "e", ("a", -1, 0.1, 0.1), *old), float(number))
    expected = shown(predict(graph, named("e"), [named("a")]))
    assert expected["old"].reach < 0.2  # of all runs that compare, 190 of 250 had it


def test_fan_out_that_begins_late_is_weighed_against_the_runs_before():
    graph = CallGraph()
    for number in range(100):
        graph.observe(run(number, "e", *[("part", -1, 0.1, 0.5)] * (3 if number % 10 == 9 else 1)), float(number), decay=False)
    assert shown(predict(graph, named("e")))["part"].concurrent == pytest.approx((1.0, 0.1, 0.1))
    started = shown(predict(graph, named("e"), [named("part"), named("part")]))
    assert started["part"].concurrent == pytest.approx((1.0,))  # two have started, so this is one of the wide runs


def test_a_started_function_makes_what_it_declares_certain():
    graph = CallGraph()
    for number in range(60):
        left = [("left", -1, 0.2, 0.3)] if number % 4 == 0 else []
        graph.observe(run(number, "e", ("a", -1, 0.1, 0.1), *left), float(number))
    graph.declare(named("e"), [named("left")], 128, 0.0)
    graph.declare(named("left"), [named("fresh")], 128, 0.0)
    before = shown(predict(graph, named("e")))["fresh"]
    after = shown(predict(graph, named("e"), [named("left")]))["fresh"]
    assert after.reach == pytest.approx(20.0 / (20.0 + after.weight))
    assert before.reach < 0.6 * 20.0 / (20.0 + before.weight)


def jittered(runs, seed=2):
    """e calls a after 1 s give or take a lot, b always 0.2 s after a, and c 2 s after it started."""
    graph, source = CallGraph(), random.Random(seed)
    for number in range(runs):
        first = source.uniform(0.5, 1.5)
        graph.observe(run(number, "e", ("a", -1, first, 0.1), ("b", -1, first + 0.2, 0.1), ("c", -1, 2.0, 0.1)), float(number))
    return graph


def test_times_are_measured_from_the_stage_that_tells_most():
    graph = jittered(80)
    plain = shown(predict(graph, named("e"), [named("a")]))
    assert max(plain["b"].offsets_s) - min(plain["b"].offsets_s) > 0.8
    told = shown(predict(graph, named("e"), [named("a")], seen_at_s=[4.0]))  # this run is late
    assert told["b"].offsets_s == pytest.approx((4.2,) * 64, abs=1e-5)
    after = shown(predict(graph, named("e"), [named("a"), named("b")], seen_at_s=[1.0, 1.2]))
    assert len(after["c"].offsets_s) == 64
    with pytest.raises(ValueError, match="seen_at_s: one time for each of the 2 stages"):
        predict(graph, named("e"), [named("a"), named("b")], seen_at_s=[1.0])


def test_runs_that_reached_a_branch_are_told_apart():
    expected = shown(predict(branching(64), named("e")))
    left, right = (int.from_bytes(expected[name].in_runs, "big") for name in ("left", "right"))
    assert left & right == 0
    assert (left | right).bit_count() == 64
    assert expected["leaf"].in_runs == expected["left"].in_runs
    taken = shown(predict(branching(120), named("e"), [named("a"), named("right")]))
    assert taken["end"].in_runs


def test_start_times_are_those_of_the_tier():
    graph = branching(30)
    for _ in range(5):
        graph.set_start_time(named("left"), 0.02, "process/tier1")
        graph.set_start_time(named("left"), 0.5, "process/origin")
        graph.set_start_time(named("left"), 0.003, "process/standby")
    there = shown(predict(graph, named("e"), tiers={named("left"): "process/tier1"}))["left"]
    away = shown(predict(graph, named("e"), tiers={named("left"): "process/origin"}))["left"]
    assert (there.start_s, away.start_s) == pytest.approx((0.02, 0.5))
    assert len(there.starts_s) == 5
    assert there.standby_s == pytest.approx(0.003)
    assert shown(predict(graph, named("e")))["right"].standby_s is None
    for number in range(20):
        graph.set_start_time(named("left"), 0.1, f"made-up/{number}")
    assert len(graph.starts(named("left")).of_tier) == 8
