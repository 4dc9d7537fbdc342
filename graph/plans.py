"""The plan format: what to prepare, when, why, and how each decision ended."""

from enum import StrEnum

import msgspec

from graph.ids import FunctionId, TenantId, VersionId


class Trigger(StrEnum):
    """Why a plan was made."""

    INVOCATION = "invocation"
    WANTED = "wanted"  # the wanted count of the entry grew
    PREDICTED = "predicted"
    TIMER = "timer"
    RELEASE = "release"
    WARM = "warm"  # `foreglow warm`
    DEPLOY = "deploy"  # a version asked for instances before its traffic; ordered by the control flow


class Outcome(StrEnum):
    """How a decision ended. `PENDING` and `READY` are the two states before that."""

    PENDING = "pending"
    READY = "ready"
    HIT = "hit"  # an invocation found the instance ready
    LATE = "late"  # an invocation came while it was being prepared, and adopted it
    WASTED = "wasted"  # ready, never used, given up at the end of its unused lifetime
    CANCELLED = "cancelled"  # given up before it was ready: branch resolved, node full, or it failed

    @property
    def final(self) -> bool:
        return self not in (Outcome.PENDING, Outcome.READY)


class EdgeSource(StrEnum):
    DECLARED = "declared"
    LEARNED = "learned"
    BOTH = "declared+learned"
    REQUESTED = "requested"  # the entry itself, asked for by name
    PREDICTED = "predicted"  # the entry itself, expected to be called (graph.arrivals)


class Level(StrEnum):
    """What a decision prepares."""

    READY = "ready"  # an instance of the function
    STANDBY = "standby"  # a clone without code, made into an instance of whichever of `covers` is called


class Prices(msgspec.Struct, frozen=True):
    """What idling and lateness cost, in one arbitrary unit.

    `idle_gb_s` (c_w): one GB held ready, unused, for one second. `late_s` (c_l): one second an invocation waits.
    kappa = c_w * m / (c_l + c_w * m), with m in GB, is the probability under which preparing does not pay.
    The default makes kappa about 0.05 for a 1 GB instance that idles about a second.
    """

    idle_gb_s: float = 1.0
    late_s: float = 19.0

    def kappa(self, memory_mb: int) -> float:
        """The probability under which an instance of this size is not worth preparing."""
        idle = self.idle_gb_s * memory_mb / 1024
        return idle / (self.late_s + idle) if idle else 0.0


class Budget(msgspec.Struct, frozen=True):
    """Bounds of one plan, per tenant. `path` is bounded by the first three, `priced` by all.

    `instances` and `memory_mb`: speculative ones alive at once, what other live plans hold already taken off.
    `unused_s`: how long a prepared instance may stay unused. `idle_s_per_busy_s`: the priced policy's rate.
    `min_reach`: reach probability under which `path` leaves a function out.
    `idle_s`: idle instance-seconds this plan may be expected to cost, what the tenant has left (graph.spending); None: no bound.
    """

    instances: int = 64
    memory_mb: int = 8192
    unused_s: float = 60.0
    idle_s_per_busy_s: float = 1.0
    min_reach: float = 0.05
    idle_s: float | None = None


class Alternative(msgspec.Struct, frozen=True):
    """What could have been decided instead, and what it would be expected to cost in the unit of `Prices`.

    `what`: now, never, the best sample point ("at 42 ms"), the quantile rule ("rule"), a standby ("standby"), or keeping what is
    there ("keep"). `start_in_s`: when its preparation would start, None where none would.
    """

    what: str
    cost: float
    start_in_s: float | None = None


class Evidence(msgspec.Struct, frozen=True):
    """What a decision stands on.

    `reach`: probability that the entry's trace reaches the function, given the stages seen. `concurrent`: probability
    that at least this many instances are busy at once. `samples`: traces behind it (0: declared only).
    `lead_s`: expected time from now to the call (None: never observed). `start_s`: expected time to ready.
    `price`: expected cost of preparing less that of not preparing (0 where the policy does not price).
    `trace_ids`: up to 3 recent traces in which the call was seen.

    Of the priced policy, costs in the unit of `Prices`: `lead_quantiles_s`: 5, 25, 50, 75 and 95 % of the time from now to
    the call, given that it has not come. `wait_cost`: what calls are still expected to wait with this decision, times
    `late_s`. `idle_cost`: what the instance is expected to idle, times `idle_gb_s` and its GB; `idle_s` is that time in seconds.
    `kappa`: the probability under which it does not pay. `alternatives`: what else was weighed, the cheapest first.
    """

    source: EdgeSource
    reach: float
    concurrent: float
    samples: int
    lead_s: float | None = None
    start_s: float | None = None
    price: float = 0.0
    trace_ids: tuple[str, ...] = ()
    lead_quantiles_s: tuple[float, ...] = ()
    wait_cost: float = 0.0
    idle_cost: float = 0.0
    idle_s: float = 0.0
    kappa: float = 0.0
    alternatives: tuple[Alternative, ...] = ()


