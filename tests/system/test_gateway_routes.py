"""Gateways follow the routes of a real Valkey: changes in order, gaps, losses, restarts. Old routes stand until new ones come."""

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import redis.asyncio as redis
from doubles.gateways import KEYS, TOKEN, digest, route
from doubles.loop import in_loop, until
from doubles.nodes import spec
from doubles.valkeys import Catalog, Server

from orchestrator.catalog import watch
from orchestrator.catalog.routes import FUNCTIONS_KEY, SEQUENCE_KEY, STREAM_KEY, encode
from orchestrator.catalog.watch import RouteTable, RouteWatcher

pytestmark = pytest.mark.system


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "BLOCK_MS", 20)
    monkeypatch.setattr(watch, "RETRY_S", (0.005, 0.02))


async def end(watching: "asyncio.Task[None]") -> None:
    """The Redis client sends under wait_for, which may swallow a cancellation, with reads this short often: once must do."""
    watching.cancel()
    done, _ = await asyncio.wait({watching}, timeout=5)
    assert done, "it was told to end and goes on"


@contextlib.asynccontextmanager
async def following() -> AsyncIterator[tuple[Server, Catalog, RouteTable]]:
    server = Server(Path(tempfile.mkdtemp(prefix="fg-")))  # short: a socket's path holds 108 bytes
    try:
        await server.start()
        client = redis.from_url(server.url, protocol=2)
        table = RouteTable()
        watching = asyncio.ensure_future(RouteWatcher(server.url, table).run())
        try:
            yield server, Catalog(client), table
        finally:
            await end(watching)
            await client.aclose()
            await server.kill()
    finally:
        server.end()


def numbers(table: RouteTable) -> dict[str, int]:
    return {function: found.latest for function, found in table.routes.items()}


@in_loop
async def test_what_was_there_is_loaded_and_what_changes_is_followed_in_order() -> None:
    async with following() as (_, catalog, table):
        assert not table.loaded.is_set()
        await catalog.put(route(spec("f")), route(spec("g")))
        await until(table.loaded.is_set)
        for number in range(2, 30):
            await catalog.put(route(spec("f", number), generation=number))
        await catalog.remove("acme/g")
        await until(lambda: numbers(table) == {"acme/f": 29})
        assert set(table.versions) == {"acme/f:29"}


@in_loop
async def test_entries_that_cannot_be_read_cost_only_themselves() -> None:
    async with following() as (_, catalog, table):
        await catalog.client.hset(FUNCTIONS_KEY, "acme/broken", b"\xc1 not msgpack")  # type: ignore[misc]
        await catalog.put(route(spec("f")))
        await until(lambda: numbers(table) == {"acme/f": 1})
        await catalog.key("bad", b"\xc1")
        await catalog.put(route(spec("f", 2), generation=2))
        await until(lambda: numbers(table) == {"acme/f": 2})
        assert table.keys == {}


@in_loop
async def test_keys_come_and_go_at_once() -> None:
    async with following() as (_, catalog, table):
        await catalog.key(digest(TOKEN), encode(KEYS[digest(TOKEN)]))
        await until(lambda: digest(TOKEN) in table.keys)
        await catalog.key(digest(TOKEN), b"")
        await until(lambda: digest(TOKEN) not in table.keys)


@in_loop
async def test_a_change_that_was_missed_is_noticed_and_everything_loaded_again() -> None:
    async with following() as (_, catalog, table):
        await catalog.put(route(spec("f")))
        await until(lambda: numbers(table) == {"acme/f": 1})
        await catalog.put(route(spec("g")), told=False)
        await until(lambda: "acme/g" in table.routes, "noticed while nothing else happens")
        await catalog.put(route(spec("h")), told=False)
        await catalog.put(route(spec("f", 2), generation=2))
        await until(lambda: numbers(table) == {"acme/f": 2, "acme/g": 1, "acme/h": 1})


@in_loop
async def test_a_trimmed_stream_is_a_gap_like_any_other() -> None:
    async with following() as (_, catalog, table):
        await catalog.put(route(spec("f")))
        await until(lambda: numbers(table) == {"acme/f": 1})
        async with catalog.client.pipeline(transaction=True) as pipe:  # all at once, so that the reader cannot follow
            for number in range(2, 20):
                pipe.hset(FUNCTIONS_KEY, "acme/f", encode(route(spec("f", number), generation=number)))
                pipe.incr(SEQUENCE_KEY)
                pipe.xadd(
                    STREAM_KEY,
                    {"s": number, "t": "function", "id": "acme/f", "v": encode(route(spec("f", number), generation=number))},
                    maxlen=2,
                    approximate=False,
                )
            await pipe.execute()
        await until(lambda: numbers(table) == {"acme/f": 19})


@in_loop
async def test_an_emptied_server_leaves_the_old_routes_in_force_until_it_is_rebuilt() -> None:
    async with following() as (_, catalog, table):
        await catalog.put(route(spec("f"), generation=3), route(spec("g")))
        await until(lambda: len(table.routes) == 2)
        await catalog.client.flushall()
        await asyncio.sleep(0.1)
        assert numbers(table) == {"acme/f": 1, "acme/g": 1}
        async with catalog.client.pipeline(transaction=True) as pipe:
            pipe.hset(FUNCTIONS_KEY, "acme/f", encode(route(spec("f", 2), generation=4)))
            pipe.set(SEQUENCE_KEY, 1_000_000)
            await pipe.execute()
        await until(lambda: numbers(table) == {"acme/f": 2}, "what the rebuilt one does not hold is gone")


@in_loop
async def test_killed_and_restarted_it_is_followed_again_and_meanwhile_nothing_is_lost() -> None:
    async with following() as (server, catalog, table):
        await catalog.put(route(spec("f")))
        await until(lambda: numbers(table) == {"acme/f": 1})
        await catalog.client.config_set("appendfsync", "always")
        await catalog.put(route(spec("g")))
        await server.kill()
        await asyncio.sleep(0.05)
        assert "acme/f" in table.routes
        await server.start()
        await catalog.put(route(spec("h")))
        await until(lambda: set(table.routes) == {"acme/f", "acme/g", "acme/h"})


@in_loop
async def test_a_watcher_that_starts_before_its_server_waits_for_it() -> None:
    server, table = Server(Path(tempfile.mkdtemp(prefix="fg-"))), RouteTable()
    try:
        watching = asyncio.ensure_future(RouteWatcher(server.url, table).run())
        await asyncio.sleep(0.03)
        assert not watching.done()
        await server.start()
        client = redis.from_url(server.url, protocol=2)
        await Catalog(client).put(route(spec("f")))
        await until(table.loaded.is_set)
        await end(watching)
        await client.aclose()
        await server.kill()
    finally:
        server.end()
