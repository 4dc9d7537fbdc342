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
    itself = [spans[0], spans[1], span("2", "1", "a", "/b", "server", 12, 48)]
    assert call_shape(assemble(T, itself)[0]) == [("a/a", "a/b", -1, 10.0)], "a service may call itself"


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


def test_tries_under_one_id_are_one_call_each_and_reports_of_one_are_one():
    def answer(start, end, service="b"):
        return span("2", "1", service, "/b", "server", start, end)

    caller = [span("1", "", "a", "/a", "server", 0, 100), span("2", "1", "a", "get b", "client", 10, 90)]
    again, dropped = assemble(T, [*caller, answer(12, 20), answer(30, 40), answer(31, 35), answer(12, None)])
    assert [callee for _, callee, _, _ in call_shape(again)] == ["b/b", "b/b"]
    assert dropped == {"duplicate": 2}
    hosts, _ = assemble(T, [*caller, answer(12, None), answer(13, None), answer(14, None)])
    assert len(hosts.calls) == 3, "they do not say how long they took: each is one of its own"
    others, _ = assemble(T, [*caller, answer(12, 20), answer(15, 25, "c")])
    assert sorted(callee for _, callee, _, _ in call_shape(others)) == ["b/b", "c/b"]


def test_a_part_of_a_report_without_kind_and_time_is_no_span_of_its_own():
    spans = [
        span("1", "", "a", "/a", "server", 0, 100),
        span("2", "1", "a", "get b", "client", 10, 50),
        span("2", "1", "b", "/b", "server", 12, 48),
        span("2", "1", "b", "/b", "unspecified", None, None),
        span("3", "2", "b", "get c", "client", 20, 30),
        span("3", "2", "c", "/c", "server", 21, 29),
    ]
    trace, dropped = assemble(T, spans)
    assert call_shape(trace) == [("a/a", "b/b", -1, 10.0), ("b/b", "c/c", 0, 20.0)]
    assert dropped == {"duplicate": 1}


def test_a_time_that_is_missing_is_taken_from_the_other_half_or_from_below_and_never_made_up():
    def calls(*spans):
        trace, dropped = assemble(T, [span("1", "", "a", "/a", "server", 100, 200), *spans])
        return call_shape(trace), dict(dropped)

    half = span("2", "1", "a", "get b", "client", 110, 150)
    untimed_half = span("2", "1", "a", "get b", "client", None, None)
    untimed = span("3", "2", "b", "/b", "server", None, None)
    below = [span("4", "3", "b", "get c", "client", 130, 140), span("5", "4", "c", "/c", "server", 131, 139)]
    assert calls(half, untimed)[0] == [("a/a", "b/b", -1, 10.0)]
    assert calls(half, untimed, *below)[0] == [("a/a", "b/b", -1, 10.0), ("b/b", "c/c", 0, 10.0)]
    assert calls(untimed_half, span("3", "2", "b", "/b", "server", 120, 140))[0] == [("a/a", "b/b", -1, 20.0)]
    assert calls(untimed_half, untimed, *below)[0][0] == ("a/a", "b/b", -1, 30.0)
    nothing = span("6", "3", "c", "/c", "server", None, None)
    assert calls(untimed_half, untimed, nothing) == ([], {"no time": 2})
    absurd = span("7", "1", "a", "get b", "client", 90_000_000_000, 90_000_000_001)
    assert calls(absurd, span("8", "7", "b", "/b", "server", None, None)) == ([], {"no time": 1})
    root, _ = assemble(T, [span("1", "", "a", "/a", "server", None, None), half, untimed])
    assert call_shape(root) == [("a/a", "b/b", -1, 0.0)], "it began at the latest when it first called"


def test_without_a_callers_half_a_call_is_sent_while_its_caller_ran():
    spans = [span("1", "", "a", "/a", "server", 100, 200), span("2", "1", "b", "/b", "server", 3_600_100, 3_600_120)]
    assert call_shape(assemble(T, spans)[0]) == [("a/a", "b/b", -1, 100.0)]


def test_another_service_inside_is_called_whatever_kind_its_span_has():
    spans = [
        span("1", "", "a", "/a", "server", 100, 200),
        span("2", "1", "a", "inner", "internal", 110, 190),
        span("3", "2", "b", "work", "internal", 120, 180),
        span("4", "3", "", "nobody says where", "internal", 130, 140),
    ]
    assert call_shape(assemble(T, spans)[0]) == [("a/a", "b/work", -1, 20.0)]


OTHER = "b" * 32


