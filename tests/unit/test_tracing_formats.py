"""Every form of recorded traces: found out, read whatever way it is cut and packed, refused with its place when it is damaged."""

import contextlib
import gzip
import io
import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracing.assembly import traces_of
from tracing.formats import FORMS, FormatError, detect, json_stream, otlp_json, read_file, read_stream, span_lines
from tracing.gathering import Gathering
from tracing.spans import Span, SpanKind

DATA = Path(__file__).parents[1] / "data"
FILES = {
    "csv": DATA / "trainticket" / "traces.csv.gz",
    "jaeger": DATA / "hotel-jaeger" / "traces.jsonl.gz",
    "zipkin": DATA / "zipkin" / "smartthings-mobile-web-install.json.gz",
    "xray": DATA / "xray" / "matrix_app.json",
}
COUNTS = {"csv": 1286, "jaeger": 440, "zipkin": 1041, "xray": 61}


def content(form):
    held = FILES[form].read_bytes()
    return gzip.decompress(held) if held[:2] == b"\x1f\x8b" else held


def spans(text, form=""):
    left_out = Counter()
    found = list(read_stream(io.BytesIO(text.encode() if isinstance(text, str) else text), left_out, form))
    return found, dict(left_out)


def as_otlp(given):
    """What an OpenTelemetry SDK would have sent of these spans, one request for each service."""
    services = {}
    for span in given:
        services.setdefault(span.service, []).append(
            {
                "traceId": span.trace_id.zfill(32),
                "spanId": span.span_id.zfill(16),
                "parentSpanId": span.parent_id.zfill(16) if span.parent_id else "",
                "name": span.name,
                "kind": int(span.kind),
                "startTimeUnixNano": str(span.start_ns),
                "endTimeUnixNano": str(span.end_ns),
                "attributes": [{"key": "http.status_code", "value": {"intValue": "200"}}],
                "status": {},
            }
        )
    return [
        {
            "resourceSpans": [
                {
                    "resource": {"attributes": [{"key": "service.name", "value": {"stringValue": service}}]},
                    "scopeSpans": [{"scope": {"name": "agent"}, "spans": held}],
                }
            ]
        }
        for service, held in services.items()
    ]


@pytest.mark.parametrize("form", FILES)
def test_each_form_is_found_out_and_read(form):
    assert detect(content(form)[:65536]) == form
    read = list(read_file(FILES[form]))
    assert len(read) == COUNTS[form]
    assert read == spans(content(form))[0] == spans(gzip.compress(content(form)))[0] == spans(content(form), form)[0]
    assert all(span.trace_id and span.span_id and span.service for span in read)


@pytest.mark.parametrize("form", ["jaeger", "zipkin", "xray"])
def test_json_is_read_alike_however_small_the_pieces_it_comes_in(form, monkeypatch):
    whole = content(form)
    expected = spans(whole)[0]
    for chunk in (61, 4096):
        monkeypatch.setattr(json_stream, "CHUNK", chunk)
        assert spans(whole)[0] == expected


def test_the_same_spans_in_otlp_are_the_same_spans_and_traces():
    given = spans(content("csv"))[0]
    requests = as_otlp(given)
    one_a_line = "\n".join(json.dumps(request) for request in requests)
    together = json.dumps({"resourceSpans": [one for request in requests for one in request["resourceSpans"]]}, indent=1)
    read, left_out = spans(one_a_line)
    assert (read, left_out) == (spans(together)[0], {})
    assert detect(one_a_line[:1000].encode()) == detect(together[:1000].encode()) == "otlp"
    ours, theirs = traces_of("t", read)[0], traces_of("t", given)[0]
    assert [(trace.entry, trace.calls) for trace in ours] == [(trace.entry, trace.calls) for trace in theirs]


