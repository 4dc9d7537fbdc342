"""Records as OpenTelemetry spans; read back through OTLP they are the same trace. The exporter holds nobody up."""

import http.server
import threading
import time

import pytest
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import SpanKind, StatusCode

from graph.calls import StartKind
from graph.ids import TenantId
from tracing.assembly import assemble, records_to_trace
from tracing.export import Exporter, spans_of
from tracing.formats import FormatError, otlp
from tracing.records import InvocationRecord, Timings

TRACE = "0af7651916cd43dd8448eb211c80319c"
OUTSIDE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
NOW = 1_700_000_000.0


def record(number, parent="", function="shop", sent=NOW, ended=NOW + 1.0, **more):
    more = {"start": StartKind.COLD, "status": "ok", "timings": Timings(clone=7.5, init=100.0, run=50.0)} | more
    identity = f"{number:016x}"
    return InvocationRecord("t", TRACE, identity, parent, f"t/{function}", 3, sent, ended, **more)


RECORDS = [
    record(1, link=OUTSIDE, node="n1"),
    record(2, f"{1:016x}", "pay", NOW + 0.2, NOW + 0.6, status="error", error_type="ValueError", decision_id="p-1"),
    record(3, f"{2:016x}", "bank", NOW + 0.3, NOW + 0.4, start=StartKind.PREWARMED, timings=Timings(run=9.0)),
]


def test_a_span_carries_the_records_ids_attributes_and_outcome():
    shop, pay, bank = spans_of(RECORDS)
    assert (f"{shop.context.trace_id:032x}", f"{shop.context.span_id:016x}", shop.parent) == (TRACE, f"{1:016x}", None)
    assert pay.parent.span_id == shop.context.span_id
    assert [span.kind for span in (shop, pay, bank)] == [SpanKind.SERVER] * 3
    assert (shop.status.status_code, pay.status.status_code) == (StatusCode.OK, StatusCode.ERROR)
    assert pay.status.description == "ValueError"
    assert dict(shop.attributes) == {
        "faas.name": "shop",
        "faas.invocation_id": f"{1:016x}",
        "faas.coldstart": True,
        "faas.trigger": "http",
        "foreglow.start": "cold",
        "foreglow.wait_ms": 107.5,
        "foreglow.status": "ok",
        "foreglow.step.clone_ms": 7.5,
        "foreglow.step.init_ms": 100.0,
        "foreglow.step.run_ms": 50.0,
        "foreglow.node": "n1",
    }
    assert (pay.attributes["error.type"], pay.attributes["foreglow.decision_id"]) == ("ValueError", "p-1")
    assert (bank.attributes["faas.coldstart"], bank.attributes["faas.trigger"]) == (False, "other")
    assert dict(shop.resource.attributes) == {
        "service.name": "shop",
        "service.namespace": "t",
        "faas.name": "shop",
        "faas.version": "3",
    }
    (link,) = shop.links
    assert (f"{link.context.trace_id:032x}", f"{link.context.span_id:016x}") == tuple(OUTSIDE.split("-")[1:3])
    assert spans_of([record(4, link="nonsense")])[0].links == ()


def test_exported_spans_come_back_as_the_same_trace():
    spans, refused = otlp.read(encode_spans(spans_of(RECORDS)).SerializeToString())
    assert refused == 0
    trace, dropped = assemble(TenantId("t"), spans)
    assert not dropped
    assert trace == records_to_trace(RECORDS)
    refused_entry, _ = otlp.read(encode_spans(spans_of([record(1, status="refused")])).SerializeToString())
    assert not assemble(TenantId("t"), refused_entry)[0].ran


@pytest.mark.parametrize("damage", [lambda body: body[:-3], lambda body: b"\xff" + body, lambda body: b"{}"])
def test_what_is_not_protobuf_is_a_format_error(damage):
    with pytest.raises(FormatError, match="ExportTraceServiceRequest"):
        otlp.read(damage(encode_spans(spans_of(RECORDS)).SerializeToString()))


