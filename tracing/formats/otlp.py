"""OTLP: an ExportTraceServiceRequest in protobuf into spans."""

from collections.abc import Iterable

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span as WireSpan
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from graph.calls import StartKind
from tracing import attributes
from tracing.formats import FormatError
from tracing.spans import Span, SpanKind

_WANTED = frozenset(
    {
        attributes.SERVICE_NAME,
        attributes.FAAS_NAME,
        attributes.FAAS_INVOKED_NAME,
        attributes.FAAS_COLDSTART,
        attributes.START,
        attributes.WAIT_MS,
        attributes.STATUS,
    }
)
_KINDS = {kind.value: kind for kind in SpanKind}
_STARTS = {start.value: start for start in StartKind}
_NAME_LIMIT = 1024  # names are cut far shorter where they become functions; this bounds what waits in memory
_MAX_WAIT_MS = 3.6e6

MAX_SPANS = 50_000
"""In one request; exporters send 512 at once. A small body can hold very many small spans."""

_Value = str | bool | float


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
        for scope_spans in resource_spans.scope_spans:
            for wire in scope_spans.spans:
                if len(wire.trace_id) != 16 or len(wire.span_id) != 8 or not any(wire.trace_id) or not any(wire.span_id):
                    refused += 1
                else:
                    spans.append(_span(wire, resource))
    return spans, refused


def _span(wire: WireSpan, resource: dict[str, _Value]) -> Span:
    own = _values(wire.attributes)
    start = _STARTS.get(str(own.get(attributes.START, "")), StartKind.UNKNOWN)
    if start is StartKind.UNKNOWN and own.get(attributes.FAAS_COLDSTART) is True:
        start = StartKind.COLD
    parent = wire.parent_span_id
    return Span(
        trace_id=wire.trace_id.hex(),
        span_id=wire.span_id.hex(),
        parent_id=parent.hex() if any(parent) else "",
        service=str(resource.get(attributes.SERVICE_NAME, ""))[:_NAME_LIMIT],
        name=wire.name[:_NAME_LIMIT],
        kind=_KINDS.get(wire.kind, SpanKind.UNSPECIFIED),
        start_ns=wire.start_time_unix_nano,
        end_ns=wire.end_time_unix_nano,
        failed=wire.status.code == Status.STATUS_CODE_ERROR,
        function=str(own.get(attributes.FAAS_NAME, ""))[:_NAME_LIMIT],
        hosted=str(resource.get(attributes.FAAS_NAME, ""))[:_NAME_LIMIT],
        invoked=str(own.get(attributes.FAAS_INVOKED_NAME, ""))[:_NAME_LIMIT],
        start=start,
        wait_s=_wait_s(own.get(attributes.WAIT_MS, 0.0)),
        ran=own.get(attributes.STATUS) != "refused",
    )


def _wait_s(wait_ms: _Value) -> float:
    if isinstance(wait_ms, str) or not 0.0 <= wait_ms <= _MAX_WAIT_MS:  # not a number compares as False, too
        return 0.0
    return wait_ms / 1000


def _values(pairs: Iterable[KeyValue]) -> dict[str, _Value]:
    """The attributes that are read, where they are plain text, numbers or truth values."""
    found: dict[str, _Value] = {}
    for pair in pairs:
        if pair.key in _WANTED:
            which = pair.value.WhichOneof("value")
            if which in ("string_value", "bool_value", "int_value", "double_value"):
                found[pair.key] = getattr(pair.value, which)
    return found