class PrewarmDecision(msgspec.Struct, frozen=True):
    """One instance of one function to prepare. `start_in_s` is relative to the plan; `expires_s` to being ready.

    With level `standby` it is a clone without code of shape `memory_mb`, for whichever of `covers` is called first;
    `function` is the likeliest of them, to say where it is placed. Specialised when a call comes, never before.
    """

    decision_id: str
    function: FunctionId
    ordinal: int  # the j-th instance of this function in the plan, from 1
    memory_mb: int
    start_in_s: float
    expires_s: float
    reason: str
    evidence: Evidence
    level: Level = Level.READY
    covers: tuple[FunctionId, ...] = ()


class Skipped(msgspec.Struct, frozen=True):
    """A function the plan considered and left out, and why."""

    function: FunctionId
    why: str
    reach: float = 0.0


class PrewarmPlan(msgspec.Struct, frozen=True):
    """What to prepare because `entry` is about to run. `ready` names what already was, so nothing was decided.

    `expected_idle_s`: what its decisions are expected to idle together, to be reserved in graph.spending.
    """

    plan_id: str
    tenant: TenantId
    entry: FunctionId
    trigger: Trigger
    policy: str  # path | priced | off
    created_at: float
    trace_id: str | None = None
    decisions: tuple[PrewarmDecision, ...] = ()
    ready: tuple[FunctionId, ...] = ()
    skipped: tuple[Skipped, ...] = ()

    @property
    def expected_idle_s(self) -> float:
        return sum(decision.evidence.idle_s for decision in self.decisions)


class Held(msgspec.Struct, frozen=True):
    """A decision of a run that has not ended, as its next revision finds it.

    `ordered_at`: the `created_at` of its plan, so that it was to start at `ordered_at + decision.start_in_s`. `started`: its
    preparation has begun, as far as is known (revise() also takes it for begun once that time has passed). `ready_at`: since
    when it is ready, None before.
    """

    decision: PrewarmDecision
    ordered_at: float
    started: bool = False
    ready_at: float | None = None


class Revision(msgspec.Struct, frozen=True):
    """What a stage start changes: give up `cancelled` (decision id, why), order the decisions of `plan`, leave `kept` alone.

    Among `cancelled` may be ready ones, with the policy `priced`; it gives them up, see docs/decisions/0029. One that is only
    moved to another time is in `cancelled`, and a new decision for it is in `plan`.
    """

    plan: PrewarmPlan
    cancelled: tuple[tuple[str, str], ...] = ()
    kept: tuple[str, ...] = ()


class Standbys(msgspec.Struct, frozen=True):
    """What plan() must know to hold generic standbys. `clone_s`: expected time to make one.

    `free`: per memory shape (MB), those that stand ready and are promised to nobody. `memory_mb`: what one occupies while it
    waits, None: its whole shape (a clone without code holds far less, where the driver accounts for what is really used).
    """

    clone_s: float
    free: dict[int, int] = {}
    memory_mb: int | None = None


class ExpectedCall(msgspec.Struct, frozen=True):
    """One function the entry is expected to reach; what predict() returns and plan() takes.

    `concurrent[j-1]` is P(at least j instances busy at once in one trace), not increasing.
    `offsets_s`: up to 64 sorted samples of the time from the entry's start to the call, cold waits taken off.
    `start_s`: expected time to ready. `weight`: decayed traces of the entry behind it. `given`: the stage that had started
    last when this was predicted, None before any.

    Read by the priced policy only: `starts_s`, samples of the time to ready, from where an instance would start now (driver and
    code tier), sorted; empty: `start_s` is all that is known. `standby_s`: expected time from specialising a standby to ready,
    init included; None: no standby can become it. `in_runs`: bit i (of byte i // 8, from the highest bit) says whether the
    i-th of the runs compared reached the function; equal bits of all calls of one prediction are the same run. Empty: unknown.
    `started`: how often the function has started in this run; above 0 this speaks of further instances, and when those are
    called nobody counted: `offsets_s` is of the first.
    """

    function: FunctionId
    reach: float
    concurrent: tuple[float, ...]
    offsets_s: tuple[float, ...]
    samples: int
    weight: float
    source: EdgeSource
    memory_mb: int
    start_s: float
    trace_ids: tuple[str, ...] = ()
    given: FunctionId | None = None
    starts_s: tuple[float, ...] = ()
    standby_s: float | None = None
    in_runs: bytes = b""
    started: int = 0


_DEPLOY = "deploy"


class DeployDecision(msgspec.Struct, frozen=True):
    """An instance that the control flow ordered for a new version. All of it is in its id: no plan goes with it.

    `attempt` tells one round of orders from another, `ordinal` counts its instances from 1.
    """

    version: VersionId
    memory_mb: int
    attempt: str
    ordinal: int

    @property
    def decision_id(self) -> str:
        return f"{_DEPLOY}/{self.version}/{self.memory_mb}/{self.attempt}/{self.ordinal}"


def deploy_decision(decision_id: str) -> DeployDecision | None:
    """None for the id of any other decision."""
    parts = decision_id.split("/")
    if len(parts) != 6 or parts[0] != _DEPLOY or not (parts[3].isdecimal() and parts[5].isdecimal()):
        return None
    return DeployDecision(VersionId(f"{parts[1]}/{parts[2]}"), int(parts[3]), parts[4], int(parts[5]))
