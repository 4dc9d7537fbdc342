"""The public CSV form, and the graph learned from it against one worked out from the raw lines by other means."""

import contextlib
import csv
import gzip
import io
from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graph.callgraph import CallGraph
from graph.ids import TenantId, function_id
from graph.prediction import predict
from tracing.assembly import traces_of
from tracing.formats import FormatError, trainticket
from tracing.spans import SpanKind

TENANT = TenantId("t")
EXCERPTS = [
    Path(__file__).parents[1] / "data" / "trainticket" / "traces.csv.gz",
    Path(__file__).parents[2] / "examples" / "trainticket" / "traces.csv.gz",
]
HEADER = "TraceID,SpanID,ParentID,PodName,OperationName,StartTimeUnixNano,EndTimeUnixNano,Duration\n"
LINE = "ab,1,root,ts-gateway-service-6f6cfc45b-h5m2n,/*,1000,2000,1\n"


@pytest.fixture(params=EXCERPTS, ids=lambda path: path.parent.parent.name)
def text(request):
    return gzip.decompress(request.param.read_bytes()).decode()


class Raw:
    """Functions, edges and reach straight from the lines: a function begins where the service changes."""

    def __init__(self, text):
        self.edges, self.entry_reaches, self.entry_runs = set(), defaultdict(int), 0
        self.sub_runs, self.sub_reaches = defaultdict(int), defaultdict(lambda: defaultdict(int))
        traces = defaultdict(dict)
        for row in csv.DictReader(io.StringIO(text)):
            traces[row["TraceID"]][row["SpanID"]] = row
        for spans in traces.values():
            begins = {}
            for identity in spans:
                self._begin(identity, spans, begins)
            reached = {self._name(spans[begin]) for begin in begins.values()}
            entry = next(self._name(row) for row in spans.values() if row["ParentID"] == "root")
            self.entry = entry
            self.entry_runs += 1
            for function in reached - {entry}:
                self.entry_reaches[function] += 1
            self._sub_runs(spans, begins)

    @staticmethod
    def _service(row):
        return row["PodName"].rsplit("-", 2)[0]

    def _name(self, row):
        return f"{self._service(row)}/{row['OperationName'].lstrip('/')}"

    def _begin(self, identity, spans, begins):
        """The span at which the function that `identity` belongs to began."""
        if identity not in begins:
            row, parent = spans[identity], spans.get(spans[identity]["ParentID"])
            if parent is None or self._service(parent) != self._service(row):
                begins[identity] = identity
                if parent is not None:
                    caller = self._begin(row["ParentID"], spans, begins)
                    self.edges.add((self._name(spans[caller]), self._name(row)))
            else:
                begins[identity] = self._begin(row["ParentID"], spans, begins)
        return begins[identity]

    def _sub_runs(self, spans, begins):
        below = defaultdict(set)
        starts = set(begins.values())
        for identity in starts:
            self.sub_runs[self._name(spans[identity])] += 1
            above = spans[identity]["ParentID"]
            while above in spans:
                if above in starts:
                    below[above].add(self._name(spans[identity]))
                above = spans[above]["ParentID"]
        for identity, functions in below.items():
            for function in functions - {self._name(spans[identity])}:
                self.sub_reaches[self._name(spans[identity])][function] += 1


def learned(text, decay=False):
    traces, dropped = traces_of(TENANT, trainticket.read(io.StringIO(text)))
    graph = CallGraph()
    for number, trace in enumerate(traces):
        graph.observe(trace, float(number), decay)
    return graph, traces, dropped


def test_edges_are_those_of_the_raw_lines(text):
    graph, _, dropped = learned(text)
    found = {(edge.caller.partition("/")[2], edge.callee.partition("/")[2]) for edge in graph.edges(TENANT)}
    expected = Raw(text).edges
    assert len(expected) > 50
    assert len(found & expected) / len(found) >= 0.99
    assert len(found & expected) / len(expected) >= 0.99
    assert not dropped


