"""Several flow processes and several gateways on one Redis and one database: each event is handled, nothing twice, all agree."""

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import redis
from doubles.servers import Postgres

from orchestrator.catalog.functions import VersionSettings
from orchestrator.catalog.nudge import Nudge
from orchestrator.catalog.routes import FUNCTIONS_KEY, SEQUENCE_KEY, STREAM_KEY, decode_route
from orchestrator.catalog.store import Store
from orchestrator.catalog.watch import RouteTable, RouteWatcher
from orchestrator.settings import Settings
from workers.code.origin import Origin
from workers.code.package import build_package
from workers.code.requirements import requirements_digest

pytestmark = pytest.mark.system

FLOWS = 2
DEPLOYS = 30
FUNCTIONS = 5
PATIENCE_S = 90.0


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="fg-many-"))
    yield made
    shutil.rmtree(made)


def upload(store: Store, origin: Origin, number: int) -> str:
    import io
    import zipfile

    body, out = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(body, "w") as archive:
        archive.writestr("handler.py", f"def f(event, context):\n    return {number}\n")
    package = build_package(body, out)
    out.seek(0)
    origin.put_package("acme", package.listing, out)
    digest = requirements_digest(package.requirements)
    store.packages.register("acme", package.digest, 1, package.listing.size, package.requirements, digest, time.time())
    return package.digest


def start_flows(folder: Path, redis_url: str, database_url: str) -> list["subprocess.Popen[bytes]"]:
    running = []
    for number in range(FLOWS):
        environment = {
            **os.environ,
            "FOREGLOW_STATE": str(folder / f"flow{number}"),
            "FOREGLOW_REDIS_URL": redis_url,
            "FOREGLOW_DATABASE_URL": database_url,
            "FOREGLOW_ORIGIN_URL": (folder / "origin").as_uri(),
        }
        with (folder / f"flow{number}.log").open("wb") as log:
            command = [sys.executable, "-P", "-m", "orchestrator.cli.main", "flow"]
            running.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
    return running


def ready(folder: Path, number: int) -> bool:
    path = str(Settings(state=folder / f"flow{number}").ops_socket("flow"))
    with contextlib.suppress(httpx.HTTPError, OSError):
        with socket.socket(socket.AF_UNIX) as probe:  # a client of HTTP leaves its own open when nobody listens yet
            probe.connect(path)
        with httpx.Client(transport=httpx.HTTPTransport(uds=path), timeout=10) as client:
            return client.get("http://operations/readyz").status_code == 200
    return False


async def both_follow(url: str, wanted: dict[str, int]) -> list[dict[str, int]]:
    """What two gateways' tables end up with."""
    tables = [RouteTable(), RouteTable()]
    watching = [asyncio.create_task(RouteWatcher(url, table).run()) for table in tables]

    def latest() -> list[dict[str, int]]:
        return [{name: route.latest for name, route in table.routes.items()} for table in tables]

    deadline = time.monotonic() + PATIENCE_S
    while latest() != [wanted, wanted] and time.monotonic() < deadline:  # noqa: ASYNC110 (there is no such event)
        await asyncio.sleep(0.05)
    for task in watching:
        task.cancel()
    await asyncio.gather(*watching, return_exceptions=True)
    return latest()


def test_many_flows_handle_each_event_once_and_gateways_agree(folder: Path, redis_url: str, postgres: Postgres) -> None:
    database_url = postgres.fresh()
    store = Store(database_url)
    store.migrate()
    store.keys.create_tenant("acme", 1)
    client, nudge = redis.Redis.from_url(redis_url), Nudge(redis_url)
    client.flushall()
    origin = Origin((folder / "origin").as_uri())
    flows = start_flows(folder, redis_url, database_url)
    try:
        deadline = time.monotonic() + PATIENCE_S
        while not all(ready(folder, number) for number in range(FLOWS)):  # else one may have done it all by then
            assert time.monotonic() < deadline, "flows do not become ready"
            time.sleep(0.05)
        for number in range(DEPLOYS):
            settings = VersionSettings(upload(store, origin, number), "handler:f", "event", "python3.11", 128, 30.0, 1)
            store.functions.put("acme", f"f{number % FUNCTIONS}", settings, time.time())
            nudge.give()
        wanted = {f"acme/f{number}": DEPLOYS // FUNCTIONS for number in range(FUNCTIONS)}
        assert asyncio.run(both_follow(redis_url, wanted)) == [wanted, wanted]
        deadline = time.monotonic() + PATIENCE_S
        while store.outbox.backlog().open:
            assert time.monotonic() < deadline, "events stay open"
            time.sleep(0.05)
        assert store.outbox.backlog().parked == 0
        _nothing_twice(client, store)
        for process in flows:
            process.send_signal(signal.SIGTERM)
        assert [process.wait(30) for process in flows] == [0] * FLOWS
        logs = [(folder / f"flow{number}.log").read_text() for number in range(FLOWS)]
        assert all("route.published" in log for log in logs), "both took part"
    finally:
        for process in flows:
            process.kill()
            process.wait(10)
        for closing in (client, nudge, store):
            closing.close()


def _nothing_twice(client: redis.Redis, store: Store) -> None:
    """Each generation was told once, in order, and every version is ready."""
    told = [(fields[b"id"], decode_route(fields[b"v"]).generation) for _, fields in client.xrange(STREAM_KEY) if fields[b"v"]]
    assert len(told) == len(set(told))
    for name in {name for name, _ in told}:
        generations = [generation for one, generation in told if one == name]
        assert generations == sorted(generations)
    assert int(client.get(SEQUENCE_KEY) or 0) > 0
    for number in range(FUNCTIONS):
        described = store.functions.describe("acme", f"f{number}")
        assert {version.state for version in described.versions} == {"ready"}
        assert described.latest == DEPLOYS // FUNCTIONS
        route = decode_route(client.hget(FUNCTIONS_KEY, f"acme/f{number}") or b"")
        assert len({spec.package.code for spec in route.versions}) == DEPLOYS // FUNCTIONS
