"""Traces from spans as they come in, from heaps of imported spans, and from our own records."""

import heapq
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from graph.calls import Trace
from graph.ids import TenantId
from tracing.invocations import assemble
from tracing.records import InvocationRecord
from tracing.spans import Span, SpanKind

__all__ = ["Assembler", "AssemblyBounds", "Span", "assemble", "records_to_trace", "traces_of"]

SETTLED_AT_ONCE = 200
"""Traces `Assembler.settled` gives back in one call at most; the rest waits for the next."""

_Key = tuple[TenantId, str]


class AssemblyBounds(msgspec.Struct, frozen=True):
    """`idle_s`: a trace whose root has come is complete when no span came for this long (exporters send every 5 s).

    `rootless_s`: the same without a root. `age_s`: complete at this age, whatever still comes. `spans` and `finished` (ids of
    completed traces, to know late spans) are over all tenants, `spans_per_tenant` keeps one from crowding out others.
    """

    idle_s: float = 6.0
    rootless_s: float = 60.0
    age_s: float = 600.0
    spans_per_trace: int = 10_000
    spans_per_tenant: int = 100_000
    spans: int = 400_000
    finished: int = 50_000


class _Incoming:
    """A trace that is still coming in."""

    __slots__ = ("rooted", "since", "spans", "touched")

    def __init__(self, now: float) -> None:
        self.since = self.touched = now
        self.rooted = False
        self.spans: list[Span] = []


class Assembler:
    """Takes spans as they come and gives traces back. Does nothing by itself: `now` is in seconds of any one epoch.

    `names`: per tenant, observed function names to deployed ones, read when a trace completes. `dropped` counts spans left
    out by reason: those of tracing.tree.SpanTree, `late` (their trace was complete), `trace too long`, `too many spans`.
    """

    def __init__(self, bounds: AssemblyBounds | None = None, names: Mapping[TenantId, Mapping[str, str]] | None = None) -> None:
        self.dropped: Counter[str] = Counter()
        self._bounds = bounds or AssemblyBounds()
        self._names: Mapping[TenantId, Mapping[str, str]] = {} if names is None else names
        self._incoming: dict[_Key, _Incoming] = {}
        self._looks: list[tuple[float, _Key]] = []  # heap: when to look at a trace next, one entry each
        self._finished: OrderedDict[_Key, None] = OrderedDict()
        self._held: Counter[TenantId] = Counter()

    def __len__(self) -> int:
        """Spans held."""
        return self._held.total()

    def add(self, tenant: TenantId, spans: Iterable[Span], now: float) -> int:
        """Takes spans in; returns how many were kept. The others are counted in `dropped`."""
        kept = 0
        room = min(self._bounds.spans - len(self), self._bounds.spans_per_tenant - self._held[tenant])
        for span in spans:
            key = (tenant, span.trace_id)
            trace = self._incoming.get(key)
            if key in self._finished:
                self.dropped["late"] += 1
            elif kept >= room:
                self.dropped["too many spans"] += 1
            elif trace is not None and len(trace.spans) >= self._bounds.spans_per_trace:
                self.dropped["trace too long"] += 1
            else:
                if trace is None:
                    trace = self._incoming[key] = _Incoming(now)
                    heapq.heappush(self._looks, (now + min(self._bounds.idle_s, self._bounds.age_s), key))
                trace.spans.append(span)
                trace.touched = now
                trace.rooted = trace.rooted or not span.parent_id
                kept += 1
        self._held[tenant] += kept
        return kept

    def settled(self, now: float) -> list[Trace]:
        """The traces that are complete, in the order in which they became so. Late spans of them are dropped from here on."""
        complete: list[Trace] = []
        while self._looks and self._looks[0][0] <= now and len(complete) < SETTLED_AT_ONCE:
            key = heapq.heappop(self._looks)[1]
            trace = self._incoming[key]
            due = self._due(trace)
            if due > now:
                heapq.heappush(self._looks, (min(due, now + self._bounds.idle_s), key))  # its root may come before
                continue
            found = self._finish(key)
            if found is not None:
                complete.append(found)
        return complete

    def forget_tenant(self, tenant: TenantId) -> None:
        """What is still coming in of it will be nobody's."""
        for key in [key for key in self._incoming if key[0] == tenant]:
            self._incoming[key].spans.clear()
        del self._held[tenant]

    def _due(self, trace: _Incoming) -> float:
        idle = self._bounds.idle_s if trace.rooted else self._bounds.rootless_s
        return min(trace.touched + idle, trace.since + self._bounds.age_s)

    def _finish(self, key: _Key) -> Trace | None:
        tenant, _ = key
        spans = self._incoming.pop(key).spans
        self._held[tenant] -= len(spans)
        if not self._held[tenant]:
            del self._held[tenant]
        self._finished[key] = None
        if len(self._finished) > self._bounds.finished:
            self._finished.popitem(last=False)
        trace, dropped = assemble(tenant, spans, self._names.get(tenant))
        self.dropped += dropped
        return trace


def traces_of(
    tenant: TenantId, spans: Iterable[Span], names: Mapping[str, str] | None = None
) -> tuple[list[Trace], Counter[str]]:
    """All traces in a heap of spans, the earliest first, and the number of spans left out by reason."""
    together: dict[str, list[Span]] = {}
    for span in spans:
        together.setdefault(span.trace_id, []).append(span)
    traces: list[Trace] = []
    dropped: Counter[str] = Counter()
    for held in sorted(together.values(), key=lambda held: min(span.start_ns for span in held)):
        trace, left_out = assemble(tenant, held, names)
        dropped += left_out
        if trace is not None:
            traces.append(trace)
    return traces, dropped


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