def taken_from_a_queue(trace_id=OTHER, link=(ID, "9"), start=300, ids="a"):
    """A consumer that begins a trace of its own, linked to SHOP's producer."""
    linked = {"link_trace": link[0], "link_span": link[1]}
    return [
        span(f"{ids}0", "", "pack", "queue process", "consumer", start, start + 20, trace_id=trace_id, **linked),
        span(f"{ids}1", f"{ids}0", "pack", "HTTP GET", "client", start + 5, start + 15, trace_id=trace_id),
        span(f"{ids}2", f"{ids}1", "stock", "/take", "server", start + 6, start + 14, trace_id=trace_id),
    ]


SENT = span("9", "2", "shop", "queue send", "producer", 170, 171)
QUEUED = [
    ("shop/buy", "pay/charge", -1, 10.0),
    ("shop/buy", "mail/send", -1, 60.0),
    ("shop/buy", "pack/queue process", -1, 70.0),
    ("pack/queue process", "stock/take", 2, 205.0),
]


@given(st.permutations([*SHOP, SENT, *taken_from_a_queue()]))
def test_a_trace_that_is_linked_to_another_is_a_part_of_it(spans):
    (trace,), dropped = traces_of(T, spans)
    assert (trace.trace_id, trace.entry) == (ID, "t/shop/buy")
    assert call_shape(trace) == QUEUED
    assert not dropped


def test_links_that_lead_nowhere_or_round_make_nothing_up():
    nowhere, _ = traces_of(T, [*SHOP, *taken_from_a_queue()])
    assert [trace.entry for trace in nowhere] == ["t/shop/buy", "t/pack/queue process"], "the span it is linked to never came"
    gone, _ = traces_of(T, taken_from_a_queue())
    assert [trace.entry for trace in gone] == ["t/pack/queue process"]
    ring = [*taken_from_a_queue(), *taken_from_a_queue(ID, (OTHER, "a0"))]
    ring[0] = span("a0", "", "pack", "queue process", "consumer", 300, 320, trace_id=OTHER, link_trace=ID, link_span="a0")
    assert len(traces_of(T, ring)[0]) == 2
    cron = [span("a0", "", "cron", "tick", "internal", 300, 320, trace_id=OTHER, link_trace=ID, link_span="9")]
    assert len(traces_of(T, [*SHOP, SENT, *cron])[0]) == 2, "nobody called it"
    within, _ = assemble(T, [*SHOP, SENT, *taken_from_a_queue(ID)])
    assert call_shape(within) == QUEUED, "a link within its trace stands for the parent that it does not name"


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


heaps = st.lists(
    st.tuples(
        st.integers(0, 8),
        st.integers(-1, 8),
        st.sampled_from("abc"),
        tops,
        st.none() | st.integers(-50, 200) | st.just(10**12),
        st.none() | st.integers(-5, 100),
        st.sampled_from(["", "f"]),
        st.sampled_from(["", ID, OTHER]),
    ),
    max_size=14,
)


def heap(told):
    return [
        span(
            str(own),
            "" if parent < 0 else str(parent),
            service,
            service,
            kind,
            start,
            None if start is None or length is None else start + length,
            invoked=named,
            link_trace=linked,
            link_span=str(parent) if linked else "",
        )
        for own, parent, service, kind, start, length, named, linked in told
    ]


@settings(max_examples=300)
@given(heaps, st.data())
def test_any_heap_in_any_order_and_with_any_of_it_twice_is_the_same_trace(told, data):
    spans = heap(told)
    again = data.draw(st.lists(st.sampled_from(spans), max_size=5)) if spans else []
    trace, dropped = assemble(T, spans)
    other, dropped_too = assemble(T, data.draw(st.permutations([*spans, *again])))
    assert trace == other
    assert dropped_too - dropped == ({"duplicate": len(again)} if again else {})


@settings(max_examples=300)
@given(heaps)
def test_any_heap_with_missing_times_is_a_trace_the_graph_takes(told):
    trace, dropped = assemble(T, heap(told))
    assert dropped.total() <= len(told)
    if trace is not None:
        CallGraph().observe(trace, 1.0)
        assert all(0.0 <= call.offset_s < 16 * 86_401 and call.duration_s >= 0.0 for call in trace.calls)


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


def test_traces_that_are_linked_complete_together():
    assembler = Assembler()
    assembler.add(T, [*SHOP, SENT], 0.0)
    assembler.add(T, taken_from_a_queue(), 4.0)
    assert assembler.settled(9.0) == [], "the first of them would be complete by itself"
    (trace,) = assembler.settled(11.0)
    assert call_shape(trace) == QUEUED
    assert (len(assembler), assembler.traces) == (0, 0)
    late = Assembler()
    late.add(T, taken_from_a_queue(), 0.0)
    late.add(T, [*SHOP, SENT], 7.0)
    assert [trace.entry for trace in late.settled(7.0)] == [], "it waits for the one it is linked to, which has just come"
    assert [call_shape(trace) for trace in late.settled(14.0)] == [QUEUED]
    alone = Assembler()
    alone.add(T, taken_from_a_queue(), 0.0)
    assert [trace.entry for trace in alone.settled(7.0)] == ["t/pack/queue process"]


