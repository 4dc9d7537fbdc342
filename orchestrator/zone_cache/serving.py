"""The zone cache process: its disk, the members as the routes say, and its listeners, in one event loop."""

import asyncio
import contextlib
import signal
import socket

import structlog
import uvloop

from orchestrator.catalog.routes import TenantRoute
from orchestrator.catalog.watch import RouteTable, RouteWatcher
from orchestrator.members import LOCAL
from orchestrator.membership import Self
from orchestrator.ops.listener import Operations
from orchestrator.renewal import keep_certified
from orchestrator.settings import Settings
from orchestrator.zone_cache.admission import judge
from orchestrator.zone_cache.app import ZoneApp
from orchestrator.zone_cache.disk import ZoneDisk
from orchestrator.zone_cache.holding import Holding
from orchestrator.zone_cache.listener import MemberListener
from orchestrator.zone_cache.metrics import ZoneMetrics, zone_checks
from orchestrator.zones import CACHE_ROLE
from workers.code.origin import Origin

STOP_S = 2.0

log = structlog.get_logger(__name__)


async def serve(settings: Settings) -> None:
    """Runs until SIGTERM or SIGINT. Raises NotJoined, OSError, OriginError."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    own = Self(settings, CACHE_ROLE, f"{CACHE_ROLE}{LOCAL}{socket.gethostname()}")
    origin = Origin(settings.effective_origin_url)
    disk = await asyncio.to_thread(ZoneDisk, settings.zone_cache_folder, settings.zone_cache_bytes)
    holding = Holding(disk, origin)
    forgetting: set[asyncio.Task[None]] = set()

    def on_tenant(name: str, route: TenantRoute | None) -> None:
        """A removed tenant stays in the routes, so that a cache that was away forgets it too."""
        if route is not None and route.removed and name not in holding.removed:
            task = asyncio.get_running_loop().create_task(holding.forget(name))
            forgetting.add(task)
            task.add_done_callback(forgetting.discard)

    table = RouteTable(on_tenant=on_tenant)
    watching = asyncio.create_task(RouteWatcher(settings.effective_redis_url, table).run())
    listener = MemberListener(ZoneApp(holding, judge(table.nodes), table.loaded.is_set).app)
    operations = Operations(CACHE_ROLE, lambda: listener.serving, lambda: zone_checks(table), ZoneMetrics(holding))
    stopping = asyncio.create_task(stop.wait())
    done = keep_certified(own)
    try:
        await operations.start(settings)
        await listener.start(own.listens(settings.socket(CACHE_ROLE)), own.identity)
        log.info("zone.serving", zone=settings.zone, objects=len(disk), bytes=disk.bytes_held)
        await asyncio.wait({watching, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if watching.done():
            watching.result()
    finally:
        done()
        await listener.close()
        await operations.stop()
        for task in (watching, stopping, *forgetting):
            task.cancel()
        await asyncio.wait({watching, stopping, *forgetting}, timeout=STOP_S)
        holding.close()
        with contextlib.suppress(FileNotFoundError):
            settings.socket(CACHE_ROLE).unlink()


def run(settings: Settings) -> None:
    uvloop.run(serve(settings))
