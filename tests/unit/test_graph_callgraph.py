"""CallGraph: learning, declaring, forgetting, bounds."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graph.callgraph import Bounds, CallGraph
from graph.calls import Call, Trace
from graph.ids import function_id


def named(name):
    return function_id("t", name)


def run(number, entry, *calls, **more):
    """calls: (callee, index of the caller or -1, offset, duration[, wait])."""
    names, built = [named(entry)], []
    for callee, caller_index, offset, duration, *wait in calls:
        built.append(Call(names[caller_index + 1], named(callee), caller_index, offset, duration, *wait))
        names.append(named(callee))
    return Trace("t", f"{number:032x}", named(entry), 1.0, tuple(built), **more)


def edge(graph, caller, callee):
    return next((e for e in graph.edges("t") if (e.caller, e.callee) == (named(caller), named(callee))), None)


def test_an_edge_counts_runs_of_the_caller_and_calls_per_run():
    graph = CallGraph()
    for number in range(10):
        pay = [("pay", -1, 0.2, 0.1), ("pay", -1, 0.4, 0.1)] if number % 2 else []
        graph.observe(run(number, "shop", ("cart", -1, 0.1, 0.05), *pay), float(number), decay=False)
    cart, pay = edge(graph, "shop", "cart"), edge(graph, "shop", "pay")
    assert (cart.probability, cart.fan_out, cart.weight, cart.traces, cart.source) == (1.0, 1.0, 10.0, 10, "learned")
    assert (pay.probability, pay.fan_out, pay.traces) == (pytest.approx(0.5), pytest.approx(2.0), 5)
    assert pay.offset_p50_s == pytest.approx(0.2)


def test_reach_is_a_fraction_of_the_entrys_runs_and_not_a_product_of_edges():
    graph = CallGraph()
    for number in range(40):  # b is called only when a was, and c only when b was: 1/2 each, not 1/2, 1/4, 1/8
        chain = [("a", -1, 0.1, 0.3), ("b", 0, 0.2, 0.2), ("c", 1, 0.3, 0.1)] if number % 2 else []
        graph.observe(run(number, "e", *chain), float(number), decay=False)
    reach = graph.reach(named("e"))
    assert [reach.share(named(name)) for name in "abc"] == pytest.approx([0.5, 0.5, 0.5])
    assert edge(graph, "a", "b").probability == 1.0


def test_every_function_is_an_entry_of_its_own():
    graph = CallGraph()
    for number in range(4):
        graph.observe(run(number, "e", ("a", -1, 0.1, 0.5), ("b", 0, 0.3, 0.1)), float(number))
    assert graph.reach(named("a")).share(named("b")) == pytest.approx(1.0)
    assert graph.reach(named("a")).reached[named("b")].offsets.samples() == pytest.approx([0.2] * 4)
    assert graph.entries("t") == [named("e")]
    assert graph.functions("t") == [named("a"), named("b"), named("e")]
    assert graph.reachable(named("e")) == {named("a"), named("b")}


def test_recursion_is_an_edge_but_no_reach_of_itself():
    graph = CallGraph()
    for number in range(5):
        graph.observe(run(number, "fib", ("fib", -1, 0.1, 0.5), ("fib", 0, 0.2, 0.1)), float(number), decay=False)
    assert edge(graph, "fib", "fib").probability == pytest.approx(2 / 3)
    assert graph.reach(named("fib")).reached == {}


def test_an_edge_that_stops_fades_within_200_runs_and_a_declared_one_too():
    graph = CallGraph()
    graph.declare(named("e"), [named("old"), named("never")], 128, 0.0)
    for number in range(300):
        graph.observe(run(number, "e", ("old", -1, 0.1, 0.1)), float(number))
    assert edge(graph, "e", "old").probability > 0.99
    for number in range(300, 500):
        graph.observe(run(number, "e", ("new", -1, 0.1, 0.1)), float(number))
    assert edge(graph, "e", "old").probability < 0.05
    assert edge(graph, "e", "never").probability < 0.05
    assert edge(graph, "e", "new").probability > 0.95


def test_declared_calls_are_certain_before_any_trace():
    graph = CallGraph()
    graph.declare(named("e"), [named("a")], 256, 1.0)
    graph.declare(named("a"), [named("e"), named("missing")], 128, 1.0)
    assert (edge(graph, "e", "a").probability, edge(graph, "e", "a").source) == (1.0, "declared")
    assert graph.deployed(named("a"))
    assert not graph.deployed(named("missing"))
    assert graph.memory_mb(named("e")) == 256
    assert dict(graph.declared_calls(named("a"))) == {named("e"): 20.0, named("missing"): 20.0}
    with pytest.raises(ValueError, match="calls: 'u/b'"):
        graph.declare(named("e"), ["u/b"], 128, 1.0)


def test_a_new_declaration_replaces_the_old_and_does_not_renew_it():
    graph = CallGraph()
    graph.declare(named("e"), [named("a"), named("b")], 128, 0.0)
    for number in range(50):
        graph.observe(run(number, "e", ("b", -1, 0.1, 0.1)), float(number))
    graph.declare(named("e"), [named("b"), named("c")], 128, 60.0)
    assert edge(graph, "e", "a") is None
    assert named("a") not in graph.functions("t")
    weights = dict(graph.declared_calls(named("e")))
    assert weights[named("b")] == pytest.approx(10.0)
    assert weights[named("c")] == 20.0
    graph.declare(named("e"), [], 128, 61.0)
    assert edge(graph, "e", "b").source == "learned"


def test_what_is_forgotten_is_gone_everywhere_but_where_others_declare_it():
    graph = CallGraph()
    graph.declare(named("e"), [named("a")], 128, 0.0)
    graph.declare(named("a"), [named("b")], 128, 0.0)
    for number in range(5):
        graph.observe(run(number, "e", ("a", -1, 0.1, 0.5), ("b", 0, 0.3, 0.1)), float(number))
    graph.forget(named("a"))
    assert not graph.deployed(named("a"))
    assert edge(graph, "e", "a").source == "declared"
    assert edge(graph, "a", "b") is None
    assert named("a") not in graph.reach(named("e")).reached
    graph.forget(named("e"))
    assert named("a") not in graph.functions("t")
    assert graph.functions("t") == [named("b")]
    graph.forget(named("nobody"))


def test_start_times_are_kept_per_function():
    graph = CallGraph()
    graph.declare(named("e"), [], 128, 0.0)
    assert graph.start_s(named("e")) == 0.1
    graph.set_start_time(named("e"), 0.5)
    assert graph.start_s(named("e")) == 0.5
    graph.set_start_time(named("nobody"), 0.5)
    assert graph.functions("t") == [named("e")]


def test_tenants_do_not_see_each_other():
    graph = CallGraph()
    graph.observe(run(1, "e", ("a", -1, 0.1, 0.1)), 1.0)
    assert graph.edges("u") == []
    assert graph.functions("u") == []
    assert graph.entries("u") == []
    assert graph.reachable("u/e") == set()
    assert graph.reach("u/e") is None
    assert graph.declared_calls("u/e") == []


@pytest.mark.parametrize(
    ("trace", "names"),
    [
        (Trace("t", "1", "u/e", 1.0), "entry"),
        (Trace("t", "1", "t/e", 1.0, (Call("t/e", "u/a", -1, 0.0, 0.1),)), r"calls\[0\].callee"),
        (Trace("t", "1", "t/e", 1.0, (Call("t/e", "t/a", 0, 0.0, 0.1),)), r"calls\[0\].caller_index"),
        (Trace("t", "1", "t/e", 1.0, (Call("t/x", "t/a", -1, 0.0, 0.1),)), r"calls\[0\].caller:"),
    ],
)
def test_a_trace_that_contradicts_itself_is_refused_and_teaches_nothing(trace, names):
    graph = CallGraph()
    with pytest.raises(ValueError, match=names):
        graph.observe(trace, 1.0)
    assert graph.functions("t") == []


def test_a_refused_entry_teaches_nothing():
    graph = CallGraph()
    graph.observe(run(1, "e", ran=False), 1.0)
    assert graph.functions("t") == []


def test_the_graph_stays_within_its_bounds_and_keeps_what_is_declared_and_recent():
    bounds = Bounds(functions=60, functions_per_entry=8, records=100, calls_per_trace=50)
    graph = CallGraph(bounds)
    graph.declare(named("kept"), [named("callee")], 128, 0.0)
    source = random.Random(5)
    for number in range(300):
        calls = [(f"f{source.randrange(500)}", -1, 0.01 * n, 0.1) for n in range(source.randrange(12))]
        graph.observe(run(number, f"e{number}", *calls), float(number))
        graph.observe(run(number, "busy", *calls), float(number))
        held = graph.tenants["t"]
        assert len(held.functions) <= bounds.functions
        assert held.records <= bounds.records
        assert all(len(each.reach.reached) <= 8 for each in held.functions.values())
        for each in held.functions.values():
            columns = [reached.column for reached in each.reach.reached.values()]
            assert len(set(columns)) == len(columns)
        assert held.network.number_of_nodes() == len(held.functions)
        counted = held.network.number_of_edges() + sum(len(each.reach.reached) for each in held.functions.values())
        assert counted == held.records
    assert edge(graph, "kept", "callee").probability == 1.0
    assert named("e299") in graph.functions("t")
    assert named("e5") not in graph.functions("t")


def test_of_a_long_trace_the_first_calls_are_used():
    graph = CallGraph(Bounds(calls_per_trace=3))
    graph.observe(run(1, "e", *[(f"f{n}", -1, 0.1 * n, 0.1) for n in range(9)]), 1.0)
    assert len(graph.functions("t")) == 4


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 5), st.integers(-1, 8), st.floats(0, 1), st.floats(0, 1)), max_size=8),
        min_size=1,
        max_size=12,
    )
)
def test_whatever_shape_the_traces_have_shares_are_fractions_of_runs(shapes):
    graph, expected = CallGraph(), {}
    for number, shape in enumerate(shapes):
        calls = [(f"f{f}", min(caller, index - 1), offset, length) for index, (f, caller, offset, length) in enumerate(shape)]
        graph.observe(run(number, "e", *calls), float(number), decay=False)
        for function in {f"f{f}" for f, *_ in shape}:
            expected[function] = expected.get(function, 0) + 1
    reach = graph.reach(named("e"))
    for function, count in expected.items():
        assert reach.share(named(function)) == pytest.approx(count / len(shapes))
    assert all(0.0 <= e.probability <= 1.0 and e.fan_out >= 1.0 for e in graph.edges("t"))


def test_a_run_of_a_callee_sees_everything_below_it():
    graph = CallGraph()
    for number in range(3):
        chain = [(name, index - 1, 0.1 * index, 1.0) for index, name in enumerate("abcdef")]
        graph.observe(run(number, "e", *chain), float(number))
    assert set(graph.reach(named("b")).reached) == {named(name) for name in "cdef"}
    assert graph.reach(named("b")).share(named("f")) == pytest.approx(1.0)


def test_places_of_forgotten_functions_are_used_again_and_hold_nothing_of_them():
    graph = CallGraph(Bounds(functions_per_entry=8))
    for number in range(400):
        graph.observe(run(number, "e", ("always", -1, 0.1, 0.1), (f"once{number}", -1, 0.2, 0.1)), float(number))
    assert graph.reach(named("e")).recent.width == 8
    graph = CallGraph()
    for number in range(20):
        graph.observe(run(number, "e", ("a", -1, 0.1, 0.1), ("old", -1, 0.2, 0.1)), float(number))
    graph.forget(named("old"))
    graph.observe(run(20, "e", ("a", -1, 0.1, 0.1), ("new", -1, 0.2, 0.1)), 20.0)
    known = graph.reach(named("e")).given([named("a")])
    assert known.runs == 21
    assert known.shares[named("new")] < 0.2
