"""The spans of one trace, as the tree they form: halves told apart, duplicates and what hangs in the air set aside."""

from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec

from tracing.spans import Span, SpanKind


class SpanTree:
    """`spans[top]` is the root; `children[i]` are indices into `spans`, by start. What is not below `top` is in `dropped`.

    `starts[i]` is when span i began, in nanoseconds; where it does not say, when the first of its children did that does, and 0
    where none does.

    Reasons in `dropped`, each with its number of spans: `duplicate` (the same half twice, or a part of it), `second root`,
    `orphan` (its parent never came), `cycle` (its own ancestor). When no root came, the largest of the orphaned trees stands for
    it: the caller was outside of what is traced. A span that has no parent in the trace but is linked to one is below that.
    """

    def __init__(self, spans: Iterable[Span]) -> None:
        self.dropped: Counter[str] = Counter()
        self.spans: list[Span] = self._halves(spans)
        self.starts: list[int] = [span.start_ns for span in self.spans]
        self.children: list[list[int]] = [[] for _ in self.spans]
        roots, orphans = self._link()
        below = {top: self._below(top) for top in (*roots, *orphans)}
        self.top = max(roots or orphans, key=lambda top: self._rank(top, len(below[top])), default=None)
        for top in roots:
            if top != self.top:
                self.dropped["second root"] += len(below[top])
        for top in orphans:
            if top != self.top:
                self.dropped["orphan"] += len(below[top])
        alone = len(self.spans) - sum(map(len, below.values()))
        if alone:
            self.dropped["cycle"] += alone
        if self.top is not None:
            self._order(below[self.top])

    def size(self, top: int) -> int:
        """How many spans there are from this one down, itself too."""
        return len(self._below(top))

    # -- halves

    def _halves(self, spans: Iterable[Span]) -> list[Span]:
        """One span for each half of each id; more for calls that were tried again under one id."""
        first: dict[tuple[str, bool], Span] = {}
        more: dict[tuple[str, bool], list[Span]] = {}
        for span in spans:
            key = (span.span_id, span.kind.called)
            if key in first:
                more.setdefault(key, [first[key]]).append(span)
            else:
                first[key] = span
        kept = list(first.values())
        if more:
            kept = [span for key, span in first.items() if key not in more]
            for same in more.values():
                kept += self._told_apart(same)
        if any(not span.start_ns and span.kind is SpanKind.UNSPECIFIED for span in kept):
            kept = self._without_fragments(kept)
        return kept

    def _told_apart(self, same: Sequence[Span]) -> list[Span]:
        """Spans of one id and half. In one service, those whose times meet are reports of one; the last to end is whole."""
        together: dict[str, list[Span]] = {}
        for span in same:
            together.setdefault(span.service, []).append(span)
        kept: list[Span] = []
        for of_service in together.values():
            of_service.sort(key=lambda span: span.start_ns)  # untimed ones first: they say least, and join the first that is
            best = of_service[0]
            until = best.end_ns
            for span in of_service[1:]:
                if best.start_ns and span.start_ns > max(until, best.start_ns):
                    kept.append(best)
                    best, until = span, span.end_ns
                    continue
                self.dropped["duplicate"] += 1
                until = max(until, span.end_ns)
                best = max(best, span, key=_wholeness)
            kept.append(best)
        return kept

    def _without_fragments(self, spans: list[Span]) -> list[Span]:
        """Takes out what shares the id of a span with a kind, and has neither kind nor time itself: a part of its report."""
        typed = {span.span_id for span in spans if span.kind is not SpanKind.UNSPECIFIED}
        kept = [span for span in spans if span.start_ns or span.kind is not SpanKind.UNSPECIFIED or span.span_id not in typed]
        if len(kept) < len(spans):
            self.dropped["duplicate"] += len(spans) - len(kept)
        return kept

    # -- links

    def _link(self) -> tuple[list[int], list[int]]:
        """Fills `children`; returns the roots and the orphans. Children of a shared id belong to its callee's half."""
        called: dict[str, list[int]] = {}
        other: dict[str, list[int]] = {}
        for index, span in enumerate(self.spans):
            (called if span.kind.called else other).setdefault(span.span_id, []).append(index)
        roots: list[int] = []
        orphans: list[int] = []
        for index, span in enumerate(self.spans):
            if span.kind.called and span.span_id in other:
                above = other[span.span_id]
            else:
                above = called.get(span.parent_id) or other.get(span.parent_id) or []
                if not above and span.link_trace == span.trace_id and span.link_span != span.span_id:
                    above = other.get(span.link_span) or called.get(span.link_span) or []
            if above:
                parent = above[0] if len(above) == 1 else self._nearest(above, span)
                self.children[parent].append(index)
            else:
                (orphans if span.parent_id else roots).append(index)
        return roots, orphans

    def _nearest(self, candidates: Sequence[int], span: Span) -> int:
        """Of spans with one id: one of the same service, begun last before the span; else the first."""

        def rank(index: int) -> tuple[bool, bool, int, str]:
            one = self.spans[index]
            before = one.start_ns <= span.start_ns
            return one.service != span.service, not before, -one.start_ns if before else one.start_ns, one.service

        return min(candidates, key=rank)

    # -- order

    def _below(self, top: int) -> list[int]:
        """It and everything below, parents before children."""
        found = [top]
        for index in found:
            found.extend(self.children[index])
        return found

    def _rank(self, top: int, size: int) -> tuple[int, int, str, str, int]:
        span = self.spans[top]
        return size, -span.start_ns, span.span_id, span.service, span.kind

    def _order(self, members: Sequence[int]) -> None:
        """Sorts children by start. Leaves come first, so that a start that is missing can be taken from below."""
        for index in reversed(members):
            children = self.children[index]
            if not self.starts[index] and children:
                mine = [self.starts[child] for child in children if self.spans[child].service == self.spans[index].service]
                known = [start for start in mine if start] or [self.starts[child] for child in children if self.starts[child]]
                self.starts[index] = min(known, default=0)
            if len(children) > 1:
                children.sort(key=lambda child: (self.starts[child], self.spans[child].span_id, self.spans[child].service))


def _wholeness(span: Span) -> tuple[bool, int, tuple[object, ...]]:
    return span.start_ns > 0, span.end_ns, msgspec.structs.astuple(span)
