"""What the API takes and gives, as OpenAPI shows it."""

import re
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StringConstraints,
    field_validator,
    model_validator,
)

from graph.ids import NAME_PATTERN, TENANT_PATTERN
from orchestrator.catalog.releases import Plan
from orchestrator.vpcs import MAX_CIDRS, MAX_RULES, VPC_NAME
from workers.versions import SHAPES_MB, Kind

NAME = NAME_PATTERN.pattern.replace(r"\Z", "$")
TENANT = TENANT_PATTERN.pattern.replace(r"\Z", "$")
VPC = VPC_NAME.pattern.replace(r"\Z", "")
HANDLER = r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*:[A-Za-z_][A-Za-z0-9_]*$"
RUNTIMES = ("python3.11",)
MAX_TIMEOUT_S = 900
MAX_CONCURRENCY = 1000
LARGEST = 2**53 - 1
"""The largest whole number that every reader of JSON takes for the same."""

MAX_CALLS = 100
MAX_INITIAL_INSTANCES = 20
MAX_ENVIRONMENT_BYTES = 4096
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
RESERVED = "FOREGLOW_"

STICKY = r"^(key|header:[a-z0-9-]{1,100})?$"
ALIAS = r"^(\$LATEST|[A-Za-z][A-Za-z0-9_-]{0,62})$"
MAX_STEPS = 20
MAX_HOLD_S = 86_400
Share = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]

FunctionName = Annotated[str, StringConstraints(pattern=f"^{NAME}")]
WRITTEN_WITH_A_POINT = BeforeValidator(lambda value: int(value) if isinstance(value, float) and value.is_integer() else value)
Whole = Annotated[int, WRITTEN_WITH_A_POINT]
"""JSON knows one kind of number: 2.0 is a whole one, as its schema says too."""
Count = Annotated[int, Field(ge=0, le=2**31 - 1), WRITTEN_WITH_A_POINT]
Ordinal = Annotated[int, Field(ge=1, le=2**31 - 1), WRITTEN_WITH_A_POINT]
Bytes = Annotated[int, Field(ge=0, le=LARGEST), WRITTEN_WITH_A_POINT]

ObservedName = Annotated[str, StringConstraints(min_length=1, max_length=255)]
TRACES_EXAMPLE = (
    "TraceID,SpanID,ParentID,PodName,OperationName,StartTimeUnixNano,EndTimeUnixNano,Duration\n"
    "5f2c,01,root,ts-order-service-7f8c-x2k4p,/api/v1/order,1700000000000000000,1700000000120000000,120000\n"
)
DIGEST_EXAMPLE = "sha256:de48a5553563f0bc8801302b9baf521ab8d3649efd0551ce39c5cb93b6d27e70"


class Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


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
    map: dict[ObservedName, ObservedName] = {}
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


class QuotasRequest(Request):
    """Null, or left out: the platform's default."""

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra={"examples": [{"concurrency": 100}]})

    functions: Count | None = Field(default=None)
    concurrency: Count | None = Field(default=None, description="Invocations in flight.")
    package_bytes: Bytes | None = Field(default=None, description="Of all packages, unpacked.")
    invocations_per_s: float | None = Field(default=None, ge=0, le=1e9, allow_inf_nan=False)
    prewarm_instances: Count | None = Field(default=None, description="Speculative instances at once.")
    vpcs: Count | None = Field(default=None, description="Private networks.")
    prewarm_idle_s_per_busy_s: float | None = Field(
        default=None,
        ge=0,
        le=1e6,
        allow_inf_nan=False,
        description="Seconds that what plans of the policy priced prepare may idle, for each second that instances are busy.",
    )


class TenantRequest(Request):
    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra={"examples": [{"name": "acme"}]})

    name: str = Field(pattern=f"^{TENANT}", description="Never given again, also when the tenant is removed.")
    quotas: QuotasRequest = QuotasRequest()


class KeyRequest(Request):
    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra={"examples": [{"name": "ci"}]})

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._@-]{0,62}$", description="What it is for.")
    role: Literal["tenant", "operator"] = Field(default="tenant", description="`operator`: only an operator key can make one.")


