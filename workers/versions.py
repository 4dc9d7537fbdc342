"""VersionSpec: everything a node must know to run one immutable version of a function."""

from enum import StrEnum

import msgspec

SHAPES_MB = (128, 256, 512, 1024, 2048)
"""The memory shapes; `memory_mb` rounds up to one."""


class Kind(StrEnum):
    EVENT = "event"  # the handler gets an event
    HTTP = "http"  # the handler gets a request
    WEB = "web"  # the user's own server on $PORT, many requests at once


class Scaling(msgspec.Struct, frozen=True, array_like=True):
    """How many instances its owner allows and wants; orchestrator.scaling.terms.Bounds says what each means. `maximum` 0: the
    platform's bound."""

    minimum: int = 0
    maximum: int = 0
    provisioned: int = 0
    reserved: int = 0
    target: float = 0.0


class CodePackage(msgspec.Struct, frozen=True, array_like=True):
    """Content-addressed code: the user's files, and the resolved dependencies when there are any.

    A digest is `sha256:` + hex over the sorted manifest of a layer; see workers.code.manifest.
    """

    code: str
    dependencies: str = ""
    size: int = 0  # bytes unpacked, both layers

    @property
    def layers(self) -> tuple[str, ...]:
        return (self.code, self.dependencies) if self.dependencies else (self.code,)


class VersionSpec(msgspec.Struct, frozen=True):
    """Immutable. `environment` travels sealed (see orchestrator.catalog.sealing): a node opens it, a log never shows it."""

    version: str  # VersionId, tenant/name:3
    tenant: str
    handler: str  # module:function
    kind: Kind
    runtime: str  # python3.11
    memory_mb: int  # one of SHAPES_MB
    timeout_s: float
    concurrency: int
    package: CodePackage
    environment: bytes = b""  # sealed JSON object of strings; empty: none
    egress: str = "none"
    vpc: str = ""
    scaling: Scaling = Scaling()


def shape_for(memory_mb: int) -> int:
    """The smallest shape that holds `memory_mb`. Raises ValueError above the largest."""
    for shape in SHAPES_MB:
        if memory_mb <= shape:
            return shape
    raise ValueError(f"memory_mb {memory_mb} is over the largest shape, {SHAPES_MB[-1]} MB")
