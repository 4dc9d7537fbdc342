"""Jaeger's JSON, as its UI downloads it and its query API answers: {"data": [trace, ...]}, or a trace alone, or one a line.

A trace holds `spans` and `processes`; a span's service is its process's, times are microseconds, its parent is a reference
CHILD_OF (or parent_span_id, in old files); FOLLOWS_FROM is a parent when there is no other. Kind and failure are tags.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any, BinaryIO

import msgspec

from tracing import attributes
from tracing.formats import fields
from tracing.formats.json_stream import Elements
from tracing.spans import Span, SpanKind

FORM = "Jaeger JSON"
_MICRO = 1000


def _named(field: str) -> str:
    first, *others = field.split("_")
    return first + "".join("ID" if part == "id" else part.capitalize() for part in others)


class _Tag(msgspec.Struct, gc=False, rename=_named):
    key: str = ""
    value: Any = None


class _Reference(msgspec.Struct, gc=False, rename=_named):
    ref_type: str = ""
    trace_id: str = ""
    span_id: str = ""


class _Process(msgspec.Struct, gc=False, rename=_named):
    service_name: str = ""
    tags: list[_Tag] | None = None


class _Span(msgspec.Struct, gc=False, rename=_named):
    trace_id: str = ""
    span_id: str = ""
    parent_span_id: str | None = None
    operation_name: str = ""
    references: list[_Reference] | None = None
    start_time: int | float = 0
    duration: int | float = 0
    tags: list[_Tag] | None = None
    process_id: str = ""
    process: _Process | None = None


class _Trace(msgspec.Struct, gc=False, rename=_named):
    spans: list[_Span] | None = None
    processes: dict[str, _Process] | None = None


def stream(file: BinaryIO, left_out: Counter[str]) -> Iterator[Span]:
    """The spans of a file. What is left out is counted by reason. Raises FormatError naming the position."""
    elements = Elements(file, "data", FORM)
    for element in elements:
        yield from _spans(elements.converted(element, _Trace), left_out, elements)


def _spans(trace: _Trace, left_out: Counter[str], elements: Elements) -> Iterator[Span]:
    if trace.spans is None:
        raise elements.error("before here: a trace without `spans`")
    processes = trace.processes or {}
    for wire in trace.spans:
        trace_id, span_id = fields.identity(wire.trace_id, 32), fields.identity(wire.span_id, 16)
        if not trace_id or not span_id:
            left_out["invalid id"] += 1
            continue
        yield _span(wire, trace_id, span_id, wire.process or processes.get(wire.process_id) or _Process())


def _span(wire: _Span, trace_id: str, span_id: str, process: _Process) -> Span:
    own, its = _values(wire.tags), _values(process.tags)
    start = fields.nanoseconds(wire.start_time, _MICRO)
    parent, link = _parent(wire, trace_id)
    return Span(
        trace_id=trace_id,
        span_id=span_id,
        parent_id=parent,
        service=fields.text_of(process.service_name),
        name=fields.text_of(wire.operation_name),
        kind=fields.KINDS.get(str(own.get("span.kind", "")).lower(), SpanKind.UNSPECIFIED),
        start_ns=start,
        end_ns=min(fields.MAX_NS, start + fields.nanoseconds(wire.duration, _MICRO)) if start else 0,
        failed=own.get("error") in (True, "true") or own.get("otel.status_code") == "ERROR",
        function=fields.text_of(own.get(attributes.FAAS_NAME, "")),
        hosted=fields.text_of(its.get(attributes.FAAS_NAME, "")),
        invoked=fields.text_of(own.get(attributes.FAAS_INVOKED_NAME, "")),
        start=fields.start_kind(own),
        wait_s=fields.wait_s(own),
        ran=own.get(attributes.STATUS) != "refused",
        link_trace=link[0],
        link_span=link[1],
    )


def _parent(wire: _Span, trace_id: str) -> tuple[str, tuple[str, str]]:
    """The parent in its trace, and the only span of another trace that it follows."""
    followed: list[str] = []
    elsewhere: list[tuple[str, str]] = []
    for reference in wire.references or ():
        there, span = fields.identity(reference.trace_id, 32) or trace_id, fields.identity(reference.span_id, 16)
        if not span:
            continue
        if there != trace_id:
            elsewhere.append((there, span))
        elif reference.ref_type == "CHILD_OF":
            return span, ("", "")
        else:
            followed.append(span)
    parent = followed[0] if followed else fields.identity(wire.parent_span_id, 16)
    return parent, elsewhere[0] if len({trace for trace, _ in elsewhere}) == 1 else ("", "")


_READ = fields.WANTED | {"span.kind", "error", "otel.status_code"}


def _values(tags: list[_Tag] | None) -> dict[str, fields.Value]:
    return {tag.key: tag.value for tag in tags or () if tag.key in _READ and isinstance(tag.value, str | bool | int | float)}
