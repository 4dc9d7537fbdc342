"""What the planner is told to do."""

from pydantic import BaseModel, ConfigDict, Field

from orchestrator.control.schemas.parts import FunctionName, Policy, Request, Whole


class WarmRequest(Request):
    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra={"examples": [{"count": 2}]})

    count: Whole = Field(default=1, ge=1, le=100, description="Instances of the entry; its path follows.")


class CoolRequest(Request):
    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra={"examples": [{"function": "checkout"}, {}]})

    function: FunctionName | None = Field(default=None, description="None: all functions of the tenant.")


class CooledAnswer(BaseModel):
    cooled: int = Field(ge=0, description="Instances given up.")


class PrewarmRequest(Request):
    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra={"examples": [{"policy": "off"}]})

    policy: Policy


class PrewarmAnswer(BaseModel):
    policy: Policy
