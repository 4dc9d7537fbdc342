"""The tables. SQLite (write-ahead log) on one machine, PostgreSQL on many; nothing here is particular to either.

Times are seconds since the Unix epoch. A function's `generation` grows with every change of it and never goes back, not even when
the function is removed and comes again: its row stays, marked removed.
"""

from enum import StrEnum
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    String,
    Text,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class VersionState(StrEnum):
    """`PUBLISHING`: all its conditions hold, the routes are about to say so; users see `pending` until they do."""

    PENDING = "pending"
    PUBLISHING = "publishing"
    READY = "ready"
    FAILED = "failed"


class ConditionName(StrEnum):
    """`ROUTE`: gateways have been told; it follows from the others."""

    CODE = "code"
    NETWORK = "network"
    CAPACITY = "capacity"
    ROUTE = "route"


class ConditionStatus(StrEnum):
    TRUE = "true"
    FALSE = "false"
    UNKNOWN = "unknown"
    NOT_NEEDED = "not needed"


class EventKind(StrEnum):
    DEPLOYED = "deployed"
    REMOVED = "removed"
    KEY = "key"
    TENANT = "tenant"
    NODE = "node"
    ROUTED = "routed"  # where traffic goes has changed, no version has come or gone
    VPC = "vpc"


class KeyRole(StrEnum):
    """`operator`: runs the platform; may also make tenants, see nodes and parked events."""

    TENANT = "tenant"
    OPERATOR = "operator"


class NodeState(StrEnum):
    """`SILENT`: no heartbeat; out of placement until it is heard of again. `LEFT`: told to go, its name may join again."""

    UP = "up"
    SILENT = "silent"
    LEFT = "left"


class Module(StrEnum):
    """The control-flow modules; each has the Celery queue of its name."""

    NETWORK_DEPLOYMENT = "network_deployment"
    FUNCTION_MANAGEMENT = "function_management"
    SCHEDULING = "scheduling"
    METADATA_SYNC = "metadata_sync"


class LayerRole(StrEnum):
    CODE = "code"
    DEPENDENCIES = "dependencies"


class Schema(DeclarativeBase):
    type_annotation_map = {  # noqa: RUF012
        dict[str, Any]: JSON,
        list[str]: JSON,
        list[Any]: JSON,
        str: String(255),
        float: Float,
        bytes: LargeBinary,
    }


class Installation(Schema):
    """One row: who wrote what is in Redis. Another database's routes are not ours to keep."""

    __tablename__ = "installation"

    id: Mapped[int] = mapped_column(primary_key=True)
    identity: Mapped[str]


class Tenant(Schema):
    """An owner of functions and its quotas. A quota that is None is the platform's default (orchestrator.quotas).

    The row of a removed tenant stays: its name is never given again, so that nobody is ever shown what another left behind.
    """

    __tablename__ = "tenants"

    name: Mapped[str] = mapped_column(String(63), primary_key=True)
    created: Mapped[float]
    generation: Mapped[int] = mapped_column(BigInteger, default=0)
    max_functions: Mapped[int | None]
    max_concurrency: Mapped[int | None]  # invocations in flight, over all gateways
    max_package_bytes: Mapped[int | None] = mapped_column(BigInteger)  # of all packages kept
    max_invocations_per_s: Mapped[float | None]
    max_prewarm_instances: Mapped[int | None]  # speculative instances at once
    max_vpcs: Mapped[int | None]  # private networks
    max_prewarm_idle_s_per_busy_s: Mapped[float | None]  # of plans of the policy priced
    removed: Mapped[float | None]


class Key(Schema):
    """A bearer token, kept as its SHA-256. `generation`: 1 when made, 2 when revoked. `role`: see KeyRole."""

    __tablename__ = "keys"

    key_id: Mapped[str] = mapped_column(String(32), primary_key=True)
    tenant: Mapped[str] = mapped_column(ForeignKey("tenants.name"))
    digest: Mapped[str] = mapped_column(String(64), unique=True)
    name: Mapped[str]
    created: Mapped[float]
    revoked: Mapped[float | None]
    last_used: Mapped[float | None]
    generation: Mapped[int] = mapped_column(default=1)
    role: Mapped[str] = mapped_column(String(16), default="tenant")


