"""Spans from the wire formats and the public traces. Each module reads one form into tracing.spans.Span; `read_file` any."""

from tracing.formats.errors import FormatError
from tracing.formats.reading import FORMS, detect, read_file, read_stream

__all__ = ["FORMS", "FormatError", "detect", "read_file", "read_stream"]
