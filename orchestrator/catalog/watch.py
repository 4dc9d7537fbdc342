"""Routes in memory, kept current from Redis/Valkey: a snapshot, then the stream; a gap loads everything again.

When Redis is away, or was emptied and not rebuilt yet, the last routes stay in force: warm and cold invocations go on.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import msgspec
import redis.asyncio as redis
import structlog
from redis.exceptions import RedisError

from graph.ids import LATEST, FunctionId, VersionId, version_id
from orchestrator.catalog.routes import KINDS, SEQUENCE_KEY, STREAM_KEY, AliasRoute, KeyRoute, NodeRoute, Route, TenantRoute
from orchestrator.splitting import to_second
from workers.networks import VpcSpec
from workers.versions import VersionSpec

BLOCK_MS = 1000
READ_COUNT = 500
RETRY_S = (0.05, 2.0)

log = structlog.get_logger(__name__)


class RouteTable:
    """What exists, for lookups in constant time. `on_route(function, route | None)` is called after each change,
    `on_gone(version)` for each version that is not invocable any more, `on_tenant(tenant, its route | None)` for tenants,
    `on_node(name, its route | None)` for members, `on_vpc(tenant/name, its spec | None)` for private networks."""

    def __init__(
        self,
        on_route: Callable[[FunctionId, Route | None], None] | None = None,
        on_gone: Callable[[str], None] | None = None,
        on_tenant: Callable[[str, TenantRoute | None], None] | None = None,
        on_node: Callable[[str, NodeRoute | None], None] | None = None,
        on_vpc: Callable[[str, VpcSpec | None], None] | None = None,
    ) -> None:
        self.routes: dict[str, Route] = {}
        self.versions: dict[str, VersionSpec] = {}
        self.keys: dict[str, KeyRoute] = {}
        self.nodes: dict[str, NodeRoute] = {}
        self.tenants: dict[str, TenantRoute] = {}
        self.vpcs: dict[str, VpcSpec] = {}
        self.loaded = asyncio.Event()
        self.generation = 0  # the highest seen
        self.sequence = 0  # of the last change applied
        self.loads = 0
        self.changed_at = self.current_at = time.monotonic()  # last change; last time these were known to be the newest
        self._on_route = on_route
        self._on_gone = on_gone
        self._plain: dict[str, dict[str, Any]] = {
            "key": self.keys,
            "tenant": self.tenants,
            "node": self.nodes,
            "vpc": self.vpcs,
        }
        self._heard: dict[str, Callable[[str, Any], None] | None] = {
            "tenant": on_tenant,
            "node": on_node,
            "vpc": on_vpc,
        }

    def version(self, route: Route, qualifier: str, ticket: str = "") -> VersionSpec | None:
        """The version behind `name:qualifier`: a number, an alias, or nothing ("" is $LATEST). Where an alias means two versions
        the ticket chooses (orchestrator.splitting); without one it is the first."""
        if qualifier.isascii() and qualifier.isdigit():
            return self.versions.get(VersionId(f"{route.function}:{int(qualifier)}"))
        alias = self.alias(route, qualifier)
        if alias is None:
            latest = not qualifier or qualifier == LATEST
            return self.versions.get(version_id(route.function, route.latest)) if latest else None
        chosen = alias.version
        if ticket and alias.second is not None and to_second(alias.share, f"{route.function}:{alias.name}", ticket):
            chosen = alias.second
        return self.versions.get(version_id(route.function, chosen))

    def alias(self, route: Route, qualifier: str) -> AliasRoute | None:
        """None for a number, and for $LATEST while it means one version."""
        if not route.aliases:
            return None
        name = qualifier or LATEST
        return next((one for one in route.aliases if one.name == name), None)

    def put(self, function: str, route: Route | None) -> None:
        old = self.routes.get(function)
        if route is None:
            if old is None:
                return
            del self.routes[function]
        else:
            if old is not None and old.generation > route.generation:
                return
            self.routes[function] = route
            self.generation = max(self.generation, route.generation)
        kept = {spec.version for spec in route.versions} if route is not None else set()
        for spec in old.versions if old is not None else ():
            if spec.version not in kept:
                self.versions.pop(spec.version, None)
                if self._on_gone is not None:
                    self._on_gone(spec.version)
        for spec in route.versions if route is not None else ():
            self.versions[spec.version] = spec
        if self._on_route is not None:
            self._on_route(FunctionId(function), route)

    def change(self, kind: str, name: str, value: Any | None) -> None:
        """One entry of any kind is as `value` says now, None for gone."""
        if kind == "function":
            self.put(name, value)
            return
        held, heard = self._plain[kind], self._heard.get(kind)
        if value is None:
            held.pop(name, None)
        else:
            held[name] = value
        if heard is not None:
            heard(name, value)

    def replace(self, routes: dict[str, Route], keys: dict[str, KeyRoute], **others: dict[str, Any]) -> None:
        """Everything there is, `others` by kind; what is not in it is gone."""
        for kind, found in {**others, "key": keys, "function": routes}.items():
            held: dict[str, Any] = self.routes if kind == "function" else self._plain[kind]
            for name in held.keys() - found.keys():
                self.change(kind, name, None)
            for name, value in found.items():
                if held.get(name) != value:
                    self.change(kind, name, value)
        self.loaded.set()


class RouteWatcher:
    """Fills a RouteTable for as long as `run` runs."""

    def __init__(self, url: str, table: RouteTable) -> None:
        self._url = url
        self._table = table

    async def run(self) -> None:
        """Never returns; reconnects with back-off for ever."""
        delay = RETRY_S[0]
        while True:
            client = redis.from_url(self._url, protocol=2, socket_timeout=BLOCK_MS / 1000 + 5, socket_connect_timeout=5)
            try:
                while True:
                    await self._follow(client)
                    _stop_when_told()
                    delay = RETRY_S[0]
                    await asyncio.sleep(delay)
            except (RedisError, OSError, TimeoutError) as error:
                log.info("routes.disconnected", error=str(error)[:200])
            finally:
                await client.aclose()
            _stop_when_told()
            await asyncio.sleep(delay)
            delay = min(delay * 2, RETRY_S[1])

    async def _follow(self, client: Any) -> None:
        """Loads, then reads changes until a gap."""
        async with client.pipeline(transaction=True) as pipe:
            for kind in KINDS.values():
                pipe.hgetall(kind.key)
            pipe.get(SEQUENCE_KEY)
            pipe.xrevrange(STREAM_KEY, count=1)
            *hashes, sequence, last = await pipe.execute()
        if sequence is None:
            return  # emptied: the catalog's owner rebuilds it, until then the old routes stand
        found = {name: _decoded(values, KINDS[name].decode) for name, values in zip(KINDS, hashes, strict=True)}
        self._table.replace(found.pop("function"), found.pop("key"), **found)
        self._table.sequence, self._table.loads = int(sequence), self._table.loads + 1
        self._table.changed_at = self._table.current_at = time.monotonic()
        position = last[0][0] if last else b"0-0"
        expected = int(sequence) + 1
        while True:
            answer = await client.xread({STREAM_KEY: position}, count=READ_COUNT, block=BLOCK_MS)
            _stop_when_told()
            if not answer:
                current = await client.get(SEQUENCE_KEY)
                if current is None or int(current) != expected - 1:
                    return
                self._table.current_at = time.monotonic()
                continue
            for entry, fields in answer[0][1]:
                position = entry
                if int(fields[b"s"]) != expected:
                    return
                self._table.sequence = expected
                self._table.changed_at = self._table.current_at = time.monotonic()
                expected += 1
                try:
                    self._apply(fields)
                except (KeyError, ValueError, msgspec.MsgspecError) as error:
                    log.error("routes.unreadable", entry=str(entry), error=str(error)[:200])

    def _apply(self, fields: dict[bytes, bytes]) -> None:
        kind, value = fields[b"t"].decode(), fields[b"v"]
        if kind in KINDS:  # one of a later release is for later readers
            self._table.change(kind, fields[b"id"].decode(), KINDS[kind].decode(value) if value else None)


def _stop_when_told() -> None:
    """The Redis client waits under wait_for, which may swallow a cancellation; that it was asked for is still known."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def _decoded(values: dict[bytes, bytes], decode: Callable[[bytes], Any]) -> dict[str, Any]:
    """One entry that cannot be read must not cost all others."""
    found = {}
    for name, value in values.items():
        try:
            found[name.decode()] = decode(value)
        except (ValueError, msgspec.MsgspecError) as error:
            log.error("routes.unreadable", entry=repr(name)[:200], error=str(error)[:200])
    return found
