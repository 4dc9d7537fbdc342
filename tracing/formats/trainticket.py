"""The CSV form in which the traces of the Train-Ticket system were published: one line a span, one header line.

Columns: TraceID, SpanID, ParentID ("root": none), PodName (service, ReplicaSet hash, pod suffix), OperationName,
StartTimeUnixNano, EndTimeUnixNano, Duration (microseconds, not read). There is no kind: it follows from the name that
the OpenTelemetry agent gives a span.
"""

import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from tracing.formats import fields
from tracing.formats.errors import FormatError
from tracing.spans import Span, SpanKind

COLUMNS = ("TraceID", "SpanID", "ParentID", "PodName", "OperationName", "StartTimeUnixNano", "EndTimeUnixNano")
ROOT = "root"
FORM = "CSV"
MAX_LINE = 1 << 20

_POD = re.compile(r"(?P<service>.+)-[0-9a-z]+-[0-9a-z]+")
_CLIENT = re.compile(r"HTTP [A-Z]+")
_IDENTITY = re.compile(r"[0-9a-f]{1,32}")


def read(lines: Iterable[str]) -> list[Span]:
    """The spans of CSV text given as lines: an open file, or `io.StringIO(text)`. Raises FormatError naming line and column."""
    return list(_spans(lines))


def stream(file: BinaryIO, left_out: Counter[str]) -> Iterator[Span]:
    """The spans of a file; none is left out. Raises FormatError naming line and column."""
    lines = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
    try:
        yield from _spans(_bounded(lines))
    except FormatError as error:
        raise FormatError(f"{FORM}: {error}") from error
    except UnicodeDecodeError as error:
        raise FormatError(f"{FORM}: not UTF-8 text") from error
    finally:
        lines.detach()


def _bounded(file: io.TextIOWrapper) -> Iterator[str]:
    number = 0
    while line := file.readline(MAX_LINE):
        number += 1
        if len(line) == MAX_LINE:
            raise FormatError(f"line {number}: longer than {MAX_LINE >> 20} MB")
        yield line


def _spans(lines: Iterable[str]) -> Iterator[Span]:
    rows = csv.reader(lines, strict=True)
    try:
        header = next(rows, [])
        missing = [column for column in COLUMNS if column not in header]
        if missing:
            raise FormatError(f"line 1: the column {missing[0]} is missing; expected are {', '.join(COLUMNS)}")
        places = [header.index(column) for column in COLUMNS]
        for row in rows:
            if not row:
                continue
            if len(row) != len(header):
                raise FormatError(f"line {rows.line_num}: {len(row)} fields, the header has {len(header)}")
            yield _span([row[place] for place in places], rows.line_num)
    except csv.Error as error:
        raise FormatError(f"line {rows.line_num}: not CSV: {error}") from error


def _span(row: list[str], line: int) -> Span:
    trace_id, span_id, parent_id, pod, operation, start, end = row
    for column, value in (("TraceID", trace_id), ("SpanID", span_id)):
        if not _IDENTITY.fullmatch(value):
            raise FormatError(f"line {line}: {column} {value[:40]!r} is not up to 32 lower-case hex digits")
    if parent_id != ROOT and not _IDENTITY.fullmatch(parent_id):
        raise FormatError(f"line {line}: ParentID {parent_id[:40]!r} is neither hex digits nor {ROOT!r}")
    return Span(
        trace_id=trace_id,
        span_id=span_id,
        parent_id="" if parent_id == ROOT else parent_id,
        service=service_of(pod)[: fields.NAME_LIMIT],
        name=operation[: fields.NAME_LIMIT],
        kind=kind_of(operation),
        start_ns=_nanoseconds(start, "StartTimeUnixNano", line),
        end_ns=_nanoseconds(end, "EndTimeUnixNano", line),
    )


def service_of(pod: str) -> str:
    """The name of a Deployment, from the name of one of its pods."""
    match = _POD.fullmatch(pod)
    return match["service"] if match else pod


def kind_of(operation: str) -> SpanKind:
    """A route is a server's span, `HTTP GET` a client's, `queue send` and `queue process` the halves of a message."""
    if operation.startswith("/"):
        return SpanKind.SERVER
    if _CLIENT.fullmatch(operation):
        return SpanKind.CLIENT
    if operation.endswith(" send"):
        return SpanKind.PRODUCER
    if operation.endswith((" process", " receive")):
        return SpanKind.CONSUMER
    return SpanKind.INTERNAL


def _nanoseconds(value: str, column: str, line: int) -> int:
    if not value.isascii() or not value.isdecimal() or len(value) > 20:
        raise FormatError(f"line {line}: {column} {value[:40]!r} is not a time in nanoseconds")
    return fields.nanoseconds(value)
