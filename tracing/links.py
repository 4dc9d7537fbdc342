"""Links between traces: who takes a message from a queue begins a trace of its own, and says which span it follows from."""

from collections.abc import Iterator, Mapping

import msgspec

from tracing.spans import Span


def leader_of(root: Span) -> str:
    """The trace that a root's trace belongs to; empty when it is one of its own.

    Only a callee's half counts: a span that somebody called. A link to several traces (a batch of messages) names none of
    them in Span, since one run would become a part of many.
    """
    if root.kind.called and root.link_span and root.link_trace != root.trace_id:
        return root.link_trace
    return ""


def joined(traces: Mapping[str, list[Span]]) -> Iterator[list[Span]]:
    """The heaps of spans of these traces (by id), those whose only root is linked to a span of another one put into it."""
    leaders: dict[str, tuple[str, Span]] = {}
    for trace_id, spans in traces.items():
        roots = [span for span in spans if not span.parent_id]
        if len({root.span_id for root in roots}) == 1:
            root = roots[0]
            leader = leader_of(root)
            if leader in traces and any(span.span_id == root.link_span for span in traces[leader]):
                leaders[trace_id] = leader, root
    if not leaders:
        yield from traces.values()
        return
    together: dict[str, list[Span]] = {}
    for trace_id, spans in traces.items():
        first = _first(trace_id, leaders)
        heap = together.setdefault(first, [])
        if first == trace_id:
            heap[:0] = spans
        else:
            above = leaders[trace_id][1].link_span
            heap += [span if span.parent_id else msgspec.structs.replace(span, parent_id=above) for span in spans]
    yield from together.values()


def _first(trace_id: str, leaders: Mapping[str, tuple[str, Span]]) -> str:
    """The trace at the beginning of the chain; itself when the chain is a ring."""
    seen = {trace_id}
    at = trace_id
    while at in leaders:
        at = leaders[at][0]
        if at in seen:
            return trace_id
        seen.add(at)
    return at
