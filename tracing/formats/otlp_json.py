"""OTLP in JSON: requests over HTTP, files of one request, and what the collector's file exporter writes (one a line).

The JSON mapping of OTLP: lowerCamelCase names, ids in hex (not base64), 64-bit numbers as text, kinds as numbers; names of
kinds, which protobuf's own mapping writes, are read too. Unknown members are ignored.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from sys import intern
from typing import BinaryIO

import msgspec

from tracing import attributes
from tracing.formats import fields
from tracing.formats.errors import FormatError
from tracing.formats.json_stream import Elements
from tracing.spans import Span, SpanKind

FORM = "OTLP JSON"
MAX_SPANS = 50_000  # in one request over HTTP, as in protobuf

_KINDS: dict[str | int, SpanKind] = {kind.value: kind for kind in SpanKind}
_KINDS.update((str(kind.value), kind) for kind in SpanKind)
_KINDS.update((f"SPAN_KIND_{kind.name}", kind) for kind in SpanKind)
_ERROR = (2, "2", "STATUS_CODE_ERROR")


class _Value(msgspec.Struct, gc=False, rename="camel"):
    string_value: str | None = None
    bool_value: bool | None = None
    int_value: str | int | None = None
    double_value: str | float | None = None


class _Attribute(msgspec.Struct, gc=False, rename="camel"):
    key: str = ""
    value: _Value | None = None


class _Link(msgspec.Struct, gc=False, rename="camel"):
    trace_id: str | None = None
    span_id: str | None = None


class _Status(msgspec.Struct, gc=False, rename="camel"):
    code: int | str | None = None


class _Span(msgspec.Struct, gc=False, rename="camel"):
    trace_id: str | None = None
    span_id: str | None = None
    parent_span_id: str | None = None
    name: str | None = None
    kind: int | str | None = None
    start_time_unix_nano: str | int | None = None
    end_time_unix_nano: str | int | None = None
    attributes: list[_Attribute] | None = None
    links: list[_Link] | None = None
    status: _Status | None = None


class _ScopeSpans(msgspec.Struct, gc=False, rename="camel"):
    spans: list[_Span] | None = None


class _Resource(msgspec.Struct, gc=False, rename="camel"):
    attributes: list[_Attribute] | None = None


class _ResourceSpans(msgspec.Struct, gc=False, rename="camel"):
    resource: _Resource | None = None
    scope_spans: list[_ScopeSpans] | None = None


class _Request(msgspec.Struct, gc=False, rename="camel"):
    resource_spans: list[_ResourceSpans] | None = None


_decode = msgspec.json.Decoder(_Request).decode


def read(body: bytes) -> tuple[list[Span], int]:
    """The spans of one request, and how many were left out because their ids are not valid. Raises FormatError."""
    try:
        request = _decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise FormatError(f"the body is not an ExportTraceServiceRequest in JSON: {str(error)[:200]}") from error
    asked = request.resource_spans or ()
    if sum(len(scope.spans or ()) for each in asked for scope in each.scope_spans or ()) > MAX_SPANS:
        raise FormatError(f"the request holds more than {MAX_SPANS} spans; send smaller batches")
    left_out: Counter[str] = Counter()
    return [span for each in asked for span in _spans(each, left_out)], left_out.total()


def stream(file: BinaryIO, left_out: Counter[str]) -> Iterator[Span]:
    """The spans of a file of requests. What is left out is counted by reason. Raises FormatError naming the position."""
    elements = Elements(file, "resourceSpans", FORM)
    for element in elements:
        yield from _spans(elements.converted(element, _ResourceSpans), left_out)


def _spans(each: _ResourceSpans, left_out: Counter[str]) -> Iterator[Span]:
    resource = _values(each.resource.attributes if each.resource is not None else None)
    service = intern(fields.text_of(resource.get(attributes.SERVICE_NAME, "")))
    hosted = intern(fields.text_of(resource.get(attributes.FAAS_NAME, "")))
    for scope in each.scope_spans or ():
        for wire in scope.spans or ():
            trace_id, span_id = fields.identity(wire.trace_id, 32), fields.identity(wire.span_id, 16)
            if trace_id and span_id:
                yield _span(wire, trace_id, span_id, service, hosted)
            else:
                left_out["invalid id"] += 1


def _span(wire: _Span, trace_id: str, span_id: str, service: str, hosted: str) -> Span:
    own = _values(wire.attributes)
    linked = {fields.identity(link.trace_id, 32): fields.identity(link.span_id, 16) for link in reversed(wire.links or ())}
    link = next(iter(linked.items())) if len(linked) == 1 else ("", "")
    return Span(
        trace_id=intern(trace_id),
        span_id=intern(span_id),
        parent_id=intern(fields.identity(wire.parent_span_id, 16)),
        service=service,
        name=intern(fields.text_of(wire.name)),
        kind=_KINDS.get(wire.kind if wire.kind is not None else 0, SpanKind.UNSPECIFIED),
        start_ns=fields.nanoseconds(wire.start_time_unix_nano),
        end_ns=fields.nanoseconds(wire.end_time_unix_nano),
        failed=wire.status is not None and wire.status.code in _ERROR,
        function=fields.text_of(own.get(attributes.FAAS_NAME, "")),
        hosted=hosted,
        invoked=fields.text_of(own.get(attributes.FAAS_INVOKED_NAME, "")),
        start=fields.start_kind(own),
        wait_s=fields.wait_s(own),
        ran=own.get(attributes.STATUS) != "refused",
        link_trace=link[0] if all(link) else "",
        link_span=link[1] if all(link) else "",
    )


def _values(pairs: Iterable[_Attribute] | None) -> dict[str, fields.Value]:
    """The attributes that are read, where they are plain text, numbers or truth values."""
    found: dict[str, fields.Value] = {}
    for pair in pairs or ():
        if pair.key in fields.WANTED and pair.value is not None:
            value = pair.value
            for told in (value.string_value, value.bool_value):
                if told is not None:
                    found[pair.key] = told
            number = value.double_value if value.double_value is not None else value.int_value
            if number is not None:
                found[pair.key] = _number(number)
    return found


def _number(told: str | float) -> float:
    try:
        return float(told)
    except (ValueError, OverflowError):
        return 0.0
