"""Which gateways live and what they told: in flight per tenant, and when which key was used. All of it in Redis, none of it kept.

A gateway announces itself every ANNOUNCE_S; one that is silent for SILENT_S does not count any more.
"""

import contextlib
from collections import Counter
from typing import Any

import msgspec
import redis

ALIVE_KEY = "foreglow:gateways:alive"  # sorted set: name -> seconds of Redis' own clock
TOLD_KEY = "foreglow:gateways:told:"  # + name: Told, gone with the gateway
USED_KEY = "foreglow:keys:used"  # hash: key id -> seconds since the epoch, until control has taken it over
ANNOUNCE_S = 1.0
SILENT_S = 5.0
TIMEOUT_S = 0.5

# Redis' clock decides: those of the hosts may differ. Returns how many live.
ANNOUNCE = """
local now = tonumber(redis.call('TIME')[1])
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - tonumber(ARGV[2]) - 1)
redis.call('EXPIRE', KEYS[1], 60)
redis.call('SET', KEYS[2], ARGV[3], 'EX', ARGV[2])
return redis.call('ZCARD', KEYS[1])
"""


class Told(msgspec.Struct, frozen=True):
    """`in_flight`: per tenant that has any."""

    in_flight: dict[str, int] = {}


encode_told = msgspec.msgpack.Encoder().encode
_decode_told = msgspec.msgpack.Decoder(Told).decode


class Gateways:
    """The reading side. Synchronous and thread-safe; waits are bounded by TIMEOUT_S."""

    def __init__(self, url: str) -> None:
        # in bytes, whatever the library's stubs say of texts
        self._redis: Any = redis.Redis.from_url(url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S)

    def in_flight(self) -> Counter[str] | None:
        """Per tenant, over all gateways; None when Redis is away or no gateway lives."""
        try:
            names = self._redis.zrange(ALIVE_KEY, 0, -1)
            told = self._redis.mget([TOLD_KEY + name.decode() for name in names]) if names else []
        except redis.RedisError:
            return None
        found: Counter[str] = Counter()
        for one in filter(None, told):
            with contextlib.suppress(msgspec.MsgspecError):
                found.update(_decode_told(one).in_flight)
        return found if any(told) else None

    def keys_used(self) -> dict[str, float]:
        """What no `keys_kept` took over yet; nothing when Redis is away."""
        try:
            return {key.decode(): float(at) for key, at in self._redis.hgetall(USED_KEY).items()}
        except (redis.RedisError, ValueError):
            return {}

    def keys_kept(self, key_ids: list[str]) -> None:
        """They are in the database now. A use between the two is told again with the next one."""
        with contextlib.suppress(redis.RedisError):
            self._redis.hdel(USED_KEY, *key_ids)

    def close(self) -> None:
        self._redis.close()
