"""This gateway makes itself known in Redis, learns how many others do, and tells what it has in flight and which keys it saw."""

import asyncio
from typing import Any

import redis.asyncio as redis
import structlog
from redis.exceptions import RedisError

from orchestrator.catalog.gateways import ALIVE_KEY, ANNOUNCE, ANNOUNCE_S, SILENT_S, TOLD_KEY, USED_KEY, Told, encode_told
from orchestrator.gateway.allowances import Allowances

TIMEOUT_S = 2.0
USED_AT_ONCE = 1000

log = structlog.get_logger(__name__)


class Presence:
    """`name` is this process's alone. Redis away: the last number of gateways stands, and the keys are told when it is back."""

    def __init__(self, url: str, name: str, allowances: Allowances) -> None:
        self._url = url
        self._name = name
        self._allowances = allowances

    async def run(self) -> None:
        """Never returns."""
        client = redis.from_url(self._url, protocol=2, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S)
        away = False
        try:
            while True:
                try:
                    await self._announce(client)
                    away = False
                except (RedisError, OSError, TimeoutError) as error:
                    if not away:
                        log.info("presence.unknown", gateways=self._allowances.gateways, error=str(error)[:200])
                    away = True
                await asyncio.sleep(ANNOUNCE_S)
        finally:
            await client.aclose()

    async def _announce(self, client: Any) -> None:
        told = encode_told(Told(self._allowances.in_flight()))
        alive = await client.eval(ANNOUNCE, 2, ALIVE_KEY, TOLD_KEY + self._name, self._name, int(SILENT_S), told)
        self._allowances.gateways = max(1, int(alive))
        used = self._allowances.used
        some = dict(list(used.items())[:USED_AT_ONCE])
        if some:
            await client.hset(USED_KEY, mapping=some)
            for key_id, at in some.items():
                if used.get(key_id) == at:
                    del used[key_id]