def test_a_span_of_otlp_with_all_it_may_say():
    wire = {
        "traceId": "ABCDEF00000000000000000000000001",
        "spanId": "00000000000000ff",
        "name": "run",
        "kind": "SPAN_KIND_CONSUMER",
        "startTimeUnixNano": 1_700_000_000_000_000_000,
        "endTimeUnixNano": "1700000001000000000",
        "attributes": [
            {"key": "faas.name", "value": {"stringValue": "resize"}},
            {"key": "foreglow.wait_ms", "value": {"doubleValue": "12.5"}},
            {"key": "faas.coldstart", "value": {"boolValue": True}},
            {"key": "nested", "value": {"kvlistValue": {"values": [{"key": "a", "value": {"arrayValue": {}}}]}}},
        ],
        "links": [{"traceId": "1" * 32, "spanId": "2" * 16, "attributes": []}],
        "status": {"code": "STATUS_CODE_ERROR", "message": "x"},
        "flags": 1,
        "unknown": [{}],
    }
    request = {"resourceSpans": [{"scopeSpans": [{"spans": [wire, {**wire, "spanId": "AAAAAAAAAP8="}]}]}]}
    (span,), invalid = otlp_json.read(json.dumps(request).encode())
    assert invalid == 1, "base64 is protobuf's mapping, not OTLP's"
    assert (span.trace_id, span.span_id, span.kind) == ("abcdef00000000000000000000000001", "00000000000000ff", SpanKind.CONSUMER)
    assert (span.function, span.wait_s, span.start.value, span.failed) == ("resize", 0.0125, "cold", True)
    assert (span.link_trace, span.link_span, span.duration_s) == ("1" * 32, "2" * 16, 1.0)
    several = {**wire, "links": [*wire["links"], {"traceId": "3" * 32, "spanId": "2" * 16}]}
    assert otlp_json.read(json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [several]}]}]}).encode())[0][0].link_trace == ""


def test_halves_that_share_an_id_are_told_by_their_kind():
    read = list(read_file(DATA / "zipkin" / "skew.json"))
    shared = [span for span in read if span.span_id == "74280ae0c10d8062"]
    assert sorted(span.kind.name for span in shared) == ["CLIENT", "SERVER"]
    (trace,), dropped = traces_of("t", read)
    assert [(call.caller, call.callee) for call in trace.calls] == [("t/servicea/get", "t/serviceb/post")]
    assert not dropped
    assert 0.0 <= trace.calls[0].offset_s <= 0.01, "in the caller's clock, though the callee's is an hour behind"


def test_times_that_are_missing_stay_missing():
    (untimed, timed), _ = spans('[{"traceId": "1", "id": "2"}, {"traceId": "1", "id": "3", "timestamp": 5, "duration": 2}]')
    assert (untimed.start_ns, untimed.end_ns, untimed.duration_s) == (0, 0, 0.0)
    assert (timed.start_ns, timed.end_ns, timed.trace_id, timed.span_id) == (5000, 7000, "1".zfill(32), "3".zfill(16))


def test_a_lambda_function_of_xray_is_one_function_and_what_it_calls_are_calls():
    (trace,), _ = traces_of("t", list(read_file(DATA / "xray" / "thumbnail_app.json")))
    assert [(call.caller_index, call.callee) for call in trace.calls] == [
        (-1, f"t/{UPLOAD}"),
        (0, f"t/{THUMBNAIL}"),
    ]
    running, _ = traces_of("t", list(read_file(DATA / "xray" / "thumbnail_app_in_progress.json")))
    assert len(running[0].calls) == 2
    ring, dropped = traces_of("t", list(read_file(DATA / "xray" / "event_processing_memory_leak.json")))
    assert (len(ring), dropped) == (1, {"cycle": 13})


UPLOAD, THUMBNAIL = "thumbnail-generator-production-upload", "thumbnail-generator-production-thumbnail-generator"


def test_other_shapes_of_the_same_forms():
    jaeger = {"traceID": "ab", "spans": [{"traceID": "ab", "spanID": "1", "process": {"serviceName": "s"}, "startTime": 1}]}
    for text in (json.dumps(jaeger), json.dumps({"total": 0, "data": [jaeger], "errors": None}), f"[{json.dumps(jaeger)}]"):
        (span,), _ = spans(text)
        assert (span.service, span.trace_id) == ("s", "ab".zfill(32))
    follows = [{"refType": "FOLLOWS_FROM", "traceID": "cd", "spanID": "7"}]
    (span,), _ = spans(json.dumps({"data": [{**jaeger, "spans": [{**jaeger["spans"][0], "references": follows}]}]}))
    assert (span.parent_id, span.link_trace, span.link_span) == ("", "cd".zfill(32), "7".zfill(16))
    both = [{"refType": way, "traceID": "ab", "spanID": to} for way, to in (("FOLLOWS_FROM", "7"), ("CHILD_OF", "8"))]
    (span,), _ = spans(json.dumps({"data": [{**jaeger, "spans": [{**jaeger["spans"][0], "references": both}]}]}))
    assert span.parent_id == "8".zfill(16)
    zipkin = '{"traceId": "1", "id": "2", "shared": true}'
    for text in (f"[{zipkin}]", f"[[{zipkin}], []]", f"{zipkin}\n{zipkin}\n"):
        assert {span.kind for span in spans(text)[0]} == {SpanKind.SERVER}
    assert spans("[]") == spans('{"data": []}') == ([], {})
    assert spans("\ufeff[]\n", "zipkin") == ([], {})


