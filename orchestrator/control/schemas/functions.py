"""Functions, their versions and packages."""

import re
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, field_validator, model_validator

from orchestrator.control.schemas.parts import VPC, FunctionName, Request, Whole
from orchestrator.control.schemas.releases import PlanRequest
from workers.versions import SHAPES_MB, Kind

HANDLER = r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*:[A-Za-z_][A-Za-z0-9_]*$"
RUNTIMES = ("python3.11",)
MAX_TIMEOUT_S = 900
MAX_CONCURRENCY = 1000
MAX_CALLS = 100
MAX_INITIAL_INSTANCES = 20
MAX_INSTANCES = 1000
MAX_ENVIRONMENT_BYTES = 4096
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
RESERVED = "FOREGLOW_"
DIGEST_EXAMPLE = "sha256:de48a5553563f0bc8801302b9baf521ab8d3649efd0551ce39c5cb93b6d27e70"


class FunctionRequest(Request):
    """The settings of a new version. Every deploy makes one; it never changes after."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={
            "examples": [
                {
                    "package": DIGEST_EXAMPLE,
                    "handler": "checkout:handle",
                    "memory_mb": 256,
                    "timeout_s": 10,
                    "environment": {"CURRENCY": "EUR"},
                    "calls": ["price", "stock", "pay"],
                }
            ]
        },
    )

    package: str = Field(pattern=r"^sha256:[0-9a-f]{64}$", description="Digest that POST /v1/packages gave.")
    handler: str = Field(pattern=HANDLER, max_length=255, description="module:function")
    kind: Literal["event", "http", "web"] = Field(default="event", json_schema_extra={"enum": ["event", "http"]})
    runtime: str = Field(default=RUNTIMES[0], max_length=32, json_schema_extra={"enum": list(RUNTIMES)})
    memory_mb: Whole = Field(default=128, ge=1, le=SHAPES_MB[-1], description=f"Rounds up to one of {SHAPES_MB}.")
    timeout_s: float = Field(default=30.0, ge=0.001, le=MAX_TIMEOUT_S, allow_inf_nan=False)
    concurrency: Whole = Field(default=1, ge=1, le=MAX_CONCURRENCY)
    environment: dict[str, str] = Field(
        default={},
        description="At most 4 KiB in all; values are never shown again.",
        json_schema_extra={"propertyNames": {"pattern": f"^(?!{RESERVED})[A-Za-z_][A-Za-z0-9_]*$"}},
    )
    calls: list[FunctionName] = Field(default=[], max_length=MAX_CALLS, description="Functions it is expected to call.")
    egress: Literal["none", "internet"] = Field(
        default="none", description="internet: also what no private network holds, by a forward proxy."
    )
    vpc: str = Field(
        default="",
        pattern=rf"^({VPC})?$",
        description="A private network of the tenant, made before; empty: in none.",
    )
    initial_instances: Whole = Field(
        default=0, ge=0, le=MAX_INITIAL_INSTANCES, description="Started before the version gets traffic; it waits for them."
    )
    min_instances: Whole = Field(default=0, ge=0, le=MAX_INSTANCES, description="So many stay, with or without traffic.")
    max_instances: Whole = Field(default=0, ge=0, le=MAX_INSTANCES, description="Never more are wanted; 0: the platform's bound.")
    provisioned_instances: Whole = Field(
        default=0, ge=0, le=MAX_INSTANCES, description="As min_instances, and no budget of the tenant takes them."
    )
    reserved_instances: Whole = Field(
        default=0, ge=0, le=MAX_INSTANCES, description="So many of the tenant's budget are no other function's."
    )
    target_concurrency: float = Field(
        default=0.0,
        ge=0,
        le=MAX_CONCURRENCY,
        allow_inf_nan=False,
        description="Calls in an instance at once; 0: the policy's own.",
    )
    build: StrictBool = Field(default=False, description="Requirements without a wheel are built from source, in a sandbox.")
    release: PlanRequest = Field(default=PlanRequest(), description="How $LATEST comes to this version.")

    @field_validator("kind")
    @classmethod
    def _kind(cls, kind: str) -> str:
        if kind == Kind.WEB:
            raise ValueError("web functions are not served by this release; use event or http")
        return kind

    @field_validator("runtime")
    @classmethod
    def _runtime(cls, runtime: str) -> str:
        if runtime not in RUNTIMES:
            raise ValueError(f"no node offers it; offered: {', '.join(RUNTIMES)}")
        return runtime

    @field_validator("environment")
    @classmethod
    def _environment(cls, environment: dict[str, str]) -> dict[str, str]:
        for name, value in environment.items():
            if not VARIABLE.match(name) or name.startswith(RESERVED):
                raise ValueError(f"{name[:80]!r} is not a name: letters, digits and _, no digit first, not {RESERVED}...")
            if "\0" in value:
                raise ValueError(f"{name} holds a zero character")
        if sum(len(name.encode()) + len(value.encode()) for name, value in environment.items()) > MAX_ENVIRONMENT_BYTES:
            raise ValueError(f"over {MAX_ENVIRONMENT_BYTES >> 10} KiB in all")
        return environment

    @model_validator(mode="after")
    def _bounds(self) -> "FunctionRequest":
        least = max(self.min_instances, self.provisioned_instances)
        if self.max_instances and self.max_instances < least:
            raise ValueError(f"max_instances: {self.max_instances} is less than the {least} that are to stay")
        return self


class PackageAnswer(BaseModel):
    model_config = ConfigDict(
        json_schema_extra={"examples": [{"digest": DIGEST_EXAMPLE, "files": 3, "bytes": 5120, "requirements": True}]}
    )

    digest: str
    files: int
    bytes: int = Field(description="Unpacked.")
    requirements: bool = Field(description="It has a requirements.txt that asks for something.")


class ConditionAnswer(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    name: Literal["code", "network", "capacity", "route"]
    status: Literal["true", "false", "unknown", "not needed"]
    reason: str = Field(description="Why it does not hold, or what it waits for.")
    since: float = Field(description="When it got this status: seconds since the Unix epoch.")


class VersionAnswer(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    number: int
    state: Literal["pending", "ready", "failed"]
    created_at: float = Field(description="Seconds since the Unix epoch.")
    kind: str
    handler: str
    runtime: str
    memory_mb: int
    timeout_s: float
    concurrency: int
    environment: dict[str, str] = Field(description="Values are masked.")
    calls: list[str]
    egress: str
    vpc: str = Field(description="The private network it is in; empty: none.")
    initial_instances: int
    scaling: dict[str, float] = Field(description="What was set: minimum, maximum, provisioned, reserved, target.")
    build: bool
    package: str
    conditions: list[ConditionAnswer]
    published_at: float | None = Field(description="When it was published; null: it is kept while it is among the newest.")
    label: str


class LockAnswer(BaseModel):
    lock: str = Field(description="A requirements file for `--require-hashes`; empty when the version requires nothing.")


class CallAnswer(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    name: str
    deployed: bool


class FunctionAnswer(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    name: str
    kind: str
    latest: int | None = Field(description="The version that serves; null when none does yet.")
    versions: list[VersionAnswer] = Field(
        description="Newest first: the newest 20, and those that serve, that aliases mean, or that were published."
    )
    calls: list[CallAnswer] = Field(description="What the newest version declares.")


class FunctionsAnswer(BaseModel):
    functions: list[FunctionAnswer]
