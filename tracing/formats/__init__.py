"""Spans from the wire formats and the public traces. Each module reads one form into tracing.spans.Span."""


class FormatError(ValueError):
    """What was given does not have the form it should; the message names the place and the field."""
