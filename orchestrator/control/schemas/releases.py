"""Published versions, aliases, releases."""

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, field_validator, model_validator

from orchestrator.catalog.releases import Plan
from orchestrator.control.schemas.parts import Ordinal, Request

STICKY = r"^(key|header:[a-z0-9-]{1,100})?$"
ALIAS = r"^(\$LATEST|[A-Za-z][A-Za-z0-9_-]{0,62})$"
MAX_STEPS = 20
MAX_HOLD_S = 86_400
Share = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]


class PlanRequest(Request):
    """How traffic comes to a version: instances of it and of its call path are made ready first, then the route changes."""

    model_config = ConfigDict(
        extra="forbid", strict=True, json_schema_extra={"examples": [{"ramp": [0.1, 0.3, 1.0], "hold_s": 60}]}
    )

    gate: StrictBool = Field(default=True, description="false: at once, nothing is made ready and no ramp is gone through.")
    ramp: list[Share] = Field(default=[], max_length=MAX_STEPS, description="Growing shares; empty: all of it in one step.")
    hold_s: float = Field(default=60.0, ge=0, le=MAX_HOLD_S, allow_inf_nan=False, description="How long each step is watched.")

    @field_validator("ramp")
    @classmethod
    def _ramp(cls, ramp: list[float]) -> list[float]:
        if any(one >= other for one, other in pairwise(ramp)):
            raise ValueError("shares must grow from step to step")
        return ramp

    def plan(self) -> Plan | None:
        return Plan(tuple(self.ramp), self.hold_s) if self.gate else None


class AliasRequest(Request):
    """Where an alias points: at one version, or at two with a share for the second."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={"examples": [{"version": 1}, {"version": 1, "second": 2, "share": 0.3, "sticky": "header:x-user"}]},
    )

    version: Ordinal
    second: Ordinal | None = None
    share: float = Field(default=0.0, ge=0, lt=1, allow_inf_nan=False, description="The part of all runs that gets `second`.")
    sticky: str | None = Field(
        default=None,
        pattern=STICKY,
        description="Who gets the same version each time: `key` (of the API), `header:NAME`, empty for nobody; null: as it is.",
    )
    release: PlanRequest = PlanRequest()

    @model_validator(mode="after")
    def _two(self) -> "AliasRequest":
        if self.second is not None and (self.second == self.version or self.share <= 0):
            raise ValueError("a second version is another one, with a share above 0 and below 1")
        if self.second is None and self.share > 0:
            raise ValueError("a share is that of a second version: name one")
        return self


class PublishRequest(Request):
    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra={"examples": [{"label": "spring"}]})

    version: Ordinal | None = Field(default=None, description="null: the one that serves.")
    label: str = Field(default="", max_length=200, pattern=r"^[ -~]*$", description="What it is called.")
    alias: str | None = Field(
        default=None, pattern=ALIAS, description="An alias to point at it, as PUT .../aliases/{alias} does."
    )


class PointerAnswer(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    version: int
    second: int | None
    share: float = Field(description="The part of all runs that gets `second`.")


class GateAnswer(BaseModel):
    version: str = Field(description="name:number; of the released function, or of one on its call path.")
    wanted: int = Field(ge=0)
    ready: int = Field(ge=0)
    limit: str = Field("", description="Why fewer are made ready than the traffic needs: what `max_instances` allows.")


class WatchAnswer(BaseModel):
    """Requests of one version since the step is in force."""

    version: str = Field(description="name:number.")
    requests: int = Field(ge=0)
    errors: int = Field(ge=0, description="Those of them that failed.")
    p95_ms: float = Field(ge=0, description="Their 95th percentile, from being sent to the end; 0 without requests.")


class ReleaseAnswer(BaseModel):
    """An alias on its way to another pointer."""

    model_config = ConfigDict(from_attributes=True)

    id: int
    function: str
    alias: str
    target: int = Field(description="The version it leads to.")
    phase: Literal["preparing", "holding", "done", "stopped", "aborted", "superseded"]
    step: int = Field(ge=0, description="Of `steps`, the one that is prepared, or in force while it holds.")
    flipped: int = Field(ge=0, description="How many steps are or were in force.")
    steps: list[PointerAnswer]
    back: PointerAnswer = Field(description="Where it returns to when it is stopped or aborted.")
    hold_s: float
    reason: str = Field(description="What it waits for, or why it ended.")
    gate: list[GateAnswer] = Field(description="What the step needs ready before the route changes, as seen last.")
    watch: list[WatchAnswer] = Field(
        description="How the new version does in a step that holds, and the other one, as seen last."
    )
    created_at: float = Field(description="Seconds since the Unix epoch, as all times here.")
    since: float = Field(description="When it came to its phase and step.")
    ended_at: float | None


class ReleasesAnswer(BaseModel):
    releases: list[ReleaseAnswer] = Field(description="Newest first.")


class AliasAnswer(PointerAnswer):
    name: str
    sticky: str
    before: PointerAnswer | None = Field(description="What a rollback brings back.")
    changed_at: float = Field(description="Seconds since the Unix epoch.")
    release: ReleaseAnswer | None = Field(description="The one that is on its way.")


class AliasesAnswer(BaseModel):
    aliases: list[AliasAnswer]


class PublishedAnswer(BaseModel):
    version: int
    label: str
    alias: AliasAnswer | None
