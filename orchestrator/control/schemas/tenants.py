"""Tenants, their quotas and keys."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from orchestrator.control.schemas.parts import TENANT, Bytes, Count, Request


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
