"""Writes the routes that gateways and planners read (catalog.routes): never a lower generation over a higher one, no gaps."""

import secrets
import time
from collections.abc import Callable, Iterator
from enum import IntEnum
from functools import partial

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
from orchestrator.catalog.vpcs import PublishedVpc

GENERATIONS_KEY = "foreglow:routes:generations"  # hash: `<kind> <id>` -> generation, tombstones too
SOURCE_KEY = "foreglow:routes:source"  # identity of the database all of this comes from
TURN_KEY = "foreglow:routes:rebuilding"  # who is writing all of it anew
TURN_MS = 5000  # a dead one's turn is over then
RENEWED_EVERY = 100  # entries
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


# Another database's routes, or what a rebuild left half done: their generations mean nothing here.
_BEGIN = """
if redis.call('EXISTS', KEYS[3]) == 1 then
  return 0
end
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  redis.call('DEL', KEYS[1], KEYS[2], unpack(KEYS, 4))
end
redis.call('SET', KEYS[3], ARGV[2], 'PX', ARGV[3])
return 1
"""
_END = """
if redis.call('GET', KEYS[3]) == ARGV[2] then
  redis.call('SET', KEYS[1], ARGV[1])
  redis.call('SET', KEYS[2], ARGV[3], 'NX')
  redis.call('DEL', KEYS[3])
end
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
        self._begin = self._redis.register_script(_BEGIN)
        self._end = self._redis.register_script(_END)

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

    def publish_vpc(self, published: PublishedVpc) -> Published:
        """The generation stays known when it is gone: one that comes again under the name counts on from it."""
        value = encode(published.spec) if published.spec is not None else b""
        return self._publish("vpc", published.vpc, published.generation, value)

    def rebuild(self, store: Store) -> None:
        """Everything again from the database, which is right whatever Redis says. Readers keep what they have until the end.

        Several may want it at once: one has its turn, for the others nothing is left to do. When Redis is emptied once more
        meanwhile the turn goes with it, nobody says that the routes are whole, and the next look finds that they are not.
        """
        identity, turn = store.identity(), secrets.token_hex(8)
        keys = [SOURCE_KEY, SEQUENCE_KEY, TURN_KEY, GENERATIONS_KEY, *(kind.key for kind in KINDS.values())]
        if not self._begin(keys=keys, args=[identity, turn, TURN_MS]):
            return
        for number, publish in enumerate(self._everything(store)):
            publish()
            if number % RENEWED_EVERY == 0:
                self._redis.pexpire(TURN_KEY, TURN_MS)
        self._redis.pexpire(TURN_KEY, TURN_MS)
        # the tasks that lay in the same Redis went with the routes
        store.outbox.resend_open(time.time())
        self._end(keys=[SOURCE_KEY, SEQUENCE_KEY, TURN_KEY], args=[identity, turn, int(time.time() * 1000)])

    def _everything(self, store: Store) -> Iterator[Callable[[], Published]]:
        yield from (partial(self.publish_node, node) for node in store.nodes.published())
        yield from (partial(self.publish_tenant, tenant) for tenant in store.tenants.published())
        yield from (partial(self.publish_vpc, vpc) for vpc in store.vpcs.published())
        yield from (partial(self.publish_function, function) for function in store.published_functions())
        yield from (partial(self.publish_key, key) for key in store.published_keys())

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
