"""Messages: one Struct a kind, msgpack arrays in the meta of a frame (workers.framing).

Fields are only ever added at the end, with a default: an older peer ignores what it does not know.
"""

from collections.abc import Iterator, Sequence
from enum import IntEnum, unique

import msgspec

from graph.calls import StartKind
from tracing.records import InvocationRecord, Timings
from workers.networks import VpcSpec
from workers.versions import VersionSpec

PROTOCOL = 1


@unique
class Rpc(IntEnum):
    HELLO = 1  # Hello: first frame of the dialling side
    WELCOME = 2  # Welcome: first frame of the listening side
    # to a node
    DEFINE = 10  # VersionSpec: sent once per connection ahead of the first use of a version
    INVOKE = 11  # InvokeRequest + payload; id numbers the stream. Acquire and body in one
    CANCEL = 12  # the stream with this id is given up
    CALL_RESULT = 13  # InvokeResult + body: answers the CALL with this id
    PREPARE = 14  # PrepareBatch
    REVOKE = 15  # Revoke: decisions no longer wanted
    DRAIN = 16  # Drain: a version's instances go when idle; none is made
    RETIRE = 17  # Retire: a tenant is gone for good, and all of it here goes with it
    STALE = 18  # Stale: the cluster counts with a newer epoch of this node; what it holds is void, it joins again
    HOSTED = 19  # Hosted: which code of a tenant to have at hand
    # from a node
    RESULT = 20  # InvokeResult + body
    CALL = 21  # ChildCall + payload; id numbers the call
    CANCEL_CALL = 22
    OUTCOMES = 23  # Outcomes, to subscribers
    INVENTORY = 24  # Inventory, to subscribers: changes as they happen, all of it once a second (heartbeat)
    # from a gateway
    TRIGGERS = 30  # Triggers, to subscribers: ahead of records on the stream
    RECORDS = 31  # Records, to subscribers
    DEMAND = 32  # Demand, to subscribers, once a second
    # questions, any direction
    SUBSCRIBE = 40  # id 1: only once a second, not each change
    ASK = 41  # Ask; the answer comes as ANSWER or REFUSED with the same id
    ANSWER = 42  # body: JSON
    REFUSED = 43  # Refusal
    # to a node, its first room being full
    CACHES = 50  # ZoneCaches: tier 2 of its zone, from planners
    CALLERS = 51  # Callers: to a node, from control only
    VPCS = 52  # Vpcs: the private networks of whoever may be on the node, from planners
    KEEP = 60  # Keep: to a node, how long what is idle of a tenant is worth keeping, from planners


class Hello(msgspec.Struct, array_like=True, frozen=True):
    """`secret`: the cluster key's RPC token; on the wire the proof that the sender has it, made with `nonce`."""

    role: str  # gateway | planner | control | flow
    name: str
    secret: str
    epoch: int = 0  # a planner's lease; a node refuses one lower than it has seen
    protocol: int = PROTOCOL
    nonce: str = ""


class Welcome(msgspec.Struct, array_like=True, frozen=True):
    """`epoch`: a node's, from when it joined last. `secret`: the proof for the hello's nonce."""

    name: str
    epoch: int = 0
    protocol: int = PROTOCOL
    role: str = ""
    secret: str = ""


class HttpRequest(msgspec.Struct, array_like=True, frozen=True):
    method: str
    path: str
    query: str
    headers: list[tuple[str, str]]


class InvokeRequest(msgspec.Struct, array_like=True, frozen=True):
    """`deadline_s` is what is left, not a date: clocks differ between hosts."""

    version: str
    invocation_id: str
    trace_id: str
    parent_id: str
    depth: int
    deadline_s: float
    content_type: str
    http: HttpRequest | None = None


class ErrorDetail(msgspec.Struct, array_like=True, frozen=True):
    type: str
    message: str
    stack: str = ""


class InvokeResult(msgspec.Struct, array_like=True, frozen=True):
    """`status`: ok | error | bad-payload | timeout | killed | init-failed | code-unavailable | network-unavailable | full |
    draining | cancelled | unknown-version | not-found | too-large | too-deep. Only `full`, `draining` and `unknown-version`
    promise that no byte reached an instance."""

    status: str
    start: StartKind = StartKind.UNKNOWN
    timings: Timings = Timings()
    content_type: str = ""
    http_status: int = 0
    headers: list[tuple[str, str]] = []
    error: ErrorDetail | None = None
    decision_id: str = ""


