"""How predictions held, what waiting and idling cost, and what may still be spent."""

from pydantic import BaseModel, Field

from orchestrator.control.schemas.parts import Policy


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
