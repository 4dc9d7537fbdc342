"""Writes the routes that gateways and planners read (catalog.routes): never a lower generation over a higher one, no gaps."""

import time
from enum import IntEnum

import redis

from graph.ids import FunctionId
from orchestrator.catalog.nodes import PublishedNode
from orchestrator.catalog.routes import (
    KINDS,
    SEQUENCE_KEY,
    STREAM_KEY,
    STREAM_LENGTH,
    Route,
    TenantRoute,
    encode,
)
from orchestrator.catalog.store import PublishedFunction, PublishedKey, Store

GENERATIONS_KEY = "foreglow:routes:generations"  # hash: `<kind> <id>` -> generation, tombstones too
SOURCE_KEY = "foreglow:routes:source"  # identity of the database all of this comes from
TIMEOUT_S = 2.0

# Without a sequence the routes are lost and being written anew: hashes are filled, nobody is told until `rebuild` ends by
# setting one. It starts at the time in milliseconds, a number that no reader of the lost one expects next: that is a gap, and a
# reader that sees a gap loads everything again.
_PUBLISH = """
local known = redis.call('HGET', KEYS[2], ARGV[1] .. ' ' .. ARGV[2])
local current = redis.call('HGET', KEYS[1], ARGV[2]) or ''
if known and (tonumber(known) > tonumber(ARGV[3]) or (known == ARGV[3] and current == ARGV[4])) then
  return 0
end
redis.call('HSET', KEYS[2], ARGV[1] .. ' ' .. ARGV[2], ARGV[3])
if ARGV[4] == '' then
  redis.call('HDEL', KEYS[1], ARGV[2])
else
  redis.call('HSET', KEYS[1], ARGV[2], ARGV[4])
end
if redis.call('EXISTS', KEYS[3]) == 0 then
  return 2
end
local sequence = redis.call('INCR', KEYS[3])
redis.call('XADD', KEYS[4], 'MAXLEN', '~', ARGV[5], '*', 's', sequence, 't', ARGV[1], 'id', ARGV[2], 'v', ARGV[4])
return 1
"""


class Published(IntEnum):
    """What publishing did."""

    NOTHING = 0  # a higher generation was there, or this very one
    TOLD = 1
    LOST = 2  # written, but Redis has lost the routes: nobody is told before `rebuild`


class Publisher:
    """Synchronous and thread-safe. Every method raises redis.RedisError while Redis is away; waits are bounded by TIMEOUT_S."""

    def __init__(self, url: str) -> None:
        self._redis = redis.Redis.from_url(url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S)
        self._script = self._redis.register_script(_PUBLISH)

    def publish_route(self, route: Route) -> Published:
        return self._publish("function", route.function, route.generation, encode(route))

    def remove_route(self, function: FunctionId, generation: int) -> Published:
        """The generation stays known, so that a late publisher cannot bring the function back."""
        return self._publish("function", function, generation, b"")

    def publish_function(self, published: PublishedFunction) -> Published:
        if published.route is None:
            return self.remove_route(published.function, published.generation)
        return self.publish_route(published.route)

    def publish_key(self, published: PublishedKey) -> Published:
        value = encode(published.route) if published.route is not None else b""
        return self._publish("key", published.digest, published.generation, value)

    def publish_node(self, published: PublishedNode) -> Published:
        value = encode(published.route) if published.route is not None else b""
        return self._publish("node", published.name, published.generation, value)

    def publish_tenant(self, route: TenantRoute) -> Published:
        return self._publish("tenant", route.tenant, route.generation, encode(route))

    def rebuild(self, store: Store) -> None:
        """Everything again from the database, which is right whatever Redis says. Readers keep what they have until the end."""
        identity = store.identity()
        if self._redis.get(SOURCE_KEY) != identity.encode():
            # another database's routes, or none: their generations mean nothing here
            self._redis.delete(*(kind.key for kind in KINDS.values()), GENERATIONS_KEY, SEQUENCE_KEY)
        for node in store.nodes.published():
            self.publish_node(node)
        for tenant in store.tenants.published():
            self.publish_tenant(tenant)
        for function in store.published_functions():
            self.publish_function(function)
        for key in store.published_keys():
            self.publish_key(key)
        self._redis.set(SOURCE_KEY, identity)
        self._redis.set(SEQUENCE_KEY, int(time.time() * 1000), nx=True)

    def lost(self, store: Store) -> bool:
        """True when Redis has lost the routes or holds another database's. Cheap: asked every few seconds."""
        sequence, source = self._redis.mget(SEQUENCE_KEY, SOURCE_KEY)
        return sequence is None or source != store.identity().encode()

    def ping(self) -> bool:
        try:
            return bool(self._redis.ping())
        except redis.RedisError:
            return False

    def close(self) -> None:
        self._redis.close()

    def _publish(self, kind: str, identity: str, generation: int, value: bytes) -> Published:
        keys = [KINDS[kind].key, GENERATIONS_KEY, SEQUENCE_KEY, STREAM_KEY]
        return Published(self._script(keys=keys, args=[kind, identity, generation, value, STREAM_LENGTH]))
