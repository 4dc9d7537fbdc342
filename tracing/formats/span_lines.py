"""Our own form: one JSON array a line, the fields of tracing.spans.Span in their order. What `foreglow traces import` sends.

Every other form becomes this one where the file is; so the platform reads one form for all of them, and traces stay whole
however large a file is.
"""

import io
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import BinaryIO

import msgspec

from tracing.formats import fields
from tracing.formats.errors import FormatError
from tracing.spans import Span

FORM = "span lines"
MAX_LINE = 1 << 20

_encode = msgspec.json.Encoder().encode_lines
_decode = msgspec.json.Decoder(Span).decode


def write(spans: Iterable[Span]) -> str:
    return _encode(spans).decode()


def stream(file: BinaryIO, left_out: Counter[str]) -> Iterator[Span]:
    """The spans of a file. What is left out is counted by reason. Raises FormatError naming the line."""
    number = 0
    while line := file.readline(MAX_LINE):
        number += 1
        if len(line) == MAX_LINE:
            raise FormatError(f"{FORM}: line {number}: longer than {MAX_LINE >> 20} MB")
        if not line.strip():
            continue
        try:
            span = _decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise FormatError(f"{FORM}: line {number}: {str(error)[:200]}") from error
        if not span.trace_id or not span.span_id or max(map(len, (span.trace_id, span.span_id, span.parent_id))) > 32:
            left_out["invalid id"] += 1
        elif max(map(len, (span.service, span.name, span.function, span.hosted, span.invoked))) > fields.NAME_LIMIT:
            raise FormatError(f"{FORM}: line {number}: a name of more than {fields.NAME_LIMIT} characters")
        elif not (0 <= span.start_ns <= fields.MAX_NS and 0 <= span.end_ns <= fields.MAX_NS and 0.0 <= span.wait_s < 1e6):
            raise FormatError(f"{FORM}: line {number}: a time that is none")
        else:
            yield span


def read(text: str) -> Iterator[Span]:
    """As `stream`, of text; spans that have no valid id are left out unsaid."""
    return stream(io.BytesIO(text.encode()), Counter())