class ChildCall(msgspec.Struct, array_like=True, frozen=True):
    """A call made by a live invocation. The parent is named by the node, never by the guest.

    `invocation_id` is the parent's; `function` is `name` or `name:qualifier` in the parent's tenant.
    """

    invocation_id: str
    function: str
    content_type: str
    asynchronous: bool = False


class PrepareItem(msgspec.Struct, array_like=True, frozen=True):
    """`level`: ready (an instance), standby (a clone without code of the version's tenant and shape, held for whatever the run
    turns out to need) or code (only the layers into tier 1). `delay_s` is relative to receipt; what was prepared, once ready and
    unused for `expires_s`, is given up. `needed_in_s` orders what a node prepares, the smallest first. `trace_id`: the run it is
    for, empty when for none. `probe`: it is ready only once its guest has answered, after its init."""

    decision_id: str
    version: str
    level: str = "ready"
    delay_s: float = 0.0
    expires_s: float = 60.0
    needed_in_s: float = 0.0
    trace_id: str = ""
    probe: bool = False


class PrepareBatch(msgspec.Struct, array_like=True, frozen=True):
    """`epoch` and `lease`: by what right it is ordered; the node obeys the highest epoch it has seen of each lease."""

    items: list[PrepareItem]
    epoch: int = 0
    lease: str = ""


class Revoke(msgspec.Struct, array_like=True, frozen=True):
    """`release`: what is ready and unused is given up as well."""

    decision_ids: list[str]
    why: str = ""
    epoch: int = 0
    lease: str = ""
    release: bool = False


class Drain(msgspec.Struct, array_like=True, frozen=True):
    version: str


class Stale(msgspec.Struct, array_like=True, frozen=True):
    epoch: int


class Caller(msgspec.Struct, array_like=True, frozen=True):
    """A member that may speak to nodes. `fingerprint`, `fingerprint_before`: as `Peer` has them; `epoch`: from when it joined
    last."""

    role: str
    name: str
    fingerprint: str
    fingerprint_before: str
    epoch: int


class Callers(msgspec.Struct, array_like=True, frozen=True):
    """All of them: who is missing has gone."""

    callers: list[Caller]


class Retire(msgspec.Struct, array_like=True, frozen=True):
    tenant: str


class ZoneCaches(msgspec.Struct, array_like=True, frozen=True):
    """All caches that joined in the node's zone, as `host:port`."""

    zone: str
    addresses: list[str]


VPCS_AT_ONCE = 128  # with all rules and CIDRs there may be one takes 2 to 3 kB, a message 1 MiB


class Vpcs(msgspec.Struct, array_like=True, frozen=True):
    """All private networks of the tenants that the node may host: the tunnels that it is to have. `more`: another follows with
    the next of them, for a message has a limit."""

    vpcs: list[VpcSpec]
    more: bool = False

    @staticmethod
    def parts(vpcs: Sequence[VpcSpec]) -> "Iterator[Vpcs]":
        """In as many messages as it takes; one at least."""
        for first in range(0, len(vpcs) or 1, VPCS_AT_ONCE):
            yield Vpcs(list(vpcs[first : first + VPCS_AT_ONCE]), first + VPCS_AT_ONCE < len(vpcs))


class Hosted(msgspec.Struct, array_like=True, frozen=True):
    """The tenant's functions may start on this node: its current versions, each defined before, the most called first. Takes the
    place of what was said before. `epoch` and `lease` as with PrepareBatch."""

    tenant: str
    versions: list[str]
    epoch: int = 0
    lease: str = ""


class Keep(msgspec.Struct, array_like=True, frozen=True):
    """`keep_s`: by version, how long an idle instance is worth keeping. It takes the place of what was said of the tenant before,
    for workers.keeping.TOLD_FOR_S; versions it does not name are kept as long as the node keeps any; no instance is kept longer.
    None leaves what was said. `needed_s`: for so long a live plan counts on what is idle of these versions. `epoch` and `lease`
    as with PrepareBatch. `floor`: so many instances of a version stay here whatever their idle time, as long as memory lasts; it
    takes the place of what was said before, for as long as `keep_s` does, None leaves it. `only`: what is idle above that goes
    at once. `more_s` goes with `keep_s`: by version, how long the second idle instance here is worth keeping, the third, ..., all
    further ones as the last; those it does not name as the first."""

    tenant: str
    keep_s: dict[str, float] | None = None
    needed_s: dict[str, float] = {}
    epoch: int = 0
    lease: str = ""
    floor: dict[str, int] | None = None
    only: bool = False
    more_s: dict[str, list[float]] = {}