class OwnQuotasAnswer(BaseModel):
    """What was set for the tenant; null is the default."""

    model_config = ConfigDict(from_attributes=True)

    functions: int | None
    concurrency: int | None
    package_bytes: int | None
    invocations_per_s: float | None
    prewarm_instances: int | None
    vpcs: int | None
    prewarm_idle_s_per_busy_s: float | None


class QuotasAnswer(BaseModel):
    """What is in force."""

    model_config = ConfigDict(from_attributes=True)

    functions: int
    concurrency: int
    package_bytes: int
    invocations_per_s: float
    prewarm_instances: int
    vpcs: int
    prewarm_idle_s_per_busy_s: float


class UseAnswer(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    functions: int
    package_bytes: int
    keys: int = Field(description="Live ones.")
    vpcs: int = Field(description="Private networks.")


class UseNowAnswer(UseAnswer):
    concurrency: int | None = Field(description="Invocations in flight, as gateways said last; null when none can be asked.")
    prewarm_instances: int | None = Field(description="Speculative instances that are alive; null when the planner is away.")


class TenantAnswer(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    name: str
    created: float = Field(description="Seconds since the Unix epoch.")
    quotas: QuotasAnswer
    own: OwnQuotasAnswer
    use: UseAnswer


class OwnTenantAnswer(TenantAnswer):
    use: UseNowAnswer
    role: Literal["tenant", "operator"] = Field(description="Of the key that asks.")


class TenantsAnswer(BaseModel):
    tenants: list[TenantAnswer]


class KeyAnswer(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    key_id: str
    name: str
    role: Literal["tenant", "operator"]
    created: float
    revoked: float | None
    last_used: float | None = Field(description="For a management request or an invocation, exact to about a minute.")


class KeysAnswer(BaseModel):
    keys: list[KeyAnswer]


class MadeKeyAnswer(BaseModel):
    key_id: str
    name: str
    role: Literal["tenant", "operator"]
    token: str = Field(description="Shown this once: it is kept nowhere.")


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
    build: bool
    package: str
    conditions: list[ConditionAnswer]
    published_at: float | None = Field(description="When it was published; null: it is kept while it is among the newest.")
    label: str


Cidrs = Annotated[list[str], Field(max_length=MAX_CIDRS, description="Of IPv4, such as 10.0.0.0/16; apart from each other.")]
VPC_EXAMPLE: dict[str, Any] = {"cidrs": ["10.0.0.0/16"], "rules": ["tcp:10.0.1.0/24:5432"], "resolver": "10.0.0.2"}


class VpcSettingsRequest(Request):
    """What a private network is; all of it, when it is changed."""

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra={"examples": [VPC_EXAMPLE]})

    cidrs: Cidrs
    rules: list[str] = Field(
        default=[], max_length=MAX_RULES, description="What of it may be reached, PROTOCOL:CIDR:PORTS each; none: all of it."
    )
    address: str = Field(
        default="", max_length=15, description="Where functions come from, as its servers see it; empty: the proxy's."
    )
    resolver: str = Field(default="", max_length=15, description="A DNS server in it, for names; empty: names are not resolved.")


class VpcRequest(VpcSettingsRequest):
    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra={"examples": [{"name": "database", **VPC_EXAMPLE}]})

    name: str = Field(pattern=f"^{VPC}$")


class ProxyAnswer(BaseModel):
    name: str
    address: str
    role: Literal["primary", "backup"]


class TunnelAnswer(BaseModel):
    """A node's way into the private network. `backend`: kernel, portable, or none, with why in `reason`."""

    node: str
    backend: str
    ready: bool
    generation: int = Field(description="Of the network's settings that the tunnel follows; 0: the node knows nothing of it yet.")
    reason: str
    attached: int = Field(description="Instances.")


class VpcAnswer(BaseModel):
    name: str
    number: int = Field(description="Tells it apart from all others of the cluster; never given again.")
    cidrs: list[str]
    rules: list[str]
    address: str
    resolver: str
    generation: int = Field(description="Grows with every change, also of its proxies.")
    created: float = Field(description="Seconds since the Unix epoch.")
    proxies: list[ProxyAnswer]
    functions: list[str] = Field(description="Whose newest or serving version is in it.")


class VpcStateAnswer(VpcAnswer):
    tunnels: list[TunnelAnswer]
    away: list[str] = Field(description="Nodes that did not answer.")


class VpcsAnswer(BaseModel):
    vpcs: list[VpcAnswer]


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


class PointerAnswer(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    version: int
    second: int | None
    share: float = Field(description="The part of all runs that gets `second`.")


class GateAnswer(BaseModel):
    version: str = Field(description="name:number; of the released function, or of one on its call path.")
    wanted: int = Field(ge=0)
    ready: int = Field(ge=0)


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


class FunctionsAnswer(BaseModel):
    functions: list[FunctionAnswer]


class EventAnswer(BaseModel):
    """An event that `module` has not finished. `due` null: it waits for a version's conditions, or is parked."""

    model_config = ConfigDict(from_attributes=True)

    id: int
    kind: str
    subject: str = Field(description="A function's tenant/name; for kind `key` a key's digest.")
    module: str
    tries: int
    reason: str = Field(description="Of the last try that failed.")
    created: float = Field(description="Seconds since the Unix epoch, as all times here.")
    due: float | None = Field(description="When it is sent (again).")
    parked: float | None = Field(description="When it was given up; null while it is open.")


class EventsAnswer(BaseModel):
    events: list[EventAnswer]


class RetriedAnswer(BaseModel):
    retried: list[int] = Field(description="The events that start again from their first try.")


class PageLinkAnswer(BaseModel):
    path: str = Field(description="To be opened in a browser, on this listener. Works once.")
    expires_s: float = Field(description="Seconds until it stops working.")


class HealthAnswer(BaseModel):
    status: Literal["ok"]


class ProblemAnswer(BaseModel):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "type": "about:blank",
                    "title": "Bad Request",
                    "status": 400,
                    "detail": "memory_mb: Input should be less than or equal to 2048",
                    "field": "memory_mb",
                }
            ]
        }
    )

    type: str
    title: str
    status: int
    detail: str
    field: str | None = None


