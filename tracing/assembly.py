"""Traces from heaps of imported spans and from our own records; as they come in: tracing.incoming."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from graph.calls import Trace
from graph.ids import TenantId
from tracing.incoming import Assembler, AssemblyBounds
from tracing.invocations import assemble
from tracing.links import joined
from tracing.records import InvocationRecord
from tracing.spans import Span, SpanKind

__all__ = ["Assembler", "AssemblyBounds", "Span", "assemble", "records_to_trace", "traces_of"]


def traces_of(
    tenant: TenantId, spans: Iterable[Span], names: Mapping[str, str] | None = None
) -> tuple[list[Trace], Counter[str]]:
    """All traces in a heap of spans, the earliest first, and the number of spans left out by reason."""
    together: dict[str, list[Span]] = {}
    for span in spans:
        together.setdefault(span.trace_id, []).append(span)
    traces: list[Trace] = []
    dropped: Counter[str] = Counter()
    for held in sorted(joined(together), key=began):
        trace, left_out = assemble(tenant, held, names)
        dropped += left_out
        if trace is not None:
            traces.append(trace)
    return traces, dropped


def began(spans: Iterable[Span]) -> tuple[int, str]:
    """When the first of them began, for order; those that do not say come first."""
    return min(((span.start_ns, span.trace_id) for span in spans if span.start_ns), default=(0, ""))


def records_to_trace(records: Sequence[InvocationRecord]) -> Trace:
    """The trace of our own records of one run. Raises ValueError when there are none, or of several runs.

    A record whose parent's is missing is left out. `ran` is False when the entry was refused: nothing can be learned from it.
    """
    if not records:
        raise ValueError("records: at least one is needed")
    runs = {(record.tenant, record.trace_id) for record in records}
    if len(runs) > 1:
        raise ValueError(f"records: they belong to {len(runs)} runs, not one")
    tenant = TenantId(records[0].tenant)
    trace, _ = assemble(tenant, [_as_span(record) for record in records])
    if trace is None:
        raise ValueError("records: each is its own ancestor")
    return trace


def _as_span(record: InvocationRecord) -> Span:
    name = record.function.removeprefix(f"{record.tenant}/")
    return Span(
        trace_id=record.trace_id,
        span_id=record.invocation_id,
        parent_id=record.parent_id,
        service=name,
        name=name,
        kind=SpanKind.SERVER,
        start_ns=int(record.sent_at * 1e9),
        end_ns=int(record.ended_at * 1e9),
        failed=record.status != "ok",
        function=name,
        start=record.start,
        wait_s=record.timings.start_ms / 1000,
        ran=record.status != "refused",
    )
