"""The proxy process, in one event loop: its listener, its operations listener, and what control says."""

import asyncio
import contextlib
import signal
from typing import Any

import structlog
import uvloop
from sqlalchemy.exc import SQLAlchemyError

from orchestrator.catalog.errors import CatalogError
from orchestrator.membership import NotJoined
from orchestrator.ops.listener import Operations
from orchestrator.renewal import keep_certified
from orchestrator.settings import Settings
from orchestrator.vpc_proxy.knowing import Ask, Known, from_control, from_database
from orchestrator.vpc_proxy.metrics import ProxyMetrics, proxy_checks
from orchestrator.vpc_proxy.place import Place, Register
from orchestrator.vpc_proxy.proxy import Proxy

STOP_S = 5.0

log = structlog.get_logger(__name__)


async def serve(settings: Settings, vpc: str = "", listen: str = "", backup: bool = False) -> None:
    """Runs until SIGTERM or SIGINT. Raises NotJoined, OSError, and JoinFailed when control counts it no more."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    place = await asyncio.to_thread(Place, settings, vpc, listen, backup)
    place.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    register = Register(settings, place) if place.own.member is None else None
    proxy = Proxy(place, Known(place.folder / "news.json"))
    operations = Operations(place.called, lambda: proxy.serving, lambda: proxy_checks(proxy), ProxyMetrics(proxy))
    done = keep_certified(place.own)
    tasks: list[asyncio.Task[Any]] = [asyncio.create_task(stop.wait())]
    try:
        await operations.start(settings)
        port = await proxy.start()
        if register is not None:
            await asyncio.to_thread(_enter, register, port)
        tasks.append(asyncio.create_task(proxy.follow(_ask(settings, place, register))))
        log.info("proxy.serving", vpc=place.vpc, port=port, without_kernel=proxy.without_kernel)
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if task.done():
                task.result()
    finally:
        done()
        if register is not None:
            with contextlib.suppress(CatalogError, SQLAlchemyError):  # nodes find by themselves that it does not answer
                await asyncio.to_thread(register.leave)
            register.close()
        await proxy.stop()
        await operations.stop()
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=STOP_S)


def _ask(settings: Settings, place: Place, register: Register | None) -> Ask:
    if register is not None:
        return from_database(register.store.vpcs.news, place.vpc)
    assert place.own.member is not None
    return from_control(settings.state, place.own.member)


def _enter(register: Register, port: int) -> None:
    try:
        register.enter(port)
    except CatalogError as error:
        raise NotJoined(str(error)) from error
    except SQLAlchemyError as error:
        raise NotJoined(f"control's database cannot be used ({type(error).__name__}): start control first") from error


def run(settings: Settings, vpc: str, listen: str, backup: bool) -> None:
    uvloop.run(serve(settings, vpc, listen, backup))
