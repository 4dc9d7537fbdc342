"""A trace seen as runs: the entry's, and one for each call, which is the root of what it called in turn.

That is why a function that was only ever seen as somebody's callee can be warmed as an entry.
"""

from collections.abc import Iterator

from graph.calls import Trace
from graph.ids import FunctionId, tenant_of
from graph.timing import busy_at_once, warm_offsets

LEVELS = 16
"""How far below a call its own run looks. The entry's run sees everything."""


class Visit:
    """How one run reached one function: first when, seconds after the run's start, and how many instances at once."""

    __slots__ = ("at_once", "first_s")

    def __init__(self, first_s: float, at_once: int) -> None:
        self.first_s = first_s
        self.at_once = at_once


class Run:
    """One invocation of `function` and what came of it. `direct`: callee -> (number of calls, seconds to the first)."""

    __slots__ = ("direct", "function", "root", "visits")

    def __init__(self, function: FunctionId, root: bool, visits: dict[FunctionId, Visit]) -> None:
        self.function = function
        self.root = root
        self.visits = visits
        self.direct: dict[FunctionId, tuple[int, float]] = {}


def check(trace: Trace) -> None:
    """Raises ValueError naming the field of a trace that contradicts itself."""
    if tenant_of(trace.entry) != trace.tenant:
        raise ValueError(f"entry: {trace.entry!r} is not a function of tenant {trace.tenant!r}")
    prefix = f"{trace.tenant}/"
    functions = [trace.entry]
    for index, call in enumerate(trace.calls):
        if not -1 <= call.caller_index < index:
            raise ValueError(f"calls[{index}].caller_index: {call.caller_index} is neither an earlier call nor -1, the entry")
        if not call.callee.startswith(prefix):
            raise ValueError(f"calls[{index}].callee: {call.callee!r} is not a function of tenant {trace.tenant!r}")
        named = functions[call.caller_index + 1]
        if call.caller != named:
            raise ValueError(f"calls[{index}].caller: {call.caller!r}, but caller_index points to {named!r}")
        functions.append(call.callee)


def runs_of(trace: Trace) -> Iterator[Run]:
    """The entry's run first, then one per call in the trace's order. A function is never a visit of its own run."""
    calls = trace.calls
    offsets = warm_offsets(trace)
    reached: list[dict[FunctionId, list[int]]] = [{} for _ in range(len(calls) + 1)]
    direct: list[dict[FunctionId, tuple[int, float]]] = [{} for _ in range(len(calls) + 1)]
    for index, call in enumerate(calls):
        callee = call.callee
        above = call.caller_index
        since = offsets[index] - (offsets[above] if above >= 0 else 0.0)
        count, first = direct[above + 1].get(callee, (0, since))
        direct[above + 1][callee] = (count + 1, min(first, since))
        for _ in range(LEVELS):
            if above < 0:
                break
            reached[above + 1].setdefault(callee, []).append(index)
            above = calls[above].caller_index
        reached[0].setdefault(callee, []).append(index)
    for position, visited in enumerate(reached):
        function = calls[position - 1].callee if position else trace.entry
        start = offsets[position - 1] if position else 0.0
        visited.pop(function, None)
        run = Run(function, position == 0, {})
        run.direct = direct[position]
        for callee, visits in visited.items():
            first = offsets[visits[0]] if len(visits) == 1 else min(offsets[index] for index in visits)
            run.visits[callee] = Visit(max(0.0, first - start), busy_at_once(calls, visits))
        yield run
