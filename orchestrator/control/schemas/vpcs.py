"""Private networks."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from orchestrator.control.schemas.parts import VPC, Request
from orchestrator.vpcs import MAX_CIDRS, MAX_RULES

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
    functions: list[str] = Field(
        description="With a version in it that can be asked for: the newest, what serves, what aliases mean, what was published."
    )


class VpcStateAnswer(VpcAnswer):
    tunnels: list[TunnelAnswer]
    away: list[str] = Field(description="Nodes that did not answer.")


class VpcsAnswer(BaseModel):
    vpcs: list[VpcAnswer]
