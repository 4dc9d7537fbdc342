"""What is observed: calls, and the traces they belong to."""

from enum import StrEnum

import msgspec

from graph.ids import FunctionId, TenantId


class StartKind(StrEnum):
    """How an invocation found its instance; the first that matches wins."""

    WARM = "warm"
    PREWARMED = "prewarmed"
    ALMOST_WARM = "almost-warm"
    STANDBY = "standby"
    COLD = "cold"
    UNKNOWN = "unknown"  # observed in somebody else's trace, or it never reached an instance


class Call(msgspec.Struct, frozen=True, array_like=True):
    """One observed caller -> callee event, in the terms of its trace.

    `offset_s` is the time from the start of the trace's entry to the moment the *caller* sent the call, in the caller's
    clock. `wait_s` is the part of `duration_s` spent waiting for an instance (0 when warm): learned offsets are
    freed of it, so that a graph learned from cold runs predicts warm ones.
    `caller_index` points into the trace's `calls`; -1 says the caller is the entry itself.
    """

    caller: FunctionId
    callee: FunctionId
    caller_index: int
    offset_s: float
    duration_s: float
    wait_s: float = 0.0
    start: StartKind = StartKind.UNKNOWN
    failed: bool = False


class Trace(msgspec.Struct, frozen=True, array_like=True):
    """One run of a workflow: its entry and every call below it, callers before callees.

    `ran` is False when the entry never reached an instance (refused): then there is nothing to learn from it.
    """

    tenant: TenantId
    trace_id: str
    entry: FunctionId
    duration_s: float
    calls: tuple[Call, ...] = ()
    wait_s: float = 0.0
    failed: bool = False
    ran: bool = True


class CallEdge(msgspec.Struct, frozen=True):
    """Statistics of caller -> callee, decayed; what `foreglow graph` shows.

    `probability`: calls that reached the callee per invocation of the caller, capped at 1.
    `fan_out`: mean number of calls per invocation of the caller that made at least one.
    `weight`: decayed number of caller invocations behind it. `source`: learned, declared, or both.
    `offset_p50_s`: median time from the caller's start to this call, None when never observed.
    """

    caller: FunctionId
    callee: FunctionId
    probability: float
    fan_out: float
    weight: float
    traces: int
    source: str
    offset_p50_s: float | None = None