def test_reach_is_the_fraction_of_the_raw_traces_for_the_entry_and_for_every_function_below(text):
    graph, traces, _ = learned(text)
    raw = Raw(text)
    assert graph.entries(TENANT) == [function_id(TENANT, raw.entry)]
    assert len(traces) == raw.entry_runs
    reach = graph.reach(function_id(TENANT, raw.entry))
    assert {function.partition("/")[2] for function in reach.reached} == set(raw.entry_reaches)
    for function, count in raw.entry_reaches.items():
        assert reach.share(function_id(TENANT, function)) == pytest.approx(count / raw.entry_runs, abs=0.02)
    for entry, reaches in raw.sub_reaches.items():
        for function, count in reaches.items():
            share = graph.reach(function_id(TENANT, entry)).share(function_id(TENANT, function))
            assert share == pytest.approx(count / raw.sub_runs[entry], abs=0.02)


def test_a_path_no_trace_started_with_can_be_predicted(text):
    graph, _, _ = learned(text)
    preserve = function_id(TENANT, "ts-preserve-service/api/v1/preserveservice/preserve")
    expected = predict(graph, preserve)
    assert len(expected) > 10
    assert all(call.offsets_s[0] >= 0.0 for call in expected)
    assert all(call.concurrent[0] == call.reach for call in expected)


def test_what_the_gateway_calls_tells_the_rest():
    graph, _, _ = learned(gzip.decompress(EXCERPTS[1].read_bytes()).decode())
    gateway = function_id(TENANT, "ts-gateway-service/*")
    login = function_id(TENANT, "ts-auth-service/api/v1/users/login")
    certain = {call.function.partition("/")[2]: call.reach for call in predict(graph, gateway, [login])}
    assert certain["ts-verification-code-service/api/v1/verifycode/verify/{verifyCode}"] > 0.5
    assert certain.get("ts-basic-service/api/v1/basicservice/basic/travels", 0.0) < 0.1


def test_names_are_mapped_to_deployed_ones():
    names = {"ts-gateway-service/*": "gateway"}
    traces, _ = traces_of(TENANT, trainticket.read(io.StringIO(HEADER + LINE)), names)
    assert traces[0].entry == "t/gateway"
    assert traces[0].duration_s == pytest.approx(1e-6)


def test_kinds_follow_from_the_names_the_agent_gives():
    assert trainticket.kind_of("/api/v1/{id}") is SpanKind.SERVER
    assert trainticket.kind_of("HTTP GET") is SpanKind.CLIENT
    assert trainticket.kind_of("<default> send") is SpanKind.PRODUCER
    assert trainticket.kind_of("food_delivery process") is SpanKind.CONSUMER
    assert trainticket.kind_of("SELECT ts.orders") is SpanKind.INTERNAL
    assert trainticket.service_of("ts-order-service-5f5b-xx1z2") == "ts-order-service"
    assert trainticket.service_of("alone") == "alone"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "line 1: the column TraceID is missing"),
        ("TraceID,SpanID\n", "line 1: the column ParentID is missing"),
        (HEADER + "ab,1,root\n", "line 2: 3 fields, the header has 8"),
        (HEADER + LINE + LINE.replace("ab,", "xyz,"), "line 3: TraceID 'xyz'"),
        (HEADER + LINE.replace(",1,root", ",,root"), "line 2: SpanID ''"),
        (HEADER + LINE.replace("root", "parent"), "line 2: ParentID 'parent'"),
        (HEADER + LINE.replace(",1000,", ",1e3,"), "line 2: StartTimeUnixNano '1e3'"),
        (HEADER + LINE.replace(",2000,", ",-5,"), "line 2: EndTimeUnixNano '-5'"),
        (HEADER + '"ab', "line 2: not CSV"),
    ],
)
def test_errors_name_line_and_column(text, says):
    with pytest.raises(FormatError) as error:
        trainticket.read(io.StringIO(text))
    assert says in str(error.value)


@given(st.text(max_size=200))
def test_any_text_is_spans_or_a_format_error(text):
    for attempt in (text, HEADER + text):
        with contextlib.suppress(FormatError):
            trainticket.read(io.StringIO(attempt))


def test_columns_may_come_in_any_order_and_empty_lines_are_nothing():
    columns = "Duration,EndTimeUnixNano,StartTimeUnixNano,OperationName,PodName,ParentID,SpanID,TraceID"
    shuffled = f"{columns}\n\n1,2000,1000,/*,a-1-2,root,1,ab\n\n"
    (span,) = trainticket.read(io.StringIO(shuffled))
    assert (span.trace_id, span.parent_id, span.service, span.name, span.start_ns) == ("ab", "", "a", "/*", 1000)