class Node(Schema):
    """A process of a host that joined; `role`: node | gateway | planner | flow | zone-cache | vpc-proxy. `epoch` grows each
    time it joins or is declared silent: orders and answers of an older one are void. `vpc`: tenant/name, of a vpc-proxy.
    `number`: of a node that has not left, its own among all of these; 1 is the node beside control, which is not here.

    `address`: `host:port`, empty for what only dials. `fingerprint`: SHA-256 of its certificate, hex; `fingerprint_before`: of
    the one that it renews, which counts until the member has shown the new one. What runs beside control on its host is not here:
    the cluster key lets it in.
    """

    __tablename__ = "nodes"

    name: Mapped[str] = mapped_column(String(63), primary_key=True)
    role: Mapped[str] = mapped_column(String(16), default="node")
    address: Mapped[str]
    zone: Mapped[str] = mapped_column(String(63), default="")
    fingerprint: Mapped[str] = mapped_column(String(64), default="")
    fingerprint_before: Mapped[str] = mapped_column(String(64), default="")
    state: Mapped[str] = mapped_column(String(16))
    epoch: Mapped[int] = mapped_column(BigInteger)
    generation: Mapped[int] = mapped_column(BigInteger)
    joined: Mapped[float]
    last_seen: Mapped[float | None]
    tenants: Mapped[str] = mapped_column(Text, default="")  # those whose code a node may hold, with spaces between; empty: all
    vpc: Mapped[str] = mapped_column(String(127), default="")
    number: Mapped[int | None] = mapped_column(unique=True)


class JoinToken(Schema):
    """Lets one process join once; kept as its SHA-256."""

    __tablename__ = "join_tokens"

    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    role: Mapped[str] = mapped_column(String(16))  # as Node.role
    vpc: Mapped[str] = mapped_column(String(127), default="")  # as Node.vpc
    created: Mapped[float]
    expires: Mapped[float]
    used: Mapped[float | None]
    used_by: Mapped[str] = mapped_column(String(63), default="")


class Lease(Schema):
    """Who may do something alone, such as plan for a shard of tenants. `epoch` grows with every new holder, never goes back."""

    __tablename__ = "leases"

    name: Mapped[str] = mapped_column(String(63), primary_key=True)
    holder: Mapped[str]
    address: Mapped[str] = mapped_column(default="")
    epoch: Mapped[int] = mapped_column(BigInteger)
    expires: Mapped[float]