def test_ids_that_are_none_are_counted_and_the_rest_is_read():
    assert spans('[{"traceId": "1", "id": "xyz"}, {"traceId": "0", "id": "1"}, {"traceId": "1", "id": "1"}]')[1] == {
        "invalid id": 2
    }
    assert spans('{"data": [{"spans": [{"traceID": "", "spanID": "1"}]}]}')[1] == {"invalid id": 1}
    assert spans('{"Id": "", "Segments": [{"Document": "{\\"id\\": \\"1\\"}"}]}')[1] == {"invalid id": 1}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "line 1: none of the known forms"),
        ("<xml/>", "it begins with '<xml/>'"),
        ('{"a": 1}', "none of the known forms"),
        ('{"data":\n [{"traceID": "a", "spans": [}', "Jaeger JSON: line 2, character 30: not JSON"),
        ('{"data": [{"traceID": "a"', "Jaeger JSON: line 1, character 26: not JSON"),
        ('{"data": [{"traceID": "a"}', "Jaeger JSON: line 1, character 27: before here: a trace without `spans`"),
        ('[{"traceId": "a", "id": "1"} {', "Zipkin JSON: line 1, character 30: , or ] is expected, not '{'"),
        (
            '[{"traceId": 1, "id": "1"}]',
            "Zipkin JSON: line 1, character 27: before here: Expected `str`, got `int` - at",
        ),
        ('{"resourceSpans": [1]}', "OTLP JSON: line 1, character 21: before here: Expected `object`, got `int`"),
        ('{"Traces": [{"Segments": [{"Document": "{"}]}]}', "X-Ray JSON: line 1, character 46: before here: "),
        ("TraceID,SpanID\n", "CSV: line 1: the column ParentID is missing"),
        ('["ab", "1"]\n', "span lines: line 1: Expected `array` of at least length 8"),
        ('[{"traceId": ' + "[" * 200_000, "nested too deeply"),
    ],
)
def test_what_is_damaged_is_refused_with_its_form_and_place(text, says):
    with pytest.raises(FormatError) as error:
        spans(text)
    assert says in str(error.value)


def test_a_packed_file_that_was_cut_off_says_so(tmp_path):
    for held in (gzip.compress(content("zipkin"))[:-20], gzip.compress(content("csv"))[:5000] + b"\0" * 500):
        (tmp_path / "cut.gz").write_bytes(held)
        with pytest.raises(FormatError, match=r"cut.gz: gzip: damaged or cut off"):
            list(read_file(tmp_path / "cut.gz"))
    with pytest.raises(FormatError, match="not UTF-8"):
        spans(b'[{"traceId": "\xff\xfe"}]')


def test_one_element_has_a_bound(monkeypatch):
    monkeypatch.setattr(json_stream, "CHUNK", 1000)
    monkeypatch.setattr(json_stream, "MAX_ELEMENT", 5000)
    many = json.dumps([{"traceId": "1", "id": f"{n + 1:x}"} for n in range(1000)])
    assert len(spans(many)[0]) == 1000, "the whole may be longer"
    with pytest.raises(FormatError, match="one element is longer than"):
        spans(json.dumps([{"traceId": "1", "id": "2", "name": "x" * 9000}]))


