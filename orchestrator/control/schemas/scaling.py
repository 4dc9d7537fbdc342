"""How many instances are wanted, and why."""

from pydantic import BaseModel, Field

from orchestrator.control.schemas.parts import EPOCH


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
    history: list[ScalingPoint] = Field(default=[], description="Each change, oldest first; of one function, or with `after`.")


class ScalingAnswer(BaseModel):
    policy: str = Field(description="headroom, kpa or off.")
    tick_s: float
    ticks: int
    at: float = Field(description="When it was so. " + EPOCH)
    versions: list[ScalingVersion]
