"""Processes that join, and what they may have."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from orchestrator.control.schemas.parts import TENANT, VPC, Request


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
