"""What the planner is told to do, and taught."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator

from orchestrator.control.schemas.parts import FunctionName, Request, Whole

ObservedName = Annotated[str, StringConstraints(min_length=1, max_length=255)]
TRACES_EXAMPLE = (
    "TraceID,SpanID,ParentID,PodName,OperationName,StartTimeUnixNano,EndTimeUnixNano,Duration\n"
    "5f2c,01,root,ts-order-service-7f8c-x2k4p,/api/v1/order,1700000000000000000,1700000000120000000,120000\n"
)


class WarmRequest(Request):
    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra={"examples": [{"count": 2}]})

    count: Whole = Field(default=1, ge=1, le=100, description="Instances of the entry; its path follows.")


class CoolRequest(Request):
    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra={"examples": [{"function": "checkout"}, {}]})

    function: FunctionName | None = Field(default=None, description="None: all functions of the tenant.")


class PrewarmRequest(Request):
    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra={"examples": [{"policy": "off"}]})

    policy: Literal["path", "priced", "off"]


TraceForm = Literal["auto", "otlp", "jaeger", "zipkin", "xray", "csv", "spans"]


class ImportRequest(Request):
    """Traces of any origin. `map` renames observed functions to deployed ones, beside the names given before and before them."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={
            "examples": [
                {
                    "format": "csv",
                    "text": TRACES_EXAMPLE,
                    "map": {"ts-travel-service/api/v1/travelservice/trips/left": "travel"},
                    "decay": True,
                }
            ]
        },
    )

    format: TraceForm = Field(default="auto", description="auto: found out from the text.")
    text: str
    map: dict[ObservedName, ObservedName] = Field(default={})
    decay: bool = Field(default=True, description="Old traces count less than new ones.")

    @field_validator("text")
    @classmethod
    def _text(cls, text: str) -> str:
        text.encode()  # a lone surrogate cannot travel: ValueError
        return text


class ImportAnswer(BaseModel):
    model_config = ConfigDict(
        json_schema_extra={"examples": [{"traces": 120, "calls": 2400, "spans": 9100, "left_out": 3, "reasons": {"orphan": 3}}]}
    )

    traces: int = Field(description="Taught to the planner.")
    calls: int
    spans: int
    left_out: int
    reasons: dict[str, int] = Field(description="Why spans or traces were left out.")


class NamesRequest(Request):
    """Which deployed function an observed one is; null takes a name away. What is not in it stays."""

    model_config = ConfigDict(
        extra="forbid", strict=True, json_schema_extra={"examples": [{"map": {"ts-order-service/api/v1/order": "order"}}]}
    )

    map: dict[ObservedName, FunctionName | None] = Field(max_length=10_000)
