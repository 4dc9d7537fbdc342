"""OTLP: an ExportTraceServiceRequest in protobuf into spans."""

from collections.abc import Iterable
from sys import intern

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span as WireSpan
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from graph.calls import StartKind
from tracing import attributes
from tracing.formats import fields
from tracing.formats.errors import FormatError
from tracing.spans import Span, SpanKind

_KINDS = {kind.value: kind for kind in SpanKind}

MAX_SPANS = 50_000
"""In one request; exporters send 512 at once. A small body can hold very many small spans."""


def read(body: bytes) -> tuple[list[Span], int]:
    """The spans of one request, and how many were left out because their ids are not valid. Raises FormatError."""
    try:
        request = ExportTraceServiceRequest.FromString(body)
    except (DecodeError, UnicodeDecodeError) as error:
        raise FormatError("the body is not an ExportTraceServiceRequest in protobuf") from error
    if sum(len(scope_spans.spans) for each in request.resource_spans for scope_spans in each.scope_spans) > MAX_SPANS:
        raise FormatError(f"the request holds more than {MAX_SPANS} spans; send smaller batches")
    spans: list[Span] = []
    refused = 0
    for resource_spans in request.resource_spans:
        resource = _values(resource_spans.resource.attributes)
        service = intern(str(resource.get(attributes.SERVICE_NAME, ""))[: fields.NAME_LIMIT])
        hosted = intern(str(resource.get(attributes.FAAS_NAME, ""))[: fields.NAME_LIMIT])
        for scope_spans in resource_spans.scope_spans:
            for wire in scope_spans.spans:
                if len(wire.trace_id) != 16 or len(wire.span_id) != 8 or not any(wire.trace_id) or not any(wire.span_id):
                    refused += 1
                else:
                    spans.append(_span(wire, service, hosted))
    return spans, refused


def _span(wire: WireSpan, service: str, hosted: str) -> Span:
    """Texts that other spans have as well are one object: hundreds of thousands of them may wait for their traces."""
    own = _values(wire.attributes)
    parent = wire.parent_span_id
    link_trace, link_span = _link(wire) if wire.links else ("", "")
    return Span(
        trace_id=intern(wire.trace_id.hex()),
        span_id=intern(wire.span_id.hex()),
        parent_id=intern(parent.hex()) if any(parent) else "",
        service=service,
        name=intern(wire.name[: fields.NAME_LIMIT]),
        kind=_KINDS.get(wire.kind, SpanKind.UNSPECIFIED),
        start_ns=fields.nanoseconds(wire.start_time_unix_nano),
        end_ns=fields.nanoseconds(wire.end_time_unix_nano),
        failed=wire.status.code == Status.STATUS_CODE_ERROR,
        function=str(own.get(attributes.FAAS_NAME, ""))[: fields.NAME_LIMIT] if own else "",
        hosted=hosted,
        invoked=str(own.get(attributes.FAAS_INVOKED_NAME, ""))[: fields.NAME_LIMIT] if own else "",
        start=fields.start_kind(own) if own else StartKind.UNKNOWN,
        wait_s=fields.wait_s(own) if own else 0.0,
        ran=own.get(attributes.STATUS) != "refused",
        link_trace=link_trace,
        link_span=link_span,
    )


def _link(wire: WireSpan) -> tuple[str, str]:
    """The one span it is linked to; nothing when there are several traces to choose from."""
    traces = {link.trace_id for link in wire.links}
    first = wire.links[0]
    if len(traces) > 1 or len(first.trace_id) != 16 or len(first.span_id) != 8:
        return "", ""
    return first.trace_id.hex(), first.span_id.hex()


def _values(pairs: Iterable[KeyValue]) -> dict[str, fields.Value]:
    """The attributes that are read, where they are plain text, numbers or truth values."""
    found: dict[str, fields.Value] = {}
    for pair in pairs:
        if pair.key in fields.WANTED:
            which = pair.value.WhichOneof("value")
            if which in ("string_value", "bool_value", "int_value", "double_value"):
                found[pair.key] = getattr(pair.value, which)
    return found
