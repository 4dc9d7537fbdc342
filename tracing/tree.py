"""The spans of one trace, as the tree they form: halves told apart, duplicates and what hangs in the air set aside."""

from collections import Counter
from collections.abc import Iterable, Sequence

from tracing.spans import Span


class SpanTree:
    """`spans[top]` is the root; `children[i]` are indices into `spans`, by start. What is not below `top` is in `dropped`.

    Reasons in `dropped`, each with its number of spans: `duplicate` (the same half twice), `second root`, `orphan` (its
    parent never came), `cycle` (its own ancestor). When no root came, the largest of the orphaned trees stands for it: the
    caller was outside of what is traced.
    """

    def __init__(self, spans: Iterable[Span]) -> None:
        self.dropped: Counter[str] = Counter()
        self.spans: list[Span] = self._halves(spans)
        self.children: list[list[int]] = [[] for _ in self.spans]
        roots, orphans = self._link()
        trees = {top: self._size(top) for top in (*roots, *orphans)}
        tops = roots or orphans
        self.top = max(tops, key=lambda top: (trees[top], -self.spans[top].start_ns, self.spans[top].span_id), default=None)
        for top in roots:
            if top != self.top:
                self.dropped["second root"] += trees[top]
        for top in orphans:
            if top != self.top:
                self.dropped["orphan"] += trees[top]
        self.dropped["cycle"] += len(self.spans) - sum(trees.values())
        self.dropped += Counter()  # takes the zeros out
        for children in self.children:
            children.sort(key=lambda child: (self.spans[child].start_ns, self.spans[child].span_id))

    def _halves(self, spans: Iterable[Span]) -> list[Span]:
        """One span for each half of each id. Of two that claim to be the same the one that ended later: the other was partial."""
        kept: dict[tuple[str, bool], Span] = {}
        for span in spans:
            key = (span.span_id, span.kind.called)
            other = kept.get(key)
            if other is not None:
                self.dropped["duplicate"] += 1
            if other is None or (other.end_ns, other.start_ns, other.name) < (span.end_ns, span.start_ns, span.name):
                kept[key] = span
        return list(kept.values())

    def _link(self) -> tuple[list[int], list[int]]:
        """Fills `children`; returns the roots and the orphans. Children of a shared id belong to its callee's half."""
        called = {span.span_id: index for index, span in enumerate(self.spans) if span.kind.called}
        other = {span.span_id: index for index, span in enumerate(self.spans) if not span.kind.called}
        roots: list[int] = []
        orphans: list[int] = []
        for index, span in enumerate(self.spans):
            parent: int | None
            if span.kind.called and span.span_id in other:
                parent = other[span.span_id]
            elif not span.parent_id:
                roots.append(index)
                continue
            else:
                parent = called.get(span.parent_id, other.get(span.parent_id))
            if parent is None:
                orphans.append(index)
            else:
                self.children[parent].append(index)
        return roots, orphans

    def _size(self, top: int) -> int:
        waiting: Sequence[int] = [top]
        size = 0
        while waiting:
            size += len(waiting)
            waiting = [child for index in waiting for child in self.children[index]]
        return size
