"""What planner and nodes answer, as OpenAPI shows it. It is handed through unread: these say its shape, tests hold it to them."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

StartKind = Literal["warm", "prewarmed", "almost-warm", "standby", "cold", "unknown"]
EdgeSource = Literal["declared", "learned", "declared+learned", "requested", "predicted"]
Policy = Literal["path", "priced", "off"]
Level = Literal["ready", "standby"]
EPOCH = "Seconds since the Unix epoch."


class GraphFunction(BaseModel):
    name: str
    deployed: bool


class GraphEdge(BaseModel):
    caller: str
    callee: str
    probability: float = Field(ge=0, le=1)
    fan_out: float = Field(ge=0)
    weight: float = Field(ge=0)
    traces: int = Field(ge=0, description="In which the call was seen; 0: only declared.")
    source: EdgeSource
    offset_p50_s: float | None = Field(description="Median time from the entry's start to the call; null: never observed.")


class GraphAnswer(BaseModel):
    functions: list[GraphFunction]
    edges: list[GraphEdge]


class PlanAlternative(BaseModel):
    what: str
    cost: float
    start_in_s: float | None


class PlanEvidence(BaseModel):
    """As in a decision of the log, with seconds."""

    source: EdgeSource
    reach: float = Field(ge=0, le=1)
    concurrent: float = Field(ge=0, le=1)
    samples: int = Field(ge=0)
    lead_s: float | None
    start_s: float | None
    price: float
    trace_ids: list[str]
    lead_quantiles_s: list[float]
    wait_cost: float
    idle_cost: float
    idle_s: float
    kappa: float
    alternatives: list[PlanAlternative]


class PlannedDecision(BaseModel):
    decision_id: str
    function: str
    ordinal: int = Field(ge=1)
    memory_mb: int = Field(ge=1)
    level: Level
    covers: list[str]
    start_in_ms: float
    expires_s: float
    reason: str
    evidence: PlanEvidence


class SkippedFunction(BaseModel):
    function: str
    why: str
    reach: float = Field(ge=0, le=1)


class PlanAnswer(BaseModel):
    """What is, or would be, prepared because `entry` runs. `ready` names what was already."""

    plan_id: str
    entry: str
    trigger: str
    policy: str
    created_at: float = Field(description=EPOCH)
    decisions: list[PlannedDecision]
    ready: list[str]
    skipped: list[SkippedFunction]


class Alternative(BaseModel):
    what: str = Field(description="now, never, at N ms, rule (the quantile rule), standby, or keep.")
    cost: float
    start_in_ms: float | None = Field(description="When preparing would start; null: never.")


class DecisionEvidence(BaseModel):
    """What a decision stands on. Costs are in the unit of the prices; all of them are 0 where the policy does not price."""

    source: EdgeSource
    reach: float = Field(ge=0, le=1)
    concurrent: float = Field(ge=0, le=1)
    samples: int = Field(ge=0)
    lead_ms: float | None
    start_ms: float | None
    price: float = Field(description="What is expected of preparing, less that of not preparing.")
    trace_ids: list[str] = Field(max_length=3)
    lead_quantiles_ms: list[float] = Field(description="5, 25, 50, 75, 95 % of the time to the call; empty: not priced.")
    wait_cost: float = Field(description="What calls are expected to wait, times the price of a second late.")
    idle_cost: float = Field(description="What it is expected to idle, times the price of a GB-second.")
    idle_ms: float
    kappa: float = Field(description="The probability under which it does not pay.")
    alternatives: list[Alternative] = Field(description="What else was weighed, the cheapest first.")


class StepsMs(BaseModel):
    """Milliseconds per step of a start; 0 where a step did not happen. `code_from`: tier1, tier2, origin, or empty."""

    queue: float
    place: float
    clone: float
    code: float
    net: float
    init: float
    run: float
    code_from: str = ""


class DecisionAnswer(BaseModel):
    revision: int = Field(ge=0, description="Grows with each change of any decision.")
    decision_id: str
    plan_id: str
    function: str
    version: int = Field(ge=1)
    ordinal: int = Field(ge=1)
    entry: str
    node: str
    trigger: str
    trace_id: str
    reason: str
    evidence: DecisionEvidence
    memory_mb: int = Field(ge=1)
    level: Level = Field(description="ready: an instance; standby: a clone without code, for whichever of `covers` is called.")
    covers: list[str]
    start_in_ms: float = Field(description="Its delay, from when it was decided.")
    expires_s: float = Field(description="How long it may stay unused once it is ready.")
    created_at: float = Field(description=EPOCH)
    outcome: Literal["pending", "ready", "hit", "late", "wasted", "cancelled"]
    ready_at: float | None
    ended_at: float | None
    start_ms: float
    saved_ms: float
    idle_ms: float = Field(description="How long it stood ready, unused.")
    steps_ms: StepsMs
    source: str = Field(description="What it was made from: template, standby, clone; empty before it is ready.")
    became: str = Field(description="Of a standby: the version that took it, as name:number.")
    invocation_id: str
    detail: str


class DecisionsAnswer(BaseModel):
    decisions: list[DecisionAnswer]
    revision: int = Field(ge=0)


class RunSummary(BaseModel):
    trace_id: str
    entry: str
    started_at: float = Field(description=EPOCH)
    duration_ms: float
    status: str
    invocations: int = Field(ge=1)
    starts: dict[StartKind, int]
    link: str = Field(description="A traceparent from outside, kept only as a link.")


class RunsAnswer(BaseModel):
    runs: list[RunSummary]


class RunInvocation(BaseModel):
    invocation_id: str
    function: str
    version: int = Field(ge=1)
    start: StartKind
    status: str
    error_type: str
    node: str
    offset_ms: float
    duration_ms: float
    wait_ms: float
    timings_ms: StepsMs
    decision_id: str
    children: list["RunInvocation"]


class RunAnswer(RunSummary):
    root: RunInvocation
    decisions: list[DecisionAnswer]


class ReachedFunction(BaseModel):
    name: str
    reach: float = Field(ge=0, le=1)
    samples: int = Field(ge=0)
    source: EdgeSource
    changing: bool = Field(description="It is called much more or less often than before: only the latest runs count now.")


class Workflow(BaseModel):
    entry: str
    deployed: bool
    functions: list[ReachedFunction]


class WorkflowsAnswer(BaseModel):
    workflows: list[Workflow]


class IntakeAnswer(BaseModel):
    """Spans of elsewhere, sent or imported, since the planner started."""

    spans: int = Field(ge=0, description="That came.")
    traces: int = Field(ge=0, description="That were complete.")
    early: int = Field(ge=0, description="Of these, those whose root was not waited for as long as usual, to make room.")
    waiting_spans: int = Field(ge=0, description="Of traces that are not complete yet.")
    left_out: dict[str, int] = Field(description="Spans that were not used, by reason.")


class ObservedFunction(BaseModel):
    observed: str = Field(description="As traces name it: service/entry operation.")
    function: str | None = Field(description="The function it was said to be.")
    deployed: bool = Field(description="That function is deployed.")
    learned: bool = Field(description="The call graph knows it under the observed name.")


class NamesAnswer(BaseModel):
    names: list[ObservedFunction]
    map: dict[str, str] = Field(description="The names given to those shown.")


class CooledAnswer(BaseModel):
    cooled: int = Field(ge=0, description="Instances given up.")


class PrewarmAnswer(BaseModel):
    policy: Policy


class CalibrationBin(BaseModel):
    """A tenth of the predictions, those nearest to each other."""

    predicted: float = Field(ge=0, le=1)
    observed: float = Field(ge=0, le=1)
    count: int = Field(ge=1)


class FunctionReckoning(BaseModel):
    """One function's. `runs`, `predicted`, `observed` and `brier` compare what was predicted when runs began with what they
    did, in the latest of them; the rest is since the planner first counted it.
    """

    function: str
    runs: int = Field(ge=0)
    predicted: float | None
    observed: float | None
    brier: float | None = Field(description="Mean squared distance of predicted and observed.")
    invocations: int = Field(ge=0)
    cold: int = Field(ge=0, description="Invocations that waited for their instance for more than 1 ms.")
    outcomes: dict[str, int]
    unprepared: int = Field(ge=0, description="Of the cold ones those for which nothing was being prepared.")
    waited_s: float = Field(ge=0)
    saved_s: float = Field(ge=0)
    idle_s: float = Field(ge=0, description="How long what plans prepared stood ready, unused.")
    wasted_s: float = Field(ge=0, description="Of that, for nothing.")
    wait_cost: float = Field(ge=0)
    idle_cost: float = Field(ge=0)
    resting: str = Field(description="Why it is not prepared now; empty when it may be.")
    keep_s: float | None = Field(description="How long an idle instance is worth keeping; null: as long as nodes keep any.")
    keep_why: str = Field(description="What that stands on; empty where idle instances are not weighed.")
    changing: bool = Field(description="Some workflow calls it much more or less often than before.")


class PricesAnswer(BaseModel):
    idle_gb_s: float = Field(description="One GB held ready, unused, for a second.")
    late_s: float = Field(description="A second that an invocation waits.")


class SpendingAnswer(BaseModel):
    """Idle instance-seconds that the tenant's plans may cost: some for each second its functions are busy."""

    idle_s_per_busy_s: float
    left_s: float
    spent_s: float
    busy_s: float
    dearer: float = Field(description="The price of idling is raised by this factor, so that plans stay within the budget.")


