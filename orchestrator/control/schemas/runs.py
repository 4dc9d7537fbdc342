"""What ran: runs as trees of invocations, counts and errors of the last minutes, what functions wrote."""

from typing import Literal

from pydantic import BaseModel, Field

from orchestrator.control.schemas.decisions import DecisionAnswer
from orchestrator.control.schemas.parts import EPOCH, StepsMs

StartKind = Literal["warm", "prewarmed", "almost-warm", "standby", "cold", "unknown"]


class RunSummary(BaseModel):
    trace_id: str
    entry: str
    started_at: float = Field(description=EPOCH)
    duration_ms: float
    status: str
    invocations: int = Field(ge=1)
    starts: dict[StartKind, int]
    link: str = Field(description="A traceparent from outside, kept only as a link.")


class RunsAnswer(BaseModel):
    runs: list[RunSummary]


class RunInvocation(BaseModel):
    invocation_id: str
    function: str
    version: int = Field(ge=1)
    start: StartKind
    status: str
    error_type: str
    node: str
    offset_ms: float
    duration_ms: float
    wait_ms: float
    timings_ms: StepsMs
    decision_id: str
    children: list["RunInvocation"]


class RunAnswer(RunSummary):
    root: RunInvocation
    decisions: list[DecisionAnswer]


class LastErrorAnswer(BaseModel):
    status: str
    type: str
    at: float
    trace_id: str


class FunctionActivityAnswer(BaseModel):
    name: str
    invocations: int
    errors: int
    by_status: dict[str, int]
    last_error: LastErrorAnswer | None


class ActivityAnswer(BaseModel):
    window_s: float
    functions: list[FunctionActivityAnswer]


class LogPart(BaseModel):
    stream: Literal["out", "err"]
    text: str


class LogEntry(BaseModel):
    invocation_id: str
    version: str
    at: float = Field(description=EPOCH)
    cut: bool = Field(description="It wrote more than is kept.")
    output: list[LogPart]


class LogsAnswer(BaseModel):
    logs: list[LogEntry]
