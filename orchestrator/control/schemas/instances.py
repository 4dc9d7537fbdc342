"""What nodes hold of a tenant: instances, function templates, code."""

from pydantic import BaseModel, Field


class InstancesOfVersionAnswer(BaseModel):
    """On one node."""

    function: str
    version: int
    node: str
    idle: int
    busy: int
    preparing: int
    keep_s: float | None = Field(description="How long an idle one is kept now: the node's keep-alive, or less by price.")


class FunctionTemplateAnswer(BaseModel):
    """On one node, of a version that has started there."""

    function: str
    version: int
    node: str
    standing: str = Field(description="held, making, refused (for good), or none (yet, or any more).")
    reason: str = Field(description="Why none is held.")
    init_ms: float = Field(description="What its init took without a template.")
    memory_mb: int
    clones: int = Field(description="Instances cloned from the one held.")


class InstancesAnswer(BaseModel):
    instances: list[InstancesOfVersionAnswer]
    templates: list[FunctionTemplateAnswer] = Field(description="Function templates, and why there is none.")
    away: list[str] = Field(description="Nodes that did not answer.")


class FunctionCodeAnswer(BaseModel):
    """Since each node started. By tier: tier1 (was on the node), tier2 (the zone), origin, failed."""

    function: str
    node: str
    requests: dict[str, int] = Field(description="Starts that asked for its code.")
    ms: dict[str, float] = Field(description="How long they waited for it, all together.")
    bytes: int = Field(ge=0, description="Brought to the node, on its disk.")
    evictions: int = Field(ge=0, description="Layers brought for it that went to make room.")


class CodeAnswer(BaseModel):
    functions: list[FunctionCodeAnswer]
    away: list[str] = Field(description="Nodes that did not answer.")
