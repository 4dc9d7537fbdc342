"""AWS X-Ray's JSON, as `aws xray batch-get-traces` answers: {"Traces": [trace, ...]}, or one trace a line.

A trace holds `Segments`, each with a `Document` that is JSON in text again. A segment is one service's part of a request, its
subsegments are what that did: those in the namespaces `aws` and `remote` are calls. A Lambda function has two segments, the
service's and below it the function's own; both are one invocation here. An inferred segment is what a caller tells of a
service that is not traced itself: the caller's half, which is there already.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any, BinaryIO

import msgspec

from tracing.formats import fields
from tracing.formats.json_stream import Elements
from tracing.spans import Span, SpanKind

FORM = "X-Ray JSON"
_SECOND = 1_000_000_000
_MAX_DEPTH = 64


class _Segment(msgspec.Struct, gc=False):
    Document: str | dict[str, Any]


class _Trace(msgspec.Struct, gc=False):
    Id: str = ""
    Segments: list[_Segment] = []


class _Part(msgspec.Struct, gc=False):
    """A segment's document, or a subsegment."""

    id: str = ""
    name: str | None = None
    parent_id: str | None = None
    start_time: float | None = None
    end_time: float | None = None
    origin: str | None = None
    namespace: str | None = None
    inferred: bool | None = None
    error: bool | None = None
    fault: bool | None = None
    subsegments: list["_Part"] | None = None


_decode = msgspec.json.Decoder(_Part).decode


def stream(file: BinaryIO, left_out: Counter[str]) -> Iterator[Span]:
    """The spans of a file. What is left out is counted by reason. Raises FormatError naming the position."""
    elements = Elements(file, "Traces", FORM)
    for element in elements:
        try:
            trace = elements.converted(element, _Trace)
            documents = [
                _decode(one.Document) if isinstance(one.Document, str) else elements.converted(one.Document, _Part)
                for one in trace.Segments
            ]
        except (msgspec.MsgspecError, RecursionError, UnicodeEncodeError) as error:
            raise elements.error(f"before here: {error}") from error
        trace_id = fields.identity(trace.Id.removeprefix("1-").replace("-", ""), 32)
        for document in documents:
            yield from _spans(document, trace_id, left_out)


def _spans(segment: _Part, trace_id: str, left_out: Counter[str]) -> Iterator[Span]:
    service = fields.text_of(segment.name)
    waiting: list[tuple[_Part, str, int]] = [(segment, fields.identity(segment.parent_id, 16), 0)]
    while waiting:
        part, parent, depth = waiting.pop()
        span_id = fields.identity(part.id, 16)
        if not trace_id or not span_id:
            left_out["invalid id"] += 1
        else:
            yield _span(part, trace_id, span_id, parent, service, depth == 0)
        if depth < _MAX_DEPTH:
            waiting += [(below, span_id, depth + 1) for below in part.subsegments or ()]
        else:
            left_out["nested too deeply"] += len(part.subsegments or ())


def _span(part: _Part, trace_id: str, span_id: str, parent: str, service: str, segment: bool) -> Span:
    if segment:
        kind = SpanKind.CLIENT if part.inferred else SpanKind.SERVER
    else:
        kind = SpanKind.CLIENT if part.namespace in ("aws", "remote") else SpanKind.INTERNAL
    return Span(
        trace_id=trace_id,
        span_id=span_id,
        parent_id=parent,
        service=service,
        name=fields.text_of(part.name),
        kind=kind,
        start_ns=fields.nanoseconds(part.start_time, _SECOND),
        end_ns=fields.nanoseconds(part.end_time, _SECOND),
        failed=bool(part.error or part.fault),
        hosted=service if segment and not part.inferred else "",
    )