@given(st.sampled_from([*FORMS, ""]), st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_bytes_are_spans_or_a_format_error(form, given):
    with contextlib.suppress(FormatError):
        spans(given, form)


MEMBERS = (
    "resourceSpans scopeSpans spans resource attributes key value traceId spanId id traceID spanID data processes timestamp "
    "duration startTime references kind shared localEndpoint Segments Document Traces links status tags"
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["ab", "1", "{", "SERVER"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(MEMBERS.split()), inner, max_size=4),
    max_leaves=25,
)


@settings(max_examples=300)
@given(st.sampled_from(["otlp", "jaeger", "zipkin", "xray"]), json_values)
def test_any_json_is_spans_or_a_format_error(form, value):
    with contextlib.suppress(FormatError):
        for span in spans(json.dumps(value), form)[0]:
            assert 0 <= span.start_ns < 2**63
            assert 0 <= span.end_ns < 2**63
    with contextlib.suppress(FormatError):
        otlp_json.read(json.dumps(value).encode())


@settings(max_examples=100)
@given(st.sampled_from(["jaeger", "zipkin", "xray", "csv"]), st.data())
def test_a_damaged_file_is_read_or_refused(form, data):
    text = bytearray(content(form)[:30_000])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text) - 1))
        text[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    with contextlib.suppress(FormatError):
        traces_of("t", spans(bytes(text), form)[0])


span_values = st.builds(
    Span,
    trace_id=st.sampled_from(["ab", "cd" * 16]),
    span_id=st.sampled_from(["1", "2" * 16]),
    parent_id=st.sampled_from(["", "1"]),
    service=st.text(max_size=5),
    name=st.text(max_size=5),
    kind=st.sampled_from(SpanKind),
    start_ns=st.integers(0, 2**63 - 1),
    end_ns=st.integers(0, 2**63 - 1),
    failed=st.booleans(),
    wait_s=st.floats(0, 3600),
    link_trace=st.sampled_from(["", "ab"]),
    link_span=st.sampled_from(["", "1"]),
)


@given(st.lists(span_values, min_size=1, max_size=6))
def test_our_own_form_brings_every_field(given):
    text = span_lines.write(given)
    assert list(span_lines.read(text)) == given
    assert spans(text)[0] == given


# -- whole traces out of many files


def test_gathered_spans_are_whole_traces_in_the_order_of_time(monkeypatch):
    monkeypatch.setattr("tracing.gathering.IN_MEMORY", 1000)  # on disk, then
    given = spans(content("csv"))[0]
    with Gathering() as gathering:
        assert gathering.add(given[::-1]) == len(given)
        batches = list(gathering.batches(200))
        assert sum(count for count, _ in batches) == gathering.traces == len({span.trace_id for span in given})
    assert sorted(map(repr, (span for _, batch in batches for span in batch))) == sorted(map(repr, given))
    assert all(len(batch) <= 200 or count == 1 for count, batch in batches)
    seen = [{span.trace_id for span in batch} for _, batch in batches]
    assert sum(map(len, seen)) == gathering.traces, "none is in two of them"
    traces = [trace for _, batch in batches for trace in traces_of("t", batch)[0]]
    assert traces == traces_of("t", given)[0]


def test_linked_traces_go_together_and_a_trace_has_a_bound(monkeypatch):
    def one(trace, start, kind=SpanKind.SERVER, link=""):
        return Span(trace, "1", "", "s", "/s", kind, start, start + 1, link_trace=link, link_span="1" if link else "")

    with Gathering() as gathering:
        gathering.add([one("c" * 32, 30, SpanKind.CONSUMER, "a" * 32), one("b" * 32, 20), one("a" * 32, 10)])
        assert [[span.trace_id[0] for span in batch] for _, batch in gathering.batches(1)] == [["a", "c"], ["b"]]
    monkeypatch.setattr("tracing.gathering.SPANS_PER_TRACE", 2)
    with Gathering() as gathering:
        gathering.add([one("a" * 32, 10)] * 5)
        assert gathering.left_out == {"trace too long": 3}
        assert [len(batch) for _, batch in gathering.batches(100)] == [2]


@pytest.mark.parametrize("value", [r'"\ud800"', "1e400", "1" + "0" * 400, "NaN", "{}", "[]"])
@pytest.mark.parametrize(
    ("form", "document"),
    [
        ("otlp", '{"resourceSpans": [{"scopeSpans": %s}]}'),
        ("otlp", '{"resourceSpans": [{"resource": {"attributes": [{"key": "a", "value": {"boolValue": %s}}]}}]}'),
        ("jaeger", '{"data": [{"spans": [{"traceID": "a", "spanID": "b", "startTime": %s}]}]}'),
        ("jaeger", '{"data": [{"spans": [{"traceID": "a", "spanID": "b", "tags": %s}]}]}'),
        ("zipkin", '[{"traceId": "a", "id": "b", "timestamp": %s}]'),
        ("zipkin", '[{"traceId": "a", "id": "b", "localEndpoint": %s}]'),
        ("xray", '{"Traces": [{"Id": "1-a", "Segments": [{"Document": {"id": "b", "start_time": %s}}]}]}'),
        ("xray", '{"Traces": [{"Id": "1-a", "Segments": %s}]}'),
    ],
)
def test_any_value_in_any_place_is_read_or_named(form: str, document: str, value: str):
    """Also texts that UTF-8 cannot hold, where a number is meant."""
    with contextlib.suppress(FormatError):
        list(read_stream(io.BytesIO((document % value).encode()), Counter(), form))
