"""Span: what is kept of a span of any origin, in one shape for every format."""

from enum import IntEnum

import msgspec

from graph.calls import StartKind


class SpanKind(IntEnum):
    """OpenTelemetry's kinds with its numbers."""

    UNSPECIFIED = 0
    INTERNAL = 1
    SERVER = 2
    CLIENT = 3
    PRODUCER = 4
    CONSUMER = 5

    @property
    def called(self) -> bool:
        """The callee's half of a call."""
        return self in (SpanKind.SERVER, SpanKind.CONSUMER)

    @property
    def calling(self) -> bool:
        """The caller's half of a call."""
        return self in (SpanKind.CLIENT, SpanKind.PRODUCER)


class Span(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Times are nanoseconds since the Unix epoch in the clock of `service`, 0 where it does not say. Ids are lower-case hex,
    `parent_id` empty for none.

    `function` is the deployed function the span itself says it ran (faas.name), `hosted` the one its process says it is,
    `invoked` the one a caller's half says it called.
    `wait_s` is the part of it spent waiting for an instance, where it says so. `ran` is False when it says that no
    instance was reached. `link_trace` and `link_span` are the one span elsewhere that it says it follows from, empty when there
    is none or there are several: a message taken from a queue.
    """

    trace_id: str
    span_id: str
    parent_id: str
    service: str
    name: str
    kind: SpanKind
    start_ns: int
    end_ns: int
    failed: bool = False
    function: str = ""
    hosted: str = ""
    invoked: str = ""
    start: StartKind = StartKind.UNKNOWN
    wait_s: float = 0.0
    ran: bool = True
    link_trace: str = ""
    link_span: str = ""

    @property
    def duration_s(self) -> float:
        """Never negative: clocks step, and some spans were not ended or do not say when they began."""
        return max(0, self.end_ns - self.start_ns) / 1e9 if self.start_ns else 0.0
