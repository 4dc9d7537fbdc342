"""The routes: what a gateway or planner needs of the catalog to work without it.

They live in Redis/Valkey as one hash a kind (KINDS) and one stream of changes. `sequence` numbers changes without
gaps; a reader that misses one loads everything again. What each kind's `generation` says comes from the database: a publisher
never writes a lower one over a higher one. All of it can be rebuilt from the database.
"""

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from graph.ids import FunctionId
from orchestrator.quotas import OwnQuotas
from workers.networks import VpcSpec
from workers.rpc.transport import Peer
from workers.versions import VersionSpec

FUNCTIONS_KEY = "foreglow:routes:functions"  # hash: function id -> Route
KEYS_KEY = "foreglow:routes:keys"  # hash: sha256 hex of a key -> KeyRoute
NODES_KEY = "foreglow:routes:nodes"  # hash: name -> NodeRoute
SEQUENCE_KEY = "foreglow:routes:sequence"
TENANTS_KEY = "foreglow:routes:tenants"  # hash: tenant -> TenantRoute
VPCS_KEY = "foreglow:routes:vpcs"  # hash: tenant/name -> VpcSpec
STREAM_KEY = "foreglow:routes:changes"  # entries {s: sequence, t: a kind, id, v: msgpack or empty for removed}
STREAM_LENGTH = 10_000
VERSIONS_PER_ROUTE = 20


class AliasRoute(msgspec.Struct, frozen=True, array_like=True):
    """A pointer (orchestrator.splitting): `share` of what comes means `second`. `sticky` as in catalog.model.Alias."""

    name: str
    version: int
    second: int | None = None
    share: float = 0.0
    sticky: str = ""


class Route(msgspec.Struct, frozen=True, array_like=True):
    """`versions` are the invocable ones, newest last; `calls` the declared callees (names) of what $LATEST means. `aliases`:
    $LATEST is among them only while it means two versions, of which `latest` is the one that was there before."""

    function: FunctionId
    generation: int
    latest: int
    versions: tuple[VersionSpec, ...]
    calls: tuple[str, ...] = ()
    aliases: tuple[AliasRoute, ...] = ()


class KeyRoute(msgspec.Struct, frozen=True, array_like=True):
    """Who a bearer token belongs to."""

    key_id: str
    tenant: str
    generation: int = 0


class NodeRoute(msgspec.Struct, frozen=True, array_like=True):
    """A member of the cluster. `up` False: it is silent; whoever reaches it with an older `epoch` than this tells it so.
    `tenants`: whose functions and code a node may have; empty: anybody's."""

    name: str
    generation: int
    role: str
    address: str
    zone: str
    fingerprint: str
    up: bool
    epoch: int
    fingerprint_before: str = ""
    tenants: tuple[str, ...] = ()

    @property
    def peer(self) -> Peer:
        """Whom to expect at its address, and under which certificates."""
        return Peer(self.role, self.name, self.fingerprint, self.fingerprint_before)

    def hosts(self, tenant: str) -> bool:
        """Whether the node may have what is this tenant's."""
        return not self.tenants or tenant in self.tenants


class TenantRoute(msgspec.Struct, frozen=True, array_like=True):
    """A tenant's quotas. `removed`: it is gone for good, and stays known so that whoever was away hears of it too."""

    tenant: str
    generation: int
    quotas: OwnQuotas = OwnQuotas()
    removed: bool = False


class RouteKind(msgspec.Struct, frozen=True):
    """`key`: the hash that holds them. `decode` raises msgspec.MsgspecError."""

    key: str
    decode: Callable[[bytes], Any]


encode = msgspec.msgpack.Encoder().encode
decode_route = msgspec.msgpack.Decoder(Route).decode
decode_key = msgspec.msgpack.Decoder(KeyRoute).decode
decode_node = msgspec.msgpack.Decoder(NodeRoute).decode
decode_tenant = msgspec.msgpack.Decoder(TenantRoute).decode
decode_vpc = msgspec.msgpack.Decoder(VpcSpec).decode

KINDS: Mapping[str, RouteKind] = {
    "function": RouteKind(FUNCTIONS_KEY, decode_route),
    "key": RouteKind(KEYS_KEY, decode_key),
    "node": RouteKind(NODES_KEY, decode_node),
    "tenant": RouteKind(TENANTS_KEY, decode_tenant),
    "vpc": RouteKind(VPCS_KEY, decode_vpc),
}
"""A new kind is one entry here, a method of Publisher (with a line in its `rebuild`), and an attribute of RouteTable."""