Document = dict[str, Any]
"""What planner and nodes answer, handed through."""


class JoinTokenRequest(Request):
    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra={"examples": [{"role": "node", "ttl_s": 600}]})

    role: Literal["node", "gateway", "planner", "flow", "zone-cache", "vpc-proxy"] = "node"
    vpc: str = Field(
        default="",
        pattern=rf"^({VPC}/{VPC})?$",
        max_length=127,
        description="TENANT/NAME of the private network that a vpc-proxy is for.",
    )
    ttl_s: float = Field(default=3600.0, gt=0, le=7 * 86400, allow_inf_nan=False, description="Seconds until it expires.")


class JoinTokenAnswer(BaseModel):
    token: str = Field(description="Shown once.")
    role: str
    expires: float = Field(description="Seconds since the Unix epoch.")


class NodeTenantsRequest(Request):
    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra={"examples": [{"tenants": ["acme"]}]})

    tenants: list[Annotated[str, Field(pattern=f"^{TENANT}", max_length=63)]] = Field(
        max_length=1000, description="Whose functions and code the node may have; empty: everybody's."
    )


class NodeAnswer(BaseModel):
    """`state`: up, silent (no heartbeat since `silent_since`) or left. `epoch` grows each time it joins or what it holds is
    declared void. `tenants`: whose functions and code a node may have, empty for everybody's. `vpc`: of a
    vpc-proxy, tenant/name."""

    name: str
    role: str
    address: str
    zone: str
    state: str
    epoch: int
    joined: float
    last_seen: float | None
    tenants: list[str]
    silent_since: float | None = None
    vpc: str = ""


class NodesAnswer(BaseModel):
    nodes: list[NodeAnswer]
