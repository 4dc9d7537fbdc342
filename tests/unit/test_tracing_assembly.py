"""Spans of any origin into traces: halves, skew, orphans, duplicates, late ones; and our own records."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graph.callgraph import CallGraph
from graph.calls import StartKind
from graph.ids import TenantId
from tracing.assembly import Assembler, AssemblyBounds, assemble, records_to_trace, traces_of
from tracing.invocations import NAME_LIMIT
from tracing.records import InvocationRecord, Timings
from tracing.spans import Span, SpanKind

T = TenantId("t")
ID = "a" * 32
MS = 1_000_000
EPOCH = 1_700_000_000_000  # ms; times in these tests are after it


def span(identity, parent, service, name, kind, start_ms, end_ms, trace_id=ID, **more):
    """Without a time (None) the span does not say when."""
    start, end = (0 if at is None else int((EPOCH + at) * MS) for at in (start_ms, end_ms))
    return Span(trace_id, identity, parent, service, name, SpanKind[kind.upper()], start, end, **more)


def call_shape(trace):
    return [
        (c.caller.partition("/")[2], c.callee.partition("/")[2], c.caller_index, round(c.offset_s * 1000, 3)) for c in trace.calls
    ]


SHOP = [
    span("1", "", "shop", "/buy", "server", 100, 200),
    span("2", "1", "shop", "Controller.buy", "internal", 101, 199),
    span("3", "2", "shop", "HTTP POST", "client", 110, 150),
    span("4", "3", "pay", "/charge", "server", 115, 145),
    span("5", "4", "pay", "SELECT", "client", 120, 125),
    span("6", "2", "shop", "HTTP GET", "client", 160, 190),
    span("7", "6", "mail", "/send", "server", 165, 185),
]


def test_spans_between_caller_and_callee_belong_to_the_caller_and_times_are_the_callers():
    trace, dropped = assemble(T, SHOP)
    assert (trace.entry, trace.trace_id, trace.duration_s) == ("t/shop/buy", ID, 0.1)
    assert call_shape(trace) == [("shop/buy", "pay/charge", -1, 10.0), ("shop/buy", "mail/send", -1, 60.0)]
    assert [round(c.duration_s * 1000) for c in trace.calls] == [40, 30]
    assert not dropped


@given(st.permutations(SHOP), st.lists(st.sampled_from(SHOP), max_size=5))
def test_order_and_duplicates_do_not_matter(spans, again):
    trace, dropped = assemble(T, [*spans, *again])
    assert trace == assemble(T, SHOP)[0]
    assert dropped.total() == dropped["duplicate"] == len(again)


@given(st.integers(-3_600_000, 3_600_000), st.integers(-3_600_000, 3_600_000))
def test_skewed_clocks_do_not_move_a_call(pay_ms, mail_ms):
    """Each service's clock is off by its own amount; the calls of pay itself still hang where pay's work was."""
    moved = []
    for each in [*SHOP, span("8", "4", "pay", "HTTP GET", "client", 130, 140), span("9", "8", "bank", "/b", "server", 132, 138)]:
        by = {"pay": pay_ms, "mail": mail_ms}.get(each.service, 0) * MS
        moved.append(
            Span(
                each.trace_id,
                each.span_id,
                each.parent_id,
                each.service,
                each.name,
                each.kind,
                each.start_ns + by,
                each.end_ns + by,
            )
        )
    trace, _ = assemble(T, moved)
    offsets = {callee: offset for _, callee, _, offset in call_shape(trace)}
    assert offsets["pay/charge"] == 10.0
    assert offsets["mail/send"] == 60.0
    assert offsets["bank/b"] == pytest.approx(30.0, abs=5.0 + 1e-6)  # at most the way there and back of pay is unknown


def test_halves_that_share_one_id_are_one_call():
    spans = [
        span("1", "", "a", "/a", "server", 0, 100),
        span("2", "1", "a", "get b", "client", 10, 50),
        span("2", "1", "b", "/b", "server", 12, 48),
        span("3", "2", "b", "get c", "client", 20, 30),
        span("3", "2", "c", "/c", "server", 21, 29),
    ]
    trace, dropped = assemble(T, spans)
    assert call_shape(trace) == [("a/a", "b/b", -1, 10.0), ("b/b", "c/c", 0, 20.0)]
    assert not dropped


def test_without_a_callers_half_the_callees_own_times_are_taken_and_never_negative():
    spans = [span("1", "", "a", "/a", "server", 100, 200), span("2", "1", "b", "/b", "server", 90, 120)]
    trace, _ = assemble(T, spans)
    assert call_shape(trace) == [("a/a", "b/b", -1, 0.0)]


def test_orphans_second_roots_and_cycles_are_dropped_by_reason():
    spans = [
        *SHOP,
        span("20", "gone", "x", "/x", "server", 120, 130),
        span("21", "20", "x", "inner", "internal", 121, 129),
        span("30", "", "y", "/y", "server", 100, 110),
        span("40", "41", "z", "/z", "server", 100, 110),
        span("41", "40", "z", "in", "internal", 100, 110),
        span("50", "50", "z", "/z", "server", 100, 110),
    ]
    trace, dropped = assemble(T, spans)
    assert trace == assemble(T, SHOP)[0]
    assert dropped == {"orphan": 2, "second root": 1, "cycle": 3}


def test_of_two_roots_the_one_with_more_below_it_is_the_trace():
    stray = span("30", "", "y", "/y", "server", 1, 2)
    trace, dropped = assemble(T, [stray, *SHOP])
    assert (trace.entry, dropped) == ("t/shop/buy", {"second root": 1})


def test_when_the_root_never_came_the_largest_tree_is_the_trace():
    trace, dropped = assemble(T, [*SHOP[3:5], *SHOP[6:]])
    assert trace.entry == "t/pay/charge"
    assert dropped == {"orphan": 1}
    assert assemble(T, []) == (None, {})
    assert assemble(T, [span("1", "1", "a", "/a", "server", 0, 1)])[0] is None


def test_a_trace_that_starts_with_a_callers_half_is_about_the_callee():
    spans = [
        span("1", "", "browser", "HTTP GET", "client", 0, 100),
        span("2", "1", "a", "/a", "server", 10, 90),
        span("3", "2", "a", "HTTP GET", "client", 30, 60),
        span("4", "3", "b", "/b", "server", 31, 59),
    ]
    trace, _ = assemble(T, spans)
    assert (trace.entry, trace.duration_s) == ("t/a/a", 0.08)
    assert call_shape(trace) == [("a/a", "b/b", -1, 20.0)]
    script, _ = assemble(T, [*spans, span("5", "1", "b", "/b", "server", 91, 99)])
    assert script.entry == "t/browser/HTTP GET"
    assert len(script.calls) == 3


def test_a_message_is_a_call_that_may_begin_long_after_it_was_sent():
    spans = [
        span("1", "", "food", "/order", "server", 0, 50),
        span("2", "1", "food", "queue send", "producer", 20, 22),
        span("3", "2", "delivery", "queue process", "consumer", 400, 420),
        span("4", "3", "delivery", "HTTP GET", "client", 405, 415),
        span("5", "4", "map", "/route", "server", 406, 414),
    ]
    trace, _ = assemble(T, spans)
    assert call_shape(trace) == [
        ("food/order", "delivery/queue process", -1, 20.0),
        ("delivery/queue process", "map/route", 0, 405.0),
    ]


def test_recursion_and_a_frameworks_second_span_are_told_apart():
    own = {"function": "fib", "start": StartKind.WARM}
    recursion, _ = assemble(
        T, [span("1", "", "fib", "fib", "server", 0, 9, **own), span("2", "1", "fib", "fib", "server", 1, 8, **own)]
    )
    assert call_shape(recursion) == [("fib", "fib", -1, 1.0)]
    doubled, _ = assemble(T, [span("1", "", "web", "/x", "server", 0, 9), span("2", "1", "web", "/x", "server", 1, 8)])
    assert doubled.calls == ()
    through, _ = assemble(
        T,
        [
            span("1", "", "web", "/x", "server", 0, 9),
            span("2", "1", "web", "HTTP GET", "client", 1, 8),
            span("3", "2", "web", "/x", "server", 2, 7),
        ],
    )
    assert call_shape(through) == [("web/x", "web/x", -1, 1.0)]


def test_spans_without_kinds_are_calls_where_the_service_changes():
    spans = [
        span("1", "", "a", "a", "unspecified", 0, 100),
        span("2", "1", "a", "inner", "unspecified", 10, 90),
        span("3", "2", "b", "b", "unspecified", 20, 80),
    ]
    assert call_shape(assemble(T, spans)[0]) == [("a/a", "b/b", -1, 20.0)]


def test_a_call_only_its_caller_told_of_counts_when_it_names_the_function():
    spans = [
        span("1", "", "a", "/a", "server", 0, 100),
        span("2", "1", "a", "Invoke", "client", 10, 40, invoked="resize"),
        span("3", "1", "a", "Invoke", "client", 50, 90, invoked="store"),
        span("4", "3", "store", "store", "server", 51, 89, function="store"),
        span("5", "1", "a", "SELECT", "client", 91, 92),
    ]
    trace, _ = assemble(T, spans)
    assert sorted(call_shape(trace)) == [("a/a", "resize", -1, 10.0), ("a/a", "store", -1, 50.0)]


def test_names_are_at_most_255_characters_and_stay_distinct():
    long = "x" * 400
    one, _ = assemble(T, [span("1", "", "s", long + "1", "server", 0, 1)])
    two, _ = assemble(T, [span("1", "", "s", long + "2", "server", 0, 1)])
    assert one.entry != two.entry
    assert len(one.entry) == len("t/") + NAME_LIMIT
    nameless, _ = assemble(T, [span("1", "", "", "/", "server", 0, 1)])
    assert nameless.entry == "t/unknown/"


def test_imported_heaps_are_told_apart_and_come_in_order_of_time():
    later = [span("1", "", "b", "/b", "server", 500, 600, trace_id="b" * 32)]
    traces, dropped = traces_of(T, [*later, *SHOP, SHOP[0]])
    assert [trace.entry for trace in traces] == ["t/shop/buy", "t/b/b"]
    assert dropped == {"duplicate": 1}


tops = st.sampled_from(["server", "client", "internal", "unspecified", "producer", "consumer"])


@settings(max_examples=300)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 8),
            st.integers(-1, 8),
            st.sampled_from("abc"),
            tops,
            st.integers(-50, 200),
            st.integers(-5, 100),
            st.booleans(),
        ),
        max_size=14,
    )
)
def test_any_heap_of_spans_is_a_trace_the_graph_takes(told):
    spans = [
        span(
            str(own),
            "" if parent < 0 else str(parent),
            service,
            service,
            kind,
            start,
            start + length,
            invoked="f" if named else "",
        )
        for own, parent, service, kind, start, length, named in told
    ]
    trace, dropped = assemble(T, spans)
    assert dropped.total() <= len(spans)
    if trace is None:
        assert dropped.total() == len(spans)
        return
    graph = CallGraph()
    graph.observe(trace, 1.0)
    assert graph.entries(T) == [trace.entry]
    assert all(call.offset_s >= 0.0 and call.duration_s >= 0.0 for call in trace.calls)
    assert all(edge.offset_p50_s >= 0.0 for edge in graph.edges(T))


# -- as they come in


def test_a_trace_with_its_root_settles_after_a_pause():
    assembler = Assembler()
    assert assembler.add(T, SHOP[3:], 100.0) == 4
    assert assembler.add(T, SHOP[:3], 103.0) == 3
    assert assembler.settled(106.0) == []
    (trace,) = assembler.settled(109.5)
    assert trace == assemble(T, SHOP)[0]
    assert len(assembler) == 0
    assert assembler.add(T, SHOP[:1], 110.0) == 0
    assert assembler.dropped == {"late": 1}
    assert assembler.settled(1000.0) == []


def test_a_trace_without_its_root_is_waited_for_longer_and_no_trace_for_ever():
    bounds = AssemblyBounds(idle_s=5, rootless_s=50, age_s=200)
    assembler = Assembler(bounds)
    assembler.add(T, SHOP[3:5], 0.0)
    assert assembler.settled(40.0) == []
    assert [trace.entry for trace in assembler.settled(51.0)] == ["t/pay/charge"]
    other = [Span(**{f: getattr(each, f) for f in Span.__struct_fields__} | {"trace_id": "b" * 32}) for each in SHOP]
    assembler.add(T, other, 100.0)
    for second in range(101, 300, 3):  # something keeps coming
        assembler.add(T, [span(f"{second}", "1", "shop", "more", "internal", 0, 1, trace_id="b" * 32)], float(second))
        assert assembler.settled(float(second)) == []
    assert len(assembler.settled(301.0)) == 1


def test_a_root_that_comes_late_is_not_waited_for_as_if_it_had_not():
    assembler = Assembler(AssemblyBounds(idle_s=5, rootless_s=500))
    assembler.add(T, SHOP[3:], 0.0)
    assert assembler.settled(20.0) == []
    assembler.add(T, SHOP[:3], 21.0)
    assert len(assembler.settled(26.5)) == 1


def test_memory_is_bounded_per_trace_per_tenant_and_in_all():
    bounds = AssemblyBounds(spans_per_trace=5, spans_per_tenant=12, spans=20, finished=2)
    assembler = Assembler(bounds)

    def spans(trace, count):
        return [span(str(n), "", "s", "/s", "server", 0, 1, trace_id=f"{trace:032x}") for n in range(count)]

    assert assembler.add(T, spans(1, 8), 0.0) == 5
    assert assembler.add(T, spans(2, 5) + spans(3, 5), 0.0) == 7
    assert assembler.add(TenantId("u"), [*spans(1, 5), *spans(2, 5)], 0.0) == 8
    assert assembler.dropped == {"trace too long": 3, "too many spans": 5}
    assert len(assembler) == 20
    assert len(assembler.settled(100.0)) == 5
    assert len(assembler) == 0
    assert assembler.add(T, spans(1, 1), 101.0) == 1  # forgotten that it was complete: only so many ids are kept


def test_tenants_do_not_share_traces_and_have_their_own_names():
    names = {T: {"shop/buy": "buy"}}
    assembler = Assembler(names=names)
    assembler.add(T, SHOP, 0.0)
    assembler.add(TenantId("u"), SHOP[:1], 0.0)
    assert [trace.entry for trace in assembler.settled(10.0)] == ["t/buy", "u/shop/buy"]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 6), st.floats(0.0, 8.0)), max_size=40))
def test_every_span_is_kept_then_used_or_counted(arrivals):
    assembler, now, kept, used = Assembler(AssemblyBounds(rootless_s=10)), 0.0, 0, 0
    for trace, which, pause in arrivals:
        now += pause
        each = SHOP[which]
        moved = span(each.span_id, each.parent_id, each.service, each.name, each.kind.name, 0, 1, trace_id=f"{trace:032x}")
        kept += assembler.add(T, [moved], now)
        used += len(assembler.settled(now))
    used += len(assembler.settled(now + 1000.0))
    assert len(assembler) == 0
    assert kept + assembler.dropped["late"] == len(arrivals)
    assert used <= kept


# -- our own records


def record(identity, parent, function, sent, ended, wait_ms=0.0, status="ok", start=StartKind.WARM, **more):
    timings = Timings(clone=wait_ms, run=1.0)
    return InvocationRecord("t", ID, identity, parent, f"t/{function}", 1, sent, ended, start, status, timings, **more)


def test_records_become_a_trace_with_waits():
    now = 1_700_000_000.0
    records = [
        record("3", "2", "bank", now + 1.3, now + 1.4),
        record("1", "", "shop", now, now + 2.0, wait_ms=500.0, start=StartKind.COLD),
        record("2", "1", "pay", now + 0.6, now + 1.8, wait_ms=600.0, start=StartKind.COLD, status="error"),
    ]
    trace = records_to_trace(records)
    assert (trace.entry, trace.wait_s, trace.failed, trace.ran) == ("t/shop", 0.5, False, True)
    assert trace.duration_s == pytest.approx(2.0, abs=1e-5)
    assert [(c.caller, c.callee, c.caller_index, c.wait_s, c.start, c.failed) for c in trace.calls] == [
        ("t/shop", "t/pay", -1, 0.6, StartKind.COLD, True),
        ("t/pay", "t/bank", 0, 0.0, StartKind.WARM, False),
    ]
    assert [c.offset_s for c in trace.calls] == pytest.approx([0.6, 1.3], abs=1e-5)
    graph = CallGraph()
    graph.observe(trace, now)
    assert graph.reach("t/shop").reached["t/bank"].offsets.samples()[0] == pytest.approx(0.2, abs=1e-5)


def test_a_refused_entry_is_marked_and_a_refused_callee_counts():
    assert not records_to_trace([record("1", "", "shop", 1.0, 2.0, status="refused")]).ran
    trace = records_to_trace([record("1", "", "shop", 1.0, 2.0), record("2", "1", "pay", 1.1, 1.2, status="refused")])
    assert trace.ran
    assert trace.calls[0].failed


def test_records_of_no_or_several_runs_are_refused():
    with pytest.raises(ValueError, match="at least one"):
        records_to_trace([])
    other = InvocationRecord("t", "b" * 32, "1", "", "t/shop", 1, 1.0, 2.0, StartKind.WARM, "ok", Timings())
    with pytest.raises(ValueError, match="2 runs"):
        records_to_trace([record("1", "", "shop", 1.0, 2.0), other])
    with pytest.raises(ValueError, match="ancestor"):
        records_to_trace([record("1", "1", "shop", 1.0, 2.0)])