class CalibrationAnswer(BaseModel):
    policy: Policy
    prices: PricesAnswer
    spending: SpendingAnswer
    error: float | None = Field(description="Mean distance of predicted and observed, over the bins; null before any run.")
    brier: float | None
    bins: list[CalibrationBin]
    functions: list[FunctionReckoning]


class LogPart(BaseModel):
    stream: Literal["out", "err"]
    text: str


class LogEntry(BaseModel):
    invocation_id: str
    version: str
    at: float = Field(description=EPOCH)
    cut: bool = Field(description="It wrote more than is kept.")
    output: list[LogPart]


class LogsAnswer(BaseModel):
    logs: list[LogEntry]


class EventsBacklog(BaseModel):
    open: int = Field(ge=0)
    parked: int = Field(ge=0)


class ZoneCacheStatus(BaseModel):
    name: str
    zone: str
    state: str = Field(description="up, or silent: it says nothing, and its zone's nodes go to the origin.")


class StatusAnswer(BaseModel):
    """Beside these, `planner` and one entry per node: what it says of itself, or `away`."""

    model_config = ConfigDict(extra="allow")

    version: str
    redis: Literal["ok", "away"]
    events: EventsBacklog
    zone_caches: list[ZoneCacheStatus] = Field(description="Those that joined and have not left.")


