"""The learned state survives being written down."""

from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graph.callgraph import CallGraph
from graph.calls import Call, Trace
from graph.ids import function_id
from graph.prediction import predict
from graph.snapshot import FORMAT, VERSION, SnapshotError, dump, load

names = st.sampled_from([f"f{n}" for n in range(8)])
shapes = st.lists(st.tuples(names, st.integers(-1, 6), st.floats(0.0, 2.0), st.floats(0.0, 2.0)), max_size=8)
steps = st.one_of(
    st.tuples(st.just("trace"), names, shapes, st.booleans()),
    st.tuples(st.just("declare"), names, st.lists(names, max_size=3), st.just(False)),
    st.tuples(st.just("start"), names, st.just([]), st.just(False)),
    st.tuples(st.just("forget"), names, st.just([]), st.just(False)),
)


def apply(graph, number, step):
    what, name, rest, decay = step
    function = function_id("t", name)
    if what == "trace":
        functions, calls = [function], []
        for index, (callee, wished, offset, duration) in enumerate(rest):
            caller = min(wished, index - 1)
            calls.append(Call(functions[caller + 1], function_id("t", callee), caller, offset, duration))
            functions.append(function_id("t", callee))
        graph.observe(Trace("t", f"{number:032x}", function, 1.0, tuple(calls)), float(number), decay)
    elif what == "declare":
        graph.declare(function, [function_id("t", callee) for callee in rest], 256, float(number))
    elif what == "start":
        graph.set_start_time(function, 0.25)
    else:
        graph.forget(function)


def state(graph):
    return (graph.edges("t"), graph.entries("t"), [(f, graph.start_s(f), predict(graph, f)) for f in graph.functions("t")])


@settings(max_examples=60, deadline=None)
@given(st.lists(steps, max_size=25), st.lists(steps, max_size=8))
def test_a_restored_graph_knows_the_same_and_goes_on_the_same(before, after):
    graph = CallGraph()
    for number, step in enumerate(before):
        apply(graph, number, step)
    restored = load(dump(graph))
    assert state(restored) == state(graph)
    assert dump(restored) == dump(graph)
    for number, step in enumerate(after, start=100):
        apply(graph, number, step)
        apply(restored, number, step)
    assert dump(restored) == dump(graph)
    for tenant, held in restored.tenants.items():
        assert held.records == graph.tenants[tenant].records


def test_a_newer_version_is_refused_with_a_way_out():
    newer = msgspec.msgpack.encode({"format": FORMAT, "version": VERSION + 1, "tenants": [["something", "else"]]})
    with pytest.raises(SnapshotError, match=f"version {VERSION + 1}, this program reads up to {VERSION}.*remove it"):
        load(newer)


def test_fields_a_later_program_added_are_skipped():
    later = msgspec.msgpack.decode(dump(CallGraph())) | {"added": [1, 2]}
    assert load(msgspec.msgpack.encode(later)).tenants == {}


@pytest.mark.parametrize(
    "damaged",
    [b"", b"\xff\x00garbage", msgspec.msgpack.encode([1, 2]), msgspec.msgpack.encode({"format": "other", "version": 1})],
)
def test_what_is_no_snapshot_is_said_so(damaged):
    with pytest.raises(SnapshotError, match="empty graph"):
        load(damaged)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_damaged_byte_is_found(at, flip):
    graph = CallGraph()
    for number in range(4):
        apply(graph, number, ("trace", "f1", [("f2", -1, 0.1, 0.2), ("f3", 0, 0.2, 0.1)], True))
    damaged = bytearray(dump(graph))
    damaged[at % len(damaged)] ^= flip
    with pytest.raises(SnapshotError):
        load(bytes(damaged))
    with pytest.raises(SnapshotError):
        load(bytes(damaged[: at % len(damaged)]))


OLDER = Path(__file__).parents[1] / "data" / "callgraph" / "version-1.msgpack"
"""Written before start times were kept by tier and before the latest runs had times: 40 runs of e, which calls a and then either
left and leaf, or right; e declares a and later; a took 0.25 and 0.35 s to start."""


def test_what_an_earlier_program_wrote_is_read_and_learned_on():
    graph = load(OLDER.read_bytes())
    entry, first, left, leaf = (function_id("t", name) for name in ("e", "a", "left", "leaf"))
    told = {call.function: call for call in predict(graph, entry)}
    assert told[first].start_s == pytest.approx(0.27)
    assert told[first].starts_s == ()
    assert told[leaf].reach == pytest.approx(0.4, abs=0.1)
    later = {call.function: call for call in predict(graph, entry, [first, left], seen_at_s=[0.1, 0.25])}
    assert later[leaf].reach > 0.85
    assert later[leaf].offsets_s == told[leaf].offsets_s  # no run with times: as they are from the entry on
    for number in range(40, 60):
        calls = (
            Call(entry, first, -1, 0.1, 0.05),
            Call(entry, left, -1, 0.2, 0.3),
            Call(left, leaf, 1, 0.3, 0.1),
        )
        graph.observe(Trace("t", f"{number:032x}", entry, 0.6, calls), float(number))
    graph.set_start_time(first, 0.5, "process/tier1")
    graph = load(dump(graph))
    later = {call.function: call for call in predict(graph, entry, [first, left], seen_at_s=[0.1, 0.25])}
    assert later[leaf].offsets_s == pytest.approx((0.35,) * 20, abs=1e-6)  # moved with the stage before it
    assert graph.starts(first).samples("process/tier1") == (0.5,)
    assert graph.start_s(first) == pytest.approx(0.27 + 0.2 * 0.23)
