"""Gateways that know of each other through a real Valkey: shares, what is in flight, which keys were used."""

import asyncio
import contextlib
import tempfile
from pathlib import Path

import pytest
import redis.asyncio as redis
from doubles.loop import in_loop, until
from doubles.valkeys import Server

from orchestrator.catalog.gateways import ALIVE_KEY, USED_KEY, Gateways
from orchestrator.catalog.watch import RouteTable
from orchestrator.gateway.allowances import Allowances
from orchestrator.gateway.presence import Presence
from orchestrator.quotas import Quotas

pytestmark = pytest.mark.system


@in_loop
async def test_gateways_count_each_other_and_tell_what_they_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.gateway.presence.ANNOUNCE_S", 0.05)
    server = Server(Path(tempfile.mkdtemp(prefix="fg-")))
    await server.start()
    first, second = (Allowances(RouteTable(), Quotas()) for _ in range(2))
    tasks = {name: asyncio.create_task(Presence(server.url, name, one).run()) for name, one in (("a", first), ("b", second))}
    reader, raw = Gateways(server.url), redis.from_url(server.url)
    try:
        await until(lambda: first.gateways == second.gateways == 2)
        for allowances, count in ((first, 2), (second, 1)):
            for _ in range(count):
                allowances.enter("acme", "key-1", 1000.0)
        second.enter("rival", "key-2", 1000.0)
        await until(lambda: reader.in_flight() == {"acme": 3, "rival": 1})
        await until(lambda: set(reader.keys_used()) == {"key-1", "key-2"})
        await until(lambda: not first.used and not second.used)
        reader.keys_kept(["key-1"])
        assert set(reader.keys_used()) == {"key-2"}
        # one that went away does not count any more, by Redis' clock
        tasks["b"].cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await tasks["b"]
        assert await raw.zincrby(ALIVE_KEY, -10, "b") > 0
        await until(lambda: first.gateways == 1)
        # away: the last number stands, and nothing is lost
        await server.kill()
        first.enter("acme", "key-3", 1000.0)
        await asyncio.sleep(0.2)
        assert (first.gateways, set(first.used)) == (1, {"key-3"})
        assert reader.in_flight() is None
        assert reader.keys_used() == {}
        await server.start()
        await until(lambda: not first.used)
        assert await raw.hexists(USED_KEY, "key-3")
    finally:
        for task in tasks.values():
            task.cancel()
        await asyncio.gather(*tasks.values(), return_exceptions=True)
        reader.close()
        await raw.aclose()
        server.end()
