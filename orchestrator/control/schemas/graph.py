"""Who calls whom, and what each entry reaches."""

from pydantic import BaseModel, Field

from orchestrator.control.schemas.parts import EdgeSource


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


class ReachedFunction(BaseModel):
    name: str
    reach: float = Field(ge=0, le=1)
    samples: int = Field(ge=0)
    source: EdgeSource
    changing: bool = Field(description="It is called much more or less often than before: only the latest runs count now.")


class Workflow(BaseModel):
    entry: str
    deployed: bool
    functions: list[ReachedFunction]


class WorkflowsAnswer(BaseModel):
    workflows: list[Workflow]
