"""What traffic of entries means for the functions below them, in the same tick: rate x visits x hold time (Little's law). Pure.

The rate of calls of a function is what comes from outside, and what each caller's rate makes of it: rate x calls in one run
of the caller, along the call graph. So a function whose callers have only just begun to be called is wanted with them, not after.
"""

from collections.abc import Callable, Mapping, Sequence

import msgspec

from graph.ids import FunctionId

DEPTH = 16
"""As deep as calls may go."""

LEAST_PER_S = 1e-3
FUNCTIONS = 5_000
"""So many downstream functions at most get a term in one tick."""

Callees = Callable[[FunctionId], Sequence[tuple[FunctionId, float]]]
"""Of a function: whom a run of it calls, and how often on average."""

Hold = Callable[[FunctionId], float | None]
"""Seconds one invocation holds its instance, waiting for its own calls included; None: never seen."""


class Flow(msgspec.Struct, frozen=True):
    """What comes down to a function. `demand`: concurrency on average. `caller`: who brings most of it."""

    per_s: float
    demand: float
    hold_s: float
    caller: FunctionId


def root_rate(roots_per_s: float, concurrency: float, hold_s: float | None) -> float:
    """Runs a second of an entry. What runs at once is as much evidence as what arrived: invocations that wait for an instance
    keep others from coming, and a tick may be shorter than they take."""
    return max(roots_per_s, concurrency / hold_s) if hold_s is not None and hold_s > 0.0 and roots_per_s > 0.0 else roots_per_s


def downstream(roots: Mapping[FunctionId, float], callees: Callees, hold_s: Hold) -> dict[FunctionId, Flow]:
    """`roots`: invocations a second from outside, by entry. Level by level, DEPTH at most; a cycle adds what comes round."""
    rates: dict[FunctionId, float] = {}
    most: dict[FunctionId, tuple[float, FunctionId]] = {}
    level = {function: rate for function, rate in roots.items() if rate >= LEAST_PER_S}
    for _ in range(DEPTH):
        below: dict[FunctionId, float] = {}
        for function, rate in level.items():
            for callee, calls in callees(function):
                more = rate * calls
                if more < LEAST_PER_S or (callee not in rates and len(rates) >= FUNCTIONS):
                    continue
                below[callee] = below.get(callee, 0.0) + more
                rates[callee] = rates.get(callee, 0.0) + more
                if more > most.get(callee, (0.0, function))[0]:
                    most[callee] = (more, function)
        if not below:
            break
        level = below
    found: dict[FunctionId, Flow] = {}
    for function, per_s in rates.items():
        held = hold_s(function)
        if held is not None and held > 0.0:
            found[function] = Flow(per_s, per_s * held, held, most[function][1])
    return found
