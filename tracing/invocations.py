"""A span tree into a graph.calls.Trace: who called whom, when in the caller's clock, and for how long."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping

from graph.calls import Call, StartKind, Trace
from graph.ids import FunctionId, TenantId, function_id
from tracing.spans import Span, SpanKind
from tracing.tree import SpanTree

NAME_LIMIT = 255


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
    above and the caller's half below, belong to the function. `names` maps observed functions to deployed ones.
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
        self._spans = tree.spans
        self._children = tree.children
        self._names = names
        assert tree.top is not None
        self._entry = tree.spans[tree.top]
        self._functions: list[FunctionId] = [self._function(observed_name(self._entry))]
        self._began: list[float] = [0.0]  # per invocation: its work's begin, seconds after the entry's
        self._held: list[Span] = [self._entry]  # per invocation: its own span, whose clock it lives in
        self._calls: list[Call] = []
        self._silent: dict[int, int] = {}  # caller's half that names its callee -> invocation, while no callee's half was found
        self._descend(tree.top)

    def trace(self) -> Trace:
        for half, caller in self._silent.items():
            self._call_unseen(self._spans[half], caller)
        entry, calls, functions = self._entry, self._calls, self._functions
        first = [index for index, call in enumerate(calls) if call.caller_index == -1]
        if entry.kind.calling and first == [0] and len(self._held) > 1:
            # The outermost span is only the caller's half of the call that the trace is about.
            began = self._began[1]
            entry, functions = self._held[1], functions[1:]
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
                self._silent.pop(half, None)
                caller, half = self._call(span, caller, self._spans[half] if half >= 0 else None), -1
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
        return span.kind is SpanKind.UNSPECIFIED and span.service != parent.service

    def _call(self, span: Span, caller: int, half: Span | None) -> int:
        """Appends the call; returns the number of the callee's invocation."""
        own = self._held[caller]
        sent = (half or span).start_ns - own.start_ns
        offset = self._began[caller] + max(0, sent) / 1e9
        lag, duration = 0.0, span.duration_s
        if half is not None:
            raw = (span.start_ns - half.start_ns) / 1e9
            if half.kind is SpanKind.PRODUCER:
                lag = max(0.0, raw)  # a message may be taken long after it was sent
                duration += lag
            else:
                # Two clocks: where the callee's span does not lie inside the caller's, the way there and back are taken as equal.
                room = half.duration_s - span.duration_s
                lag = raw if 0.0 <= raw <= room else max(0.0, room / 2)
                duration = max(half.duration_s, span.duration_s)
        self._append(caller, self._function(observed_name(span)), offset, duration, span)
        self._began.append(offset + lag)
        self._held.append(span)
        return len(self._held) - 1

    def _call_unseen(self, half: Span, caller: int) -> None:
        """A call known only from its caller, which names the function."""
        offset = self._began[caller] + max(0, half.start_ns - self._held[caller].start_ns) / 1e9
        self._append(caller, self._function(half.invoked[:NAME_LIMIT]), offset, half.duration_s, half)

    def _append(self, caller: int, callee: FunctionId, offset: float, duration: float, span: Span) -> None:
        start = span.start if span.kind.called else StartKind.UNKNOWN
        wait = span.wait_s if span.kind.called else 0.0
        self._functions.append(callee)
        self._calls.append(Call(self._functions[caller], callee, caller - 1, offset, duration, wait, start, span.failed))
