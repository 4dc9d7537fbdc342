"""Zipkin's v2 JSON: an array of spans, an array of traces (arrays of spans), or one span a line.

The halves of a call may share one id: `shared` marks the callee's. Times are microseconds, and either may be missing: a span
that was reported in parts has them in one of them only. A span without a kind is what its process did inside.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any, BinaryIO

import msgspec

from tracing import attributes
from tracing.formats import fields
from tracing.formats.json_stream import Elements
from tracing.spans import Span, SpanKind

FORM = "Zipkin JSON"
_MICRO = 1000


class _Endpoint(msgspec.Struct, gc=False, rename="camel"):
    service_name: str | None = None


class _Span(msgspec.Struct, gc=False, rename="camel"):
    trace_id: str = ""
    id: str = ""
    parent_id: str | None = None
    name: str | None = None
    kind: str | None = None
    timestamp: int | float | None = None
    duration: int | float | None = None
    local_endpoint: _Endpoint | None = None
    shared: bool | None = None
    tags: dict[str, Any] | None = None


def stream(file: BinaryIO, left_out: Counter[str]) -> Iterator[Span]:
    """The spans of a file. What is left out is counted by reason. Raises FormatError naming the position."""
    elements = Elements(file, "", FORM)
    for element in elements:
        for wire in elements.converted(element if isinstance(element, list) else [element], list[_Span]):
            trace_id, span_id = fields.identity(wire.trace_id, 32), fields.identity(wire.id, 16)
            if trace_id and span_id:
                yield _span(wire, trace_id, span_id)
            else:
                left_out["invalid id"] += 1


def _span(wire: _Span, trace_id: str, span_id: str) -> Span:
    own = {name: value for name, value in (wire.tags or {}).items() if isinstance(value, str)}
    kind = fields.KINDS.get((wire.kind or "").lower(), SpanKind.UNSPECIFIED)
    if wire.shared and not kind.called:
        kind = SpanKind.SERVER
    start = fields.nanoseconds(wire.timestamp, _MICRO)
    return Span(
        trace_id=trace_id,
        span_id=span_id,
        parent_id=fields.identity(wire.parent_id, 16),
        service=fields.text_of(wire.local_endpoint.service_name if wire.local_endpoint is not None else ""),
        name=fields.text_of(wire.name),
        kind=kind,
        start_ns=start,
        end_ns=min(fields.MAX_NS, start + fields.nanoseconds(wire.duration, _MICRO)) if start and wire.duration else 0,
        failed="error" in own,
        function=fields.text_of(own.get(attributes.FAAS_NAME, "")),
        invoked=fields.text_of(own.get(attributes.FAAS_INVOKED_NAME, "")),
    )
