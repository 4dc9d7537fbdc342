"""What requests and answers have in common: names, kinds, numbers, and that nothing unknown is in a request."""

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

from graph.ids import NAME_PATTERN, TENANT_PATTERN
from orchestrator.vpcs import VPC_NAME

NAME = NAME_PATTERN.pattern.replace(r"\Z", "$")
TENANT = TENANT_PATTERN.pattern.replace(r"\Z", "$")
VPC = VPC_NAME.pattern.replace(r"\Z", "")
LARGEST = 2**53 - 1
"""The largest whole number that every reader of JSON takes for the same."""

FunctionName = Annotated[str, StringConstraints(pattern=f"^{NAME}")]

WRITTEN_WITH_A_POINT = BeforeValidator(lambda value: int(value) if isinstance(value, float) and value.is_integer() else value)
Whole = Annotated[int, WRITTEN_WITH_A_POINT]
"""JSON knows one kind of number: 2.0 is a whole one, as its schema says too."""

Count = Annotated[int, Field(ge=0, le=2**31 - 1), WRITTEN_WITH_A_POINT]
Ordinal = Annotated[int, Field(ge=1, le=2**31 - 1), WRITTEN_WITH_A_POINT]
Bytes = Annotated[int, Field(ge=0, le=LARGEST), WRITTEN_WITH_A_POINT]
EdgeSource = Literal["declared", "learned", "declared+learned", "requested", "predicted"]
Policy = Literal["path", "priced", "off"]
EPOCH = "Seconds since the Unix epoch."


class Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


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
