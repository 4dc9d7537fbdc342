"""What planner and nodes answer, as OpenAPI shows it. It is handed through unread: these say its shape, tests hold it to them."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

StartKind = Literal["warm", "prewarmed", "almost-warm", "standby", "cold", "unknown"]
EdgeSource = Literal["declared", "learned", "declared+learned", "requested"]
Policy = Literal["path", "off"]
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


class PlanEvidence(BaseModel):
    source: EdgeSource
    reach: float = Field(ge=0, le=1)
    concurrent: float = Field(ge=0, le=1)
    samples: int = Field(ge=0)
    lead_s: float | None
    start_s: float | None
    price: float
    trace_ids: list[str]


class PlannedDecision(BaseModel):
    decision_id: str
    function: str
    ordinal: int = Field(ge=1)
    memory_mb: int = Field(ge=1)
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


class DecisionEvidence(BaseModel):
    source: EdgeSource
    reach: float = Field(ge=0, le=1)
    concurrent: float = Field(ge=0, le=1)
    samples: int = Field(ge=0)
    lead_ms: float | None
    start_ms: float | None
    price: float
    trace_ids: list[str]


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
    created_at: float = Field(description=EPOCH)
    outcome: Literal["pending", "ready", "hit", "late", "wasted", "cancelled"]
    ready_at: float | None
    ended_at: float | None
    start_ms: float
    steps_ms: StepsMs
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


class StatusAnswer(BaseModel):
    """Beside these, `planner` and one entry per node: what it says of itself, or `away`."""

    model_config = ConfigDict(extra="allow")

    version: str
    redis: Literal["ok", "away"]
    events: EventsBacklog


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