class TotalsAnswer(BaseModel):
    decisions: int
    since: float | None = Field(description="When the oldest of them was decided: the log keeps the newest of all tenants.")
    outcomes: dict[str, int]
    hit_ratio: float | None = Field(description="Hits / (hits + late + wasted); null while none of these ended.")
    saved_s: float = Field(description="Preparing that invocations did not wait for.")
    wasted_instance_s: float = Field(description="How long instances that nobody used were kept ready.")


class LastErrorAnswer(BaseModel):
    status: str
    type: str
    at: float
    trace_id: str


class FunctionActivityAnswer(BaseModel):
    name: str
    invocations: int
    errors: int
    by_status: dict[str, int]
    last_error: LastErrorAnswer | None


class ScalingTerm(BaseModel):
    """What one policy asks for."""

    source: str
    count: int
    reason: str


class ScalingPoint(BaseModel):
    """From `at` on."""

    at: float = Field(description=EPOCH)
    wanted: int
    ready: int
    busy: int
    by: str = Field(description="The term that decided: min, provisioned, reactive, feed-forward, release or plans.")
    reason: str
    limit: str = Field(description="What kept it from being more; empty: nothing did.")


class ScalingVersion(BaseModel):
    version: str
    wanted: int = Field(description="So many instances at least.")
    ready: int = Field(description="Idle or busy.")
    busy: int
    coming: int = Field(description="Being prepared.")
    short: int = Field(description="Wanted, and no node has room.")
    by: str
    reason: str
    limit: str
    terms: list[ScalingTerm]
    history: list[ScalingPoint] = Field(default=[], description="Each change, oldest first; of one function only.")


class ScalingAnswer(BaseModel):
    policy: str = Field(description="headroom, kpa or off.")
    tick_s: float
    ticks: int
    versions: list[ScalingVersion]


class ActivityAnswer(BaseModel):
    window_s: float
    functions: list[FunctionActivityAnswer]


class InstancesOfVersionAnswer(BaseModel):
    """On one node."""

    function: str
    version: int
    node: str
    idle: int
    busy: int
    preparing: int
    keep_s: float | None = Field(description="How long an idle one is kept now: the node's keep-alive, or less by price.")


class FunctionTemplateAnswer(BaseModel):
    """On one node, of a version that has started there."""

    function: str
    version: int
    node: str
    standing: str = Field(description="held, making, refused (for good), or none (yet, or any more).")
    reason: str = Field(description="Why none is held.")
    init_ms: float = Field(description="What its init took without a template.")
    memory_mb: int
    clones: int = Field(description="Instances cloned from the one held.")


class FunctionCodeAnswer(BaseModel):
    """Since each node started. By tier: tier1 (was on the node), tier2 (the zone), origin, failed."""

    function: str
    node: str
    requests: dict[str, int] = Field(description="Starts that asked for its code.")
    ms: dict[str, float] = Field(description="How long they waited for it, all together.")
    bytes: int = Field(ge=0, description="Brought to the node, on its disk.")
    evictions: int = Field(ge=0, description="Layers brought for it that went to make room.")


class CodeAnswer(BaseModel):
    functions: list[FunctionCodeAnswer]
    away: list[str] = Field(description="Nodes that did not answer.")


class InstancesAnswer(BaseModel):
    instances: list[InstancesOfVersionAnswer]
    templates: list[FunctionTemplateAnswer] = Field(description="Function templates, and why there is none.")
    away: list[str] = Field(description="Nodes that did not answer.")
