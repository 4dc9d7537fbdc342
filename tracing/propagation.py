"""W3C traceparent: parsed strictly, written in version 00 (https://www.w3.org/TR/trace-context/)."""

import re

import msgspec

HEADER = "traceparent"

_FIELDS = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.ASCII)
_NO_TRACE = "0" * 32
_NO_SPAN = "0" * 16


class TraceContext(msgspec.Struct, frozen=True):
    """`trace_id`: 32 lower-case hex digits, `span_id`: 16, neither all zero."""

    trace_id: str
    span_id: str
    sampled: bool = True


def parse(header: str) -> TraceContext | None:
    """The context of a traceparent header; None for anything the standard calls invalid, as if there was none.

    A version above 00 may have more fields, which are ignored; of the flags only "sampled" is known.
    """
    if len(header) > 512:
        return None
    match = _FIELDS.fullmatch(header.strip(" \t"))
    if match is None:
        return None
    version, trace_id, span_id, flags, more = match.groups()
    if version == "ff" or (version == "00" and more is not None) or trace_id == _NO_TRACE or span_id == _NO_SPAN:
        return None
    return TraceContext(trace_id, span_id, bool(int(flags, 16) & 1))


def traceparent(context: TraceContext) -> str:
    """The header for a context."""
    return f"00-{context.trace_id}-{context.span_id}-{'01' if context.sampled else '00'}"
