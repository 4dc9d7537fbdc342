"""What is prepared ahead of need: plans, decisions with what they stand on, and what they came to."""

from typing import Literal

from pydantic import BaseModel, Field

from orchestrator.control.schemas.parts import EPOCH, EdgeSource, StepsMs

Level = Literal["ready", "standby"]


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


class TotalsAnswer(BaseModel):
    decisions: int
    since: float | None = Field(description="When the oldest of them was decided: the log keeps the newest of all tenants.")
    outcomes: dict[str, int]
    hit_ratio: float | None = Field(description="Hits / (hits + late + wasted); null while none of these ended.")
    saved_s: float = Field(description="Preparing that invocations did not wait for.")
    wasted_instance_s: float = Field(description="How long instances that nobody used were kept ready.")
