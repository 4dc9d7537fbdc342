"""A file of any form into spans: unpacked, its form found by what is in it, read as it goes."""

import gzip
import io
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from tracing.formats import jaeger, otlp_json, span_lines, trainticket, xray, zipkin
from tracing.formats.errors import FormatError
from tracing.spans import Span

HEAD = 1 << 16
"""Bytes that are looked at to tell what form a file has."""

Stream = Callable[[BinaryIO, Counter[str]], Iterator[Span]]

FORMS: dict[str, Stream] = {
    "otlp": otlp_json.stream,
    "jaeger": jaeger.stream,
    "zipkin": zipkin.stream,
    "xray": xray.stream,
    "csv": trainticket.stream,
    "spans": span_lines.stream,
}

_MEMBERS = {"otlp": b'"resourceSpans"', "xray": b'"Segments"', "jaeger": b'"traceID"', "zipkin": b'"traceId"'}
_EMPTY = {"jaeger": re.compile(rb'^\{\s*"data"\s*:'), "zipkin": re.compile(rb"^\[\s*(?:\[\s*)*\]")}
_SPAN_LINE = re.compile(rb'^\["[0-9a-f]{1,32}"')


def detect(head: bytes) -> str:
    """The name of the form (a key of FORMS) of a file that begins like this. Raises FormatError when it is none of them."""
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if _SPAN_LINE.match(text):
        return "spans"
    if text[:1] in (b"{", b"["):
        found = [(at, name) for name, member in _MEMBERS.items() if (at := _find(text, member)) >= 0]
        if found:
            return min(found)[1]
        for name, start in _EMPTY.items():
            if start.match(text):
                return name
    elif trainticket.COLUMNS[0].encode() in text.partition(b"\n")[0]:
        return "csv"
    raise FormatError(
        f"line 1: none of the known forms ({', '.join(FORMS)}): it begins with {text[:40].decode(errors='replace')!r}; "
        "name the form if it is one of them"
    )


def _find(text: bytes, member: bytes) -> int:
    """Where the name of a member stands, not as text within a text: there its quotes have a backslash. -1 when nowhere."""
    at = text.find(member)
    while at > 0 and text[at - 1 : at] == b"\\":
        at = text.find(member, at + 1)
    return at


def read_stream(file: BinaryIO, left_out: Counter[str], form: str = "") -> Iterator[Span]:
    """The spans of what `file` holds, in the order of the file; plain, or packed with gzip.

    `form` is a key of FORMS, empty to find it out. Spans left out are counted in `left_out` by reason. At most one element
    (a trace, a request, a line) is in memory. Raises FormatError naming form and position.
    """
    if not isinstance(file, io.BufferedReader):
        file = io.BufferedReader(_Raw(file), HEAD)
    plain = gzip.GzipFile(fileobj=file) if file.peek(2)[:2] == b"\x1f\x8b" else file
    buffered = io.BufferedReader(_Raw(plain), HEAD)
    try:
        chosen = form or detect(buffered.peek(HEAD))
        yield from FORMS[chosen](buffered, left_out)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise FormatError(f"gzip: damaged or cut off: {error}") from error


def read_file(
    path: Path, left_out: Counter[str] | None = None, form: str = "", progress: Callable[[int], None] | None = None
) -> Iterator[Span]:
    """As `read_stream`, of a file. `progress` is told of each number of bytes read of it.

    FormatErrors name it. Raises OSError when it cannot be read.
    """
    with path.open("rb") as file:
        try:
            yield from read_stream(
                io.BufferedReader(_Raw(file, progress), HEAD), Counter() if left_out is None else left_out, form
            )
        except FormatError as error:
            raise FormatError(f"{path}: {error}") from error


class _Raw(io.RawIOBase):
    """Any stream of bytes, for io.BufferedReader: which can look ahead."""

    def __init__(self, file: "BinaryIO | gzip.GzipFile", progress: Callable[[int], None] | None = None) -> None:
        self._file = file
        self._progress = progress

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "bytearray | memoryview") -> int:  # type: ignore[override]
        found = self._file.read(len(buffer))
        buffer[: len(found)] = found
        if self._progress is not None:
            self._progress(len(found))
        return len(found)