def test_many_that_are_linked_to_one_are_bounded_and_none_is_lost():
    assembler = Assembler()
    assembler.add(T, [*SHOP, SENT], 0.0)
    for number in range(300):
        assembler.add(T, taken_from_a_queue(f"{number:032x}", ids=f"{number:x}a"), 0.0)
    traces = []
    while more := assembler.settled(7.0):
        traces += more
    assert sum(len(trace.calls) + 1 for trace in traces) == 3 + 300 * 2
    assert max(len(trace.calls) for trace in traces) == 2 + 64 * 2
    assert (len(assembler), assembler.traces, assembler._followers) == (0, 0, {})


def test_traces_without_a_root_make_room_when_there_is_none():
    assembler = Assembler(AssemblyBounds(spans_per_tenant=40))
    for number in range(8):
        orphans = [span(str(n), "gone", "s", "/s", "server", 0, 1, trace_id=f"{number:032x}") for n in range(5)]
        assert assembler.add(T, orphans, float(number)) == 5
    assert assembler.add(T, SHOP[:3], 8.0) == 3, "the first two have been idle for 6 s"
    assert (assembler.intake(T).early, assembler.held(T), assembler.dropped) == (1, 38, {"orphan": 4})
    assert len(assembler.settled(8.0)) == 1
    assert assembler.add(TenantId("u"), SHOP, 8.0) == 7, "another tenant has room of its own"
    assert assembler.add(T, SHOP[3:], 8.0) == 4
    more = [span("99", "", "s", "/s", "server", 0, 1, trace_id=f"{n:032x}") for n in range(100, 140)]
    kept = assembler.add(T, more, 8.0)
    assert (kept, assembler.intake(T).early) == (8, 3), "one more makes room, the others are too young to go"
    assert (assembler.held(T), assembler.dropped["too many spans"]) == (40, 32)
    entries = [trace.entry for _ in range(4) for trace in assembler.settled(15.0)]
    assert (entries.count("t/shop/buy"), entries.count("u/shop/buy")) == (1, 1)


def test_what_came_is_counted_by_tenant():
    assembler = Assembler()
    assembler.add(T, [*SHOP, SHOP[0]], 0.0)
    assembler.add(TenantId("u"), SHOP[3:4], 0.0)
    assert len(assembler.settled(7.0)) == 1
    intake = assembler.intake(T)
    assert (intake.spans, intake.traces, intake.left_out) == (8, 1, {"duplicate": 1})
    assert assembler.intake(TenantId("u")).left_out == {}
    assembler.forget_tenant(T)
    assert assembler.intake(T).spans == 0
    assert assembler.dropped == {"duplicate": 1}, "sums of the process do not shrink"


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


@given(
    st.lists(
        st.tuples(
            st.sampled_from("tu"),
            st.integers(0, 4),
            st.integers(0, 3),
            st.integers(-1, 3),
            st.integers(-1, 4),
            st.floats(0.0, 9.0),
        ),
        max_size=60,
    )
)
def test_however_spans_come_nothing_stays_and_every_one_is_in_a_trace_or_counted(arrivals):
    """Few may wait, some have no root, some are linked to each other in any way."""
    bounds = AssemblyBounds(rootless_s=20, age_s=60, spans_per_trace=4, spans_per_tenant=8, spans=12, finished=3)
    assembler, now, came, used = Assembler(bounds), 0.0, 0, 0
    for tenant, trace, own, parent, linked, pause in arrivals:
        now += pause
        linked_to = {"link_trace": f"{linked:032x}", "link_span": str(own)} if linked >= 0 else {}
        kind = "consumer" if linked >= 0 else "server"
        one = span(
            str(own), "" if parent < 0 else str(parent), f"s{own}", "/s", kind, 0, 1, trace_id=f"{trace:032x}", **linked_to
        )
        came += 1
        assembler.add(TenantId(tenant), [one], now)
        used += sum(1 + len(found.calls) for found in assembler.settled(now))
        assert len(assembler) == sum(assembler.held(TenantId(each)) for each in "tu") <= bounds.spans
    for _ in range(50):
        used += sum(1 + len(found.calls) for found in assembler.settled(now + 1000.0))
    assert (len(assembler), assembler.traces, assembler._followers, assembler._looks) == (0, 0, {}, [])
    assert not any(assembler._rootless.values())
    assert assembler.received == came == used + assembler.dropped.total()


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