class Function(Schema):
    """`serving` is the version that $LATEST means, None when none is ready yet; `latest` the highest number ever given.

    `route_generation` is the generation at which what gateways must know last changed; `published` the serving version once
    the routes really said so, which is what users are shown.
    """

    __tablename__ = "functions"
    __table_args__ = (UniqueConstraint("tenant", "name"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    tenant: Mapped[str] = mapped_column(ForeignKey("tenants.name"))
    name: Mapped[str] = mapped_column(String(63))
    kind: Mapped[str] = mapped_column(String(16))  # of the version deployed last
    generation: Mapped[int] = mapped_column(BigInteger)
    route_generation: Mapped[int] = mapped_column(BigInteger, default=0)
    latest: Mapped[int] = mapped_column(default=0)
    serving: Mapped[int | None]
    published: Mapped[int | None]
    created: Mapped[float]
    deleted: Mapped[float | None]


class Vpc(Schema):
    """A private network of a tenant. `number` tells its tunnels apart from all others', and is never given again: a removed one's
    row stays, and one that comes again under the name is another. `rules` as orchestrator.vpcs writes them."""

    __tablename__ = "vpcs"
    __table_args__ = (Index("vpcs_by_name", "tenant", "name"),)

    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    tenant: Mapped[str] = mapped_column(ForeignKey("tenants.name"))
    name: Mapped[str] = mapped_column(String(63))
    cidrs: Mapped[list[str]]
    rules: Mapped[list[str]]
    address: Mapped[str] = mapped_column(String(15), default="")
    resolver: Mapped[str] = mapped_column(String(15), default="")
    generation: Mapped[int] = mapped_column(BigInteger)
    created: Mapped[float]
    removed: Mapped[float | None]


class Package(Schema):
    """What a tenant has uploaded. `digest` is also the digest of its layer as uploaded."""

    __tablename__ = "packages"

    tenant: Mapped[str] = mapped_column(ForeignKey("tenants.name"), primary_key=True)
    digest: Mapped[str] = mapped_column(String(80), primary_key=True)
    files: Mapped[int]
    size: Mapped[int] = mapped_column(BigInteger)
    requirements: Mapped[str] = mapped_column(Text)  # accepted lines, empty when there are none
    requirements_digest: Mapped[str] = mapped_column(String(64))
    created: Mapped[float]


class Layer(Schema):
    """Built for a runtime: code with its bytecode (source: the package's digest), or dependencies (the requirements')."""

    __tablename__ = "layers"

    tenant: Mapped[str] = mapped_column(ForeignKey("tenants.name"), primary_key=True)
    role: Mapped[str] = mapped_column(String(16), primary_key=True)
    source: Mapped[str] = mapped_column(String(80), primary_key=True)
    runtime: Mapped[str] = mapped_column(String(32), primary_key=True)
    digest: Mapped[str] = mapped_column(String(80))
    size: Mapped[int] = mapped_column(BigInteger)
    failures: Mapped[dict[str, Any]]  # path -> why this source does not compile
    lock: Mapped[str] = mapped_column(Text, default="")  # of dependencies: every version with its hashes
    created: Mapped[float]


class Version(Schema):
    """Immutable but for its state and the layers, which are filled in once."""

    __tablename__ = "versions"
    __table_args__ = (ForeignKeyConstraint(["tenant", "package"], ["packages.tenant", "packages.digest"]),)

    function: Mapped[int] = mapped_column(ForeignKey("functions.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    generation: Mapped[int] = mapped_column(BigInteger)
    tenant: Mapped[str] = mapped_column(String(63))
    kind: Mapped[str] = mapped_column(String(16))
    handler: Mapped[str]
    runtime: Mapped[str] = mapped_column(String(32))
    memory_mb: Mapped[int]
    timeout_s: Mapped[float]
    concurrency: Mapped[int]
    environment: Mapped[bytes]  # sealed
    environment_names: Mapped[list[str]]
    calls: Mapped[list[str]]
    egress: Mapped[str] = mapped_column(String(16))
    vpc: Mapped[str] = mapped_column(String(63), default="")  # name of a private network of the tenant; empty: in none
    initial_instances: Mapped[int] = mapped_column(default=0)  # made before the version gets traffic
    scaling: Mapped[dict[str, Any]] = mapped_column(default=dict)  # the fields of workers.versions.Scaling that were set
    build: Mapped[bool] = mapped_column(default=False)  # what has no wheel is built from source
    package: Mapped[str] = mapped_column(String(80))
    code_layer: Mapped[str] = mapped_column(String(80), default="")
    dependency_layer: Mapped[str] = mapped_column(String(80), default="")
    layers_size: Mapped[int] = mapped_column(BigInteger, default=0)
    state: Mapped[str] = mapped_column(String(16))
    created: Mapped[float]


class Condition(Schema):
    """One module's word on a version. Rows, not one JSON column: modules write theirs at the same time.

    `since` is when it got its status.
    """

    __tablename__ = "conditions"
    __table_args__ = (ForeignKeyConstraint(["function", "number"], ["versions.function", "versions.number"], ondelete="CASCADE"),)

    function: Mapped[int] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(16), primary_key=True)
    status: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str] = mapped_column(Text)
    since: Mapped[float]


class Event(Schema):
    """The outbox: written in the transaction of the change it tells of. `subject`: a function id, a key's digest, a tenant, a
    node, a private network (tenant/name)."""

    __tablename__ = "events"

    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True)
    kind: Mapped[str] = mapped_column(String(16))
    subject: Mapped[str]
    generation: Mapped[int] = mapped_column(BigInteger)
    payload: Mapped[dict[str, Any]]
    created: Mapped[float]


class Delivery(Schema):
    """One event for one module, from due to done. `due` None: it waits for the version's conditions, or is done or parked."""

    __tablename__ = "deliveries"
    __table_args__ = (Index("deliveries_due", "due"),)

    event: Mapped[int] = mapped_column(
        BigInteger().with_variant(Integer, "sqlite"), ForeignKey("events.id", ondelete="CASCADE"), primary_key=True
    )
    module: Mapped[str] = mapped_column(String(32), primary_key=True)
    due: Mapped[float | None]
    tries: Mapped[int] = mapped_column(default=0)
    done: Mapped[float | None]
    parked: Mapped[float | None]
    reason: Mapped[str] = mapped_column(Text, default="")


# -- versions that are kept, pointers, releases


class ReleasePhase(StrEnum):
    """`PREPARING`: instances for the next step are being made; `HOLDING`: a step is in force and watched. The others are ends."""

    PREPARING = "preparing"
    HOLDING = "holding"
    DONE = "done"
    STOPPED = "stopped"  # by itself: its gate did not open, or the new version did badly
    ABORTED = "aborted"  # by somebody
    SUPERSEDED = "superseded"  # by a newer one of the same alias


class Publication(Schema):
    """A version that was published: it is kept, and stays invocable, until it is unpublished."""

    __tablename__ = "publications"
    __table_args__ = (ForeignKeyConstraint(["function", "number"], ["versions.function", "versions.number"], ondelete="CASCADE"),)

    function: Mapped[int] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    label: Mapped[str] = mapped_column(default="")
    published: Mapped[float]


class Alias(Schema):
    """A movable pointer, see orchestrator.splitting.Pointer. That of $LATEST says beside Function.serving what else it means.

    `sticky`: what chooses where it means two versions: empty (the run), `key`, or `header:NAME`. `before`: the pointer that a
    rollback brings back, None when there was none.
    """

    __tablename__ = "aliases"

    function: Mapped[int] = mapped_column(ForeignKey("functions.id"), primary_key=True)
    name: Mapped[str] = mapped_column(String(63), primary_key=True)
    version: Mapped[int]
    second: Mapped[int | None]
    share: Mapped[float] = mapped_column(default=0.0)
    sticky: Mapped[str] = mapped_column(String(128), default="")
    before: Mapped[dict[str, Any] | None]
    changed: Mapped[float]


class Release(Schema):
    """An alias on its way to another pointer. `steps`: the pointers it goes through, `step` the index of the one that is being
    prepared, or in force while it holds; `flipped`: how many are or were in force. `back`: the pointer it returns to.

    `gate`: what the runner saw last: what the step in preparation needs and has, or how its versions do while a step holds. One
    at most is open per function and alias.
    """

    __tablename__ = "releases"
    __table_args__ = (Index("releases_open", "ended"), Index("releases_of", "function"))

    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True)
    function: Mapped[int] = mapped_column(ForeignKey("functions.id"))
    alias: Mapped[str] = mapped_column(String(63))
    target: Mapped[int]  # the version it leads to
    steps: Mapped[list[Any]]
    back: Mapped[dict[str, Any]]
    sticky: Mapped[str] = mapped_column(String(128), default="")
    hold_s: Mapped[float]
    step: Mapped[int] = mapped_column(default=0)
    flipped: Mapped[int] = mapped_column(default=0)
    phase: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str] = mapped_column(Text, default="")
    gate: Mapped[list[Any]]
    created: Mapped[float]
    since: Mapped[float]  # when it came to its phase and step
    ended: Mapped[float | None]
