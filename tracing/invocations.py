"""A span tree into a graph.calls.Trace: who called whom, when in the caller's clock, and for how long."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping

from graph.calls import Call, StartKind, Trace
from graph.ids import FunctionId, TenantId, function_id
from tracing.spans import Span, SpanKind
from tracing.tree import SpanTree

NAME_LIMIT = 255

LONGEST_S = 86_400.0
"""A call later than this after its caller began is none that anybody could prepare for: its times are wrong."""


def observed_name(span: Span) -> str:
    """The function a callee's span stands for: what it says (faas.name), else `service/operation`; at most 255 characters."""
    name = span.function or span.hosted or f"{span.service or 'unknown'}/{span.name.lstrip('/')}"
    if len(name) <= NAME_LIMIT:
        return name
    return f"{name[: NAME_LIMIT - 17]}~{hashlib.sha256(name.encode(errors='replace')).hexdigest()[:16]}"


def assemble(
    tenant: TenantId, spans: Iterable[Span], names: Mapping[str, str] | None = None
) -> tuple[Trace | None, Counter[str]]:
    """The trace these spans (of one trace id) form, and the number of spans left out by reason (see tracing.tree.SpanTree).

    They may come in any order, more than once, with parents missing. Spans inside a function, between the callee's half
    above and the caller's half below, belong to the function. `names` maps observed functions to deployed ones. A call of
    which nobody says when it was, neither half of it and nothing below, is left out with what is below: `no time`.
    None when there is no span.
    """
    tree = SpanTree(spans)
    if tree.top is None:
        return None, tree.dropped
    return _Walk(tenant, tree, names or {}).trace(), tree.dropped


class _Walk:
    """From the root of a span tree down, one call after the other. Invocation 0 is the entry, i + 1 is call i."""

    def __init__(self, tenant: TenantId, tree: SpanTree, names: Mapping[str, str]) -> None:
        self._tenant = tenant
        self._tree = tree
        self._spans = tree.spans
        self._children = tree.children
        self._names = names
        assert tree.top is not None
        self._entry = tree.spans[tree.top]
        self._functions: list[FunctionId] = [self._function(observed_name(self._entry))]
        self._began: list[float] = [0.0]  # per invocation: its work's begin, seconds after the entry's
        self._held: list[int] = [tree.top]  # per invocation: its own span, whose clock it lives in
        self._calls: list[Call] = []
        self._silent: dict[int, int] = {}  # caller's half that names its callee -> invocation, while no callee's half was found
        self._descend(tree.top)

    def trace(self) -> Trace:
        for half, caller in self._silent.items():
            self._call_unseen(half, caller)
        entry, calls, functions = self._entry, self._calls, self._functions
        first = [index for index, call in enumerate(calls) if call.caller_index == -1]
        if entry.kind.calling and first == [0] and len(self._held) > 1:
            # The outermost span is only the caller's half of the call that the trace is about.
            began = self._began[1]
            entry, functions = self._spans[self._held[1]], functions[1:]
            calls = [
                Call(
                    call.caller,
                    call.callee,
                    call.caller_index - 1,
                    max(0.0, call.offset_s - began),
                    call.duration_s,
                    call.wait_s,
                    call.start,
                    call.failed,
                )
                for call in calls[1:]
            ]
        return Trace(
            tenant=self._tenant,
            trace_id=entry.trace_id,
            entry=functions[0],
            duration_s=entry.duration_s,
            calls=tuple(calls),
            wait_s=entry.wait_s,
            failed=entry.failed,
            ran=entry.ran,
        )

    def _function(self, observed: str) -> FunctionId:
        return function_id(self._tenant, self._names.get(observed, observed))

    def _descend(self, top: int) -> None:
        above = top if self._entry.kind.calling else -1
        waiting = [(child, top, 0, above) for child in reversed(self._children[top])]
        while waiting:
            index, parent, caller, half = waiting.pop()
            span = self._spans[index]
            if self._is_call(span, self._spans[parent], caller, half):
                offset = self._offset(index, caller, half)
                if offset is None:
                    self._tree.dropped["no time"] += self._tree.size(index)
                    continue
                self._silent.pop(half, None)
                caller, half = self._call(index, caller, half, offset), -1
            elif span.kind.calling:
                half = index
                if span.invoked:
                    self._silent[index] = caller
            waiting += [(child, index, caller, half) for child in reversed(self._children[index])]

    def _is_call(self, span: Span, parent: Span, caller: int, half: int) -> bool:
        if span.kind.calling:
            return False
        if span.kind.called:
            # Without a caller's half a second callee's span of one service is its framework's, unless it says what it is.
            return half >= 0 or bool(span.function) or span.service != parent.service
        if span.function:
            return self._function(span.function) != self._functions[caller]
        # Another process: somebody called it, whatever its span's kind.
        return bool(span.service) and span.service != parent.service

    def _offset(self, index: int, caller: int, half: int) -> float | None:
        """When the caller sent the call, seconds after the entry began; in the caller's own clock where that tells.

        Without a time of the caller's half the callee's stands for it: no two clocks are the same, so it counts as far as it
        lies in the caller's own time. None when nobody says.
        """
        own = self._held[caller]
        caller_span, began = self._spans[own], self._tree.starts[own]
        sender = half if half >= 0 and self._spans[half].start_ns else index
        sent = self._tree.starts[sender]
        if not sent or not began:
            return None
        passed = max(0, sent - began) / 1e9
        if self._spans[sender].service != caller_span.service and not self._waits(index, half):
            passed = min(passed, caller_span.duration_s) if caller_span.end_ns else passed
        return self._began[caller] + passed if passed <= LONGEST_S else None

    def _waits(self, index: int, half: int) -> bool:
        """A message: it may be taken long after its sender ended."""
        return self._spans[index].kind is SpanKind.CONSUMER or (half >= 0 and self._spans[half].kind is SpanKind.PRODUCER)

    def _call(self, index: int, caller: int, half: int, offset: float) -> int:
        """Appends the call; returns the number of the callee's invocation."""
        span = self._spans[index]
        lag, duration = 0.0, span.duration_s
        if half >= 0 and self._spans[half].start_ns:
            sender = self._spans[half]
            raw = (span.start_ns - sender.start_ns) / 1e9 if span.start_ns else 0.0
            if sender.kind is SpanKind.PRODUCER:
                lag = min(max(0.0, raw), LONGEST_S)  # a message may be taken long after it was sent
                duration += lag
            else:
                # Two clocks: where the callee's span does not lie inside the caller's, the way there and back are taken as equal.
                room = sender.duration_s - span.duration_s
                lag = raw if 0.0 <= raw <= room else max(0.0, room / 2)
                duration = max(sender.duration_s, span.duration_s)
        self._append(caller, self._function(observed_name(span)), offset, duration, span)
        self._began.append(offset + lag)
        self._held.append(index)
        return len(self._held) - 1

    def _call_unseen(self, half: int, caller: int) -> None:
        """A call known only from its caller, which names the function."""
        offset = self._offset(half, caller, half)
        if offset is None:
            self._tree.dropped["no time"] += 1
            return
        span = self._spans[half]
        self._append(caller, self._function(span.invoked[:NAME_LIMIT]), offset, span.duration_s, span)

    def _append(self, caller: int, callee: FunctionId, offset: float, duration: float, span: Span) -> None:
        start = span.start if span.kind.called else StartKind.UNKNOWN
        wait = span.wait_s if span.kind.called else 0.0
        self._functions.append(callee)
        self._calls.append(Call(self._functions[caller], callee, caller - 1, offset, duration, wait, start, span.failed))
