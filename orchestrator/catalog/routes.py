"""The routes: what a gateway or planner needs of the catalog to work without it.

They live in Redis/Valkey as two hashes (functions, keys) and a stream of changes. `sequence` numbers changes without
gaps; a reader that misses one loads everything again. A function's `generation` comes from the database: a publisher
never writes a lower one over a higher one. All of it can be rebuilt from the database.
"""

import msgspec

from graph.ids import FunctionId
from workers.versions import VersionSpec

FUNCTIONS_KEY = "foreglow:routes:functions"  # hash: function id -> Route
KEYS_KEY = "foreglow:routes:keys"  # hash: sha256 hex of a key -> KeyRoute
SEQUENCE_KEY = "foreglow:routes:sequence"
STREAM_KEY = "foreglow:routes:changes"  # entries {s: sequence, t: function | key, id, v: msgpack or empty for removed}
STREAM_LENGTH = 10_000
VERSIONS_PER_ROUTE = 20


class Route(msgspec.Struct, frozen=True, array_like=True):
    """`versions` are the invocable ones, newest last; `calls` the declared callees (names) of the latest."""

    function: FunctionId
    generation: int
    latest: int
    versions: tuple[VersionSpec, ...]
    calls: tuple[str, ...] = ()


class KeyRoute(msgspec.Struct, frozen=True, array_like=True):
    """Who a bearer token belongs to."""

    key_id: str
    tenant: str
    generation: int = 0


encode = msgspec.msgpack.Encoder().encode
decode_route = msgspec.msgpack.Decoder(Route).decode
decode_key = msgspec.msgpack.Decoder(KeyRoute).decode