def test_spans_without_valid_ids_are_counted_and_left_out():
    request = encode_spans(spans_of(RECORDS))
    wire = [span for resource in request.resource_spans for scope in resource.scope_spans for span in scope.spans]
    wire[0].trace_id = b"\0" * 16
    wire[1].span_id = b"\1" * 7
    spans, refused = otlp.read(request.SerializeToString())
    assert (len(spans), refused) == (1, 2)


def test_attributes_of_the_wrong_type_are_ignored():
    request = encode_spans(spans_of(RECORDS[:1]))
    for attribute in request.resource_spans[0].scope_spans[0].spans[0].attributes:
        if attribute.key == "foreglow.wait_ms":
            attribute.value.double_value = float("nan")
        if attribute.key == "foreglow.start":
            attribute.value.array_value.SetInParent()
    ((span,), _) = otlp.read(request.SerializeToString())
    assert (span.wait_s, span.start) == (0.0, StartKind.COLD)  # faas.coldstart is still there


# -- the exporter


class Sender(SpanExporter):
    """Takes spans, or waits before it does."""

    def __init__(self, gate=None, result=SpanExportResult.SUCCESS):
        self.taken, self.gate, self.result, self.closed = [], gate, result, 0
        self.called = threading.Event()

    def export(self, spans):
        self.called.set()
        if self.gate is not None:
            self.gate.wait(60)
        self.taken += spans
        return self.result

    def shutdown(self):
        self.closed += 1


def test_without_an_endpoint_there_is_no_thread_and_nothing_is_kept():
    before = threading.active_count()
    exporter = Exporter("")
    exporter.submit(RECORDS)
    assert (exporter.active, threading.active_count(), exporter.dropped) == (False, before, 0)
    exporter.close()


def test_what_was_submitted_is_sent_at_the_latest_when_it_closes():
    sender = Sender()
    exporter = Exporter(sender=sender)
    for _ in range(400):
        exporter.submit(RECORDS)
    exporter.close(timeout_s=60)
    assert (len(sender.taken), exporter.sent, exporter.dropped, sender.closed) == (1200, 1200, 0, 1)
    exporter.submit(RECORDS)
    exporter.close()
    assert len(sender.taken) == 1200


def test_a_slow_receiver_costs_records_and_never_time():
    gate = threading.Event()
    sender = Sender(gate)
    exporter = Exporter(sender=sender)
    exporter.submit(RECORDS * 200)
    assert sender.called.wait(30)
    began = time.monotonic()
    for _ in range(200):
        exporter.submit(RECORDS * 100)
    assert exporter.dropped >= 60_000 - Exporter.QUEUE
    exporter.close(timeout_s=0.3)
    assert time.monotonic() - began < 30.0  # against the 60 s the sender is stuck for
    assert exporter.dropped >= 60_000
    assert sender.closed == 1
    gate.set()


def test_a_failing_sender_is_counted_and_the_thread_goes_on():
    exporter = Exporter(sender=Sender(result=SpanExportResult.FAILURE))
    exporter.submit(RECORDS)
    exporter.close(timeout_s=60)
    assert (exporter.sent, exporter.dropped) == (0, 3)
    bad = Exporter(sender=Sender())
    bad.submit([record(1, parent="no hex")])
    bad.submit(RECORDS)
    bad.close(timeout_s=60)
    assert bad.sent + bad.dropped == 4


def test_a_real_endpoint_gets_otlp_at_v1_traces():
    got = []

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            got.append((self.path, self.headers["Content-Type"], self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        exporter = Exporter(f"http://127.0.0.1:{server.server_port}/")
        exporter.submit(RECORDS)
        exporter.close(timeout_s=60)
        server.shutdown()
    assert exporter.sent == 3
    ((path, content_type, body),) = got
    assert (path, content_type) == ("/v1/traces", "application/x-protobuf")
    assert records_to_trace(RECORDS) == assemble(TenantId("t"), otlp.read(body)[0])[0]