class DecisionUpdate(msgspec.Struct, array_like=True, frozen=True):
    """`outcome` as in graph.plans.Outcome. `start_s` (with `ready`): how long preparing took. `invocation_id` with hit and late.
    `detail`: the steps in ms, or why it was cancelled. `source` (with `ready`): what it was made from, see
    workers.instances.Instance. `became`: the version that took a standby."""

    decision_id: str
    outcome: str
    at: float
    start_s: float = 0.0
    invocation_id: str = ""
    detail: str = ""
    timings: Timings = Timings()
    source: str = ""
    became: str = ""


class Outcomes(msgspec.Struct, array_like=True, frozen=True):
    updates: list[DecisionUpdate]


class VersionCount(msgspec.Struct, array_like=True, frozen=True):
    """Instances of a version on a node. `preparing` counts those nobody has adopted yet."""

    version: str
    idle: int
    busy: int
    preparing: int


class StandbyCount(msgspec.Struct, array_like=True, frozen=True):
    """Standbys of a tenant and shape that nobody spoke for."""

    tenant: str
    memory_mb: int
    count: int


class Inventory(msgspec.Struct, array_like=True, frozen=True):
    """`whole`: all versions are listed, what is missing has none. Otherwise only the changed ones are, and `free` is empty.
    `driver`: the node's. `tunnels`: the Vpcs that instances can be attached to now, an empty name: the Internet."""

    versions: list[VersionCount]
    free_mb: int
    standbys: int
    whole: bool = False
    driver: str = ""
    free: list[StandbyCount] = []
    tunnels: list[str] = []


class TriggerEvent(msgspec.Struct, array_like=True, frozen=True):
    """An invocation is about to be sent to a node. `parent_id` empty: the entry of a run. `ended`: the run is over."""

    version: str
    trace_id: str
    invocation_id: str
    parent_id: str
    at: float
    ended: bool = False


class Triggers(msgspec.Struct, array_like=True, frozen=True):
    events: list[TriggerEvent]
    dropped: int = 0


class VersionDemand(msgspec.Struct, array_like=True, frozen=True):
    """Invocations of a version that wait or run, through one gateway, in the time since it told last: on average, the most at
    once, how many began, and how many of these came from outside."""

    version: str
    concurrency: float
    peak: int
    arrivals: int = 0
    roots: int = 0


class Demand(msgspec.Struct, array_like=True, frozen=True):
    """All versions that had any; `tick_s`: how long that time was."""

    versions: list[VersionDemand]
    tick_s: float = 1.0


class Records(msgspec.Struct, array_like=True, frozen=True):
    records: list[InvocationRecord]
    dropped: int = 0


class Ask(msgspec.Struct, array_like=True, frozen=True):
    """`what` names the question, see the answering process's table; `args` are its fields."""

    what: str
    args: dict[str, object]


class Refusal(msgspec.Struct, array_like=True, frozen=True):
    status: int  # as in HTTP
    message: str


MESSAGES: dict[int, type[msgspec.Struct]] = {
    Rpc.HELLO: Hello,
    Rpc.WELCOME: Welcome,
    Rpc.DEFINE: VersionSpec,
    Rpc.INVOKE: InvokeRequest,
    Rpc.CALL_RESULT: InvokeResult,
    Rpc.PREPARE: PrepareBatch,
    Rpc.REVOKE: Revoke,
    Rpc.DRAIN: Drain,
    Rpc.STALE: Stale,
    Rpc.CALLERS: Callers,
    Rpc.RETIRE: Retire,
    Rpc.CACHES: ZoneCaches,
    Rpc.VPCS: Vpcs,
    Rpc.HOSTED: Hosted,
    Rpc.KEEP: Keep,
    Rpc.RESULT: InvokeResult,
    Rpc.CALL: ChildCall,
    Rpc.OUTCOMES: Outcomes,
    Rpc.INVENTORY: Inventory,
    Rpc.TRIGGERS: Triggers,
    Rpc.RECORDS: Records,
    Rpc.DEMAND: Demand,
    Rpc.ASK: Ask,
    Rpc.REFUSED: Refusal,
}
