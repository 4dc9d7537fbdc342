"""Tells the relay that something was written, so that it need not look often. Lost nudges cost a moment, nothing else."""

import contextlib
import math

import redis

KEY = "foreglow:flow:nudge"
TIMEOUT_S = 0.5


class Nudge:
    """Thread-safe."""

    def __init__(self, url: str) -> None:
        self._redis = redis.Redis.from_url(url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S)

    def give(self) -> None:
        """Never fails and takes TIMEOUT_S at most: the relay looks by itself soon."""
        with contextlib.suppress(redis.RedisError):
            pipe = self._redis.pipeline(transaction=False)
            pipe.lpush(KEY, b"1")
            pipe.ltrim(KEY, 0, 0)
            pipe.execute()

    def wait(self, seconds: float) -> None:
        """Returns when nudged, at the latest after `seconds` (under TIMEOUT_S). Raises redis.RedisError."""
        self._redis.blpop([KEY], timeout=math.nextafter(seconds, 0))

    def close(self) -> None:
        self._redis.close()
