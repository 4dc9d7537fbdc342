"""The compact record of one invocation that leaves the request path.

The gateway makes one per invocation, a tree of them is a run. Learning uses records, never sampled spans.
"""

import msgspec

from graph.calls import StartKind

STEPS = ("queue", "place", "clone", "code", "net", "init", "run")


class Timings(msgspec.Struct, frozen=True, array_like=True):
    """Milliseconds per step, in the order they happen. A step that did not happen is 0. `code_from`: tier1, tier2 or origin;
    empty when no code was fetched for it."""

    queue: float = 0.0  # waited for capacity, at the gateway and on the node
    place: float = 0.0  # resolve and choose a node
    clone: float = 0.0  # take a standby or clone the template
    code: float = 0.0  # fetch and attach the code
    net: float = 0.0  # attach the tunnel
    init: float = 0.0  # import the handler's module
    run: float = 0.0  # the handler
    code_from: str = ""

    @property
    def start_ms(self) -> float:
        """Time this invocation waited for an instance."""
        return self.queue + self.clone + self.code + self.net + self.init


class InvocationRecord(msgspec.Struct, frozen=True, array_like=True):
    """Times are seconds since the Unix epoch in the gateway's clock.

    `invocation_id` is 16 hex digits and is the span id; `parent_id` is empty for the entry. `sent_at` is when the caller's
    call reached the gateway, `ended_at` when its answer left. `status`: ok | error | timeout | killed | refused | cancelled.
    `link` is a traceparent from outside, kept only as a link.
    """

    tenant: str
    trace_id: str
    invocation_id: str
    parent_id: str
    function: str
    version: int
    sent_at: float
    ended_at: float
    start: StartKind
    status: str
    timings: Timings
    node: str = ""
    error_type: str = ""
    link: str = ""
    decision_id: str = ""
