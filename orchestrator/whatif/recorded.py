"""A user's exported traces: read from files of any form, with the moments at which their runs began."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import msgspec

from graph.calls import Trace
from graph.ids import TenantId
from tracing.assembly import traces_of
from tracing.formats.reading import read_file
from tracing.spans import Span

TENANT = TenantId("whatif")
MAX_SPANS = 3_000_000
"""About 1 GB of memory."""


class RecordedError(ValueError):
    """There is nothing in the files that can be replayed; the message says why and what to do."""


class Recorded(msgspec.Struct, frozen=True):
    """`started_s`: by trace id, seconds since the epoch. `left_out`: spans that are in no trace, by reason."""

    traces: list[Trace]
    started_s: dict[str, float]
    spans: int
    left_out: Counter[str]


def read(files: Sequence[Path], form: str = "") -> Recorded:
    """Raises FormatError naming file and place, RecordedError, and OSError."""
    left_out: Counter[str] = Counter()
    spans = list(_bounded(span for file in files for span in read_file(file, left_out, form)))
    traces, dropped = traces_of(TENANT, spans)
    started: dict[str, int] = {}
    for span in spans:
        if span.start_ns and (span.trace_id not in started or span.start_ns < started[span.trace_id]):
            started[span.trace_id] = span.start_ns
    ran = [trace for trace in traces if trace.ran and trace.duration_s > 0.0 and trace.trace_id in started]
    if not ran:
        told = ", ".join(f"{count} {reason}" for reason, count in (left_out + dropped).most_common(3)) or "they hold no span"
        raise RecordedError(f"no trace in {', '.join(map(str, files))} can be replayed ({told})")
    return Recorded(ran, {trace.trace_id: started[trace.trace_id] / 1e9 for trace in ran}, len(spans), left_out + dropped)


def _bounded(spans: Iterable[Span]) -> Iterator[Span]:
    for count, span in enumerate(spans):
        if count >= MAX_SPANS:
            raise RecordedError(f"the files hold more than {MAX_SPANS:,} spans; give fewer")
        yield span
