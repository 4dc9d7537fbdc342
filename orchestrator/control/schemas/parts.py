"""What requests have in common: names, whole numbers, and that nothing unknown is in them."""

from typing import Annotated

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


class Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
