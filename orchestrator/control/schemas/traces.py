"""Traces from elsewhere: imported, counted, and which deployed functions they mean."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator

from orchestrator.control.schemas.parts import FunctionName, Request

ObservedName = Annotated[str, StringConstraints(min_length=1, max_length=255)]
TRACES_EXAMPLE = (
    "TraceID,SpanID,ParentID,PodName,OperationName,StartTimeUnixNano,EndTimeUnixNano,Duration\n"
    "5f2c,01,root,ts-order-service-7f8c-x2k4p,/api/v1/order,1700000000000000000,1700000000120000000,120000\n"
)
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
