"""The learned state as versioned bytes: what a planner writes down and finds again.

The statistics are msgspec Structs and travel as they are; fields are only ever added at their ends, with defaults. A change that
this cannot express gets a new VERSION.
"""

import hashlib

import msgspec

from graph.callgraph import Bounds, CallGraph
from graph.ids import FunctionId, TenantId
from graph.statistics import EdgeStatistics, FunctionStatistics

FORMAT = "foreglow-callgraph"
VERSION = 1

_WAY_OUT = "remove it to start with an empty graph"


class SnapshotError(ValueError):
    """The bytes are no snapshot, are damaged, or come from a newer Foreglow; the message says which and what to do."""


class _Envelope(msgspec.Struct):
    """Read first, whatever else has changed. `digest` is over the version and `state`, which is a _State."""

    format: str
    version: int
    digest: bytes = b""
    state: bytes = b""


class _Tenant(msgspec.Struct):
    """`functions` from the least to the most recently seen."""

    functions: dict[FunctionId, FunctionStatistics]
    edges: list[tuple[FunctionId, FunctionId, EdgeStatistics]]
    dropped_runs: int = 0


class _State(msgspec.Struct):
    tenants: dict[TenantId, _Tenant]


def dump(graph: CallGraph) -> bytes:
    """Everything learned and declared. The bounds are settings and are not part of it."""
    tenants = {
        tenant: _Tenant(
            functions=held.functions,
            edges=[(caller, callee, edge) for caller in held.functions for callee, edge in held.out(caller)],
            dropped_runs=held.dropped_runs,
        )
        for tenant, held in graph.tenants.items()
    }
    state = msgspec.msgpack.encode(_State(tenants))
    return msgspec.msgpack.encode(_Envelope(FORMAT, VERSION, _digest(VERSION, state), state))


def load(snapshot: bytes, bounds: Bounds | None = None) -> CallGraph:
    """The graph that `dump` wrote. Raises SnapshotError."""
    try:
        envelope = msgspec.msgpack.decode(snapshot, type=_Envelope)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise SnapshotError(f"this is no snapshot of a call graph ({error}); {_WAY_OUT}") from error
    if envelope.format != FORMAT:
        raise SnapshotError(f"format: {envelope.format!r} is not {FORMAT!r}; {_WAY_OUT}")
    if envelope.version > VERSION:
        raise SnapshotError(
            f"version: the snapshot has version {envelope.version}, this program reads up to {VERSION}; "
            f"start the Foreglow that wrote it, or {_WAY_OUT}"
        )
    if _digest(envelope.version, envelope.state) != envelope.digest:
        raise SnapshotError(f"state: the snapshot is damaged, its digest differs; {_WAY_OUT}")
    graph = CallGraph(bounds)
    try:
        held = msgspec.msgpack.decode(envelope.state, type=_State)
    except msgspec.MsgspecError as error:
        raise SnapshotError(f"state: the snapshot does not hold what its version says ({error}); {_WAY_OUT}") from error
    for tenant, stored in held.tenants.items():
        graph.restore(tenant, stored.functions, stored.edges, stored.dropped_runs)
    return graph


def _digest(version: int, state: bytes) -> bytes:
    digest = hashlib.blake2b(b"%d" % version, digest_size=16)
    digest.update(state)
    return digest.digest()
