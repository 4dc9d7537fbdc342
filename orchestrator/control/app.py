"""The control process: the API and what it stands on, put together."""

import asyncio
import contextlib
import ipaddress
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Any

import redis
import structlog
import uvicorn
from fastapi import Depends, FastAPI
from fastapi.openapi.utils import get_openapi

import orchestrator
from orchestrator.authority import Authority
from orchestrator.catalog.gateways import Gateways
from orchestrator.catalog.nudge import Nudge
from orchestrator.catalog.publish import Publisher
from orchestrator.catalog.store import Store
from orchestrator.catalog.vpcs import NodeOfVpc
from orchestrator.control import (
    events,
    functions,
    importing,
    insight,
    instances,
    keys,
    metrics,
    nodes,
    page,
    releases,
    status,
    tenants,
    vpcs,
)
from orchestrator.control.admin import ensure_admin_key
from orchestrator.control.document_links import add_links
from orchestrator.control.forward import MAX_FROM_BROWSER, PREFIX, Forward
from orchestrator.control.guard import OPEN_PATHS, Guard
from orchestrator.control.joining import JoinListener
from orchestrator.control.peers import Peer, Planner, Roster
from orchestrator.control.problems import MEDIA_TYPE, add_handlers, given_once
from orchestrator.control.schemas.platform import ProblemAnswer
from orchestrator.control.sessions import Sessions
from orchestrator.control.stream import DecisionStream
from orchestrator.control.telling import Telling
from orchestrator.members import LOCAL
from orchestrator.membership import Self
from orchestrator.ops.listener import Operations
from orchestrator.ops.machine import gather
from orchestrator.renewal import keep_certified
from orchestrator.settings import Settings, rpc_secret
from orchestrator.vpcs import PROXY_ROLE
from workers.code.origin import Origin
from workers.networks import BESIDE_CONTROL, own_address
from workers.rpc.messages import Hello
from workers.rpc.transport import Address
from workers.rpc.transport import Peer as Whom
from workers.sealing import Sealer, load_key

GRACE_S = 5
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ProblemAnswer, "description": text}
    for status, text in (
        (400, "The request breaks a rule; `field` names where."),
        (401, "No key, or not a live one."),
        (403, "The key's role does not allow it."),
        (404, "It does not exist, or is another tenant's."),
        (409, "What exists stands against it; the detail says what to do first."),
        (413, "The body is too large."),
        (421, "The Host header is not one of ours."),
        (429, "A quota of the tenant is used up, or too many ask at once."),
        (503, "What answers this is away."),
    )
}

log = structlog.get_logger(__name__)


class Stopping:
    """Set by a signal: a plain flag, because a lock could be held by the very code that the signal interrupts."""

    asked = False


def build(settings: Settings) -> FastAPI:  # noqa: PLR0915 (one list of what there is)
    """The application: migrates the database, makes the first key, publishes the routes, then serves.

    Raises OSError, sqlalchemy's errors and OriginError when it cannot be put together.
    """
    settings.state.mkdir(mode=0o700, parents=True, exist_ok=True)
    key = load_key(settings.key_file)
    store = Store(settings.effective_database_url, settings.quotas)
    store.migrate()
    ensure_admin_key(store.keys, settings.admin_key_file, time.time())
    publisher = Publisher(settings.effective_redis_url)
    nudge = Nudge(settings.effective_redis_url)
    gateways = Gateways(settings.effective_redis_url)
    origin = Origin(settings.effective_origin_url)
    own = Self(settings, "control", f"control{LOCAL}{socket.gethostname()}")
    authority = Authority(settings.state / "authority")
    hello = Hello("control", own.name, rpc_secret(key))

    def peer(name: str, address: Address, whom: Whom) -> Peer:
        return Peer(name, address, hello, own.identity, whom)

    planner = Planner(store.leases, store.nodes, settings.planner_shards, settings.socket("planner"), peer)
    local = [peer(_node_name(index), at, Whom("node", "")) for index, at in enumerate(settings.node_addresses)]
    roster = Roster(local, store.nodes, peer)
    told = partial(_told, settings, key)
    joining = JoinListener(
        store.nodes,
        store.vpcs,
        authority,
        own.identity,
        told,
        nudge.give,
        settings.certificate_days,
        _beside(settings),
    )
    stopping = Stopping()
    counts: Counter[int] = Counter()
    sessions = Sessions()
    forward = Forward(settings.socket("page"))

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        # in a thread: Redis may be away, and everything but invocations works without it
        threading.Thread(target=_publish_all, args=(publisher, store, nudge), name="publish", daemon=True).start()
        ended = threading.Event()
        threading.Thread(target=keys.keep_use_until, args=(ended, store, gateways), name="keys", daemon=True).start()
        listener = await joining.start(settings.join_host or settings.host, settings.join_port) if settings.join_port else None
        done = keep_certified(own)
        telling = asyncio.create_task(Telling(roster).run())
        yield
        done()
        telling.cancel()
        stopping.asked = True
        ended.set()
        if listener is not None:
            listener.close()
        planner.close()
        roster.close()
        await forward.close()
        for closing in (publisher, nudge, gateways, store):
            closing.close()

    app = FastAPI(
        title="Foreglow",
        version=orchestrator.__version__,
        description="Deploy functions, see what was learned of their calls, and why each prewarm was made.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # a path is right or it is not: a redirect hides which
        responses=ERRORS,
        dependencies=[Depends(given_once)],
    )
    app.state.stopping = stopping
    app.state.checks = partial(metrics.control_checks, store, publisher)
    app.state.metrics = metrics.ControlMetrics(store, publisher, counts)
    add_handlers(app)
    app.include_router(functions.router(store, origin, Sealer(key), nudge))
    app.include_router(releases.router(store, nudge))
    app.include_router(events.router(store, nudge))
    app.include_router(nodes.router(store, authority, nudge))
    app.include_router(vpcs.router(store, nudge, roster))
    app.include_router(tenants.router(store, origin, nudge, gateways, planner, roster))
    app.include_router(keys.router(store, nudge, gateways))
    app.include_router(insight.router(store, planner, roster, DecisionStream(planner, lambda: stopping.asked)))
    app.include_router(instances.router(roster))
    app.include_router(importing.router(planner))
    app.include_router(status.router(store, publisher, planner, roster))
    app.include_router(metrics.router(partial(gather, settings)))
    app.include_router(page.router(sessions))
    app.mount(PREFIX, forward)
    app.add_middleware(Guard, keys=store.keys, sessions=sessions, names=[settings.host], any_address=not _loopback(settings.host))
    app.add_middleware(metrics.Requests, counts=counts)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


class ControlServer(uvicorn.Server):
    """`run([socket])` serves until a signal or `should_exit`. Open streams end when a signal comes: nobody waits for them."""

    def __init__(self, config: uvicorn.Config, settings: Settings) -> None:
        super().__init__(config)
        state = config.app.state  # type: ignore[union-attr]
        self._settings = settings
        self._operations = Operations("control", lambda: self.started, state.checks, state.metrics, blocking=True)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await self._operations.start(self._settings)
        await super().startup(sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await self._operations.stop()
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Without uvicorn's second half, which raises the signal again at the end: a process that was told to stop ends well."""
        main = threading.current_thread() is threading.main_thread()
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGTERM, signal.SIGINT) if main}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: Any) -> None:
        self.config.app.state.stopping.asked = True  # type: ignore[union-attr]
        super().handle_exit(sig, frame)


def server(settings: Settings) -> ControlServer:
    """The server, put together and not yet listening. Raises as `build` does."""
    app = build(settings)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.control_port,
        access_log=False,
        log_config=None,
        log_level="warning",  # at info each websocket is logged with its query
        server_header=False,
        proxy_headers=False,  # nobody in front is trusted to say who the client is
        timeout_graceful_shutdown=GRACE_S,
        limit_concurrency=500,
        http="h11",  # bounds a request's head, which the faster one does not
        h11_max_incomplete_event_size=64 << 10,
        ws="websockets-sansio",
        ws_max_size=MAX_FROM_BROWSER,
        ws_per_message_deflate=False,
    )
    return ControlServer(config, settings)


def run(settings: Settings, listener: socket.socket | None = None) -> None:
    """Serves on settings.host and control_port, or on a bound socket, until SIGTERM or SIGINT."""
    server(settings).run([listener] if listener is not None else None)


def _publish_all(publisher: Publisher, store: Store, nudge: Nudge) -> None:
    """Only when Redis lost the routes; flow looks after it from then on."""
    try:
        if publisher.lost(store):
            publisher.rebuild(store)
        nudge.give()
    except redis.RedisError as error:
        log.info("routes.not_published", reason=str(error)[:200])


def _told(settings: Settings, key: bytes, role: str) -> dict[str, str]:
    """What a new member needs beside its certificate. An address that only this host can reach is left out: the member is given
    its own by FOREGLOW_REDIS_URL, FOREGLOW_ORIGIN_URL or FOREGLOW_DATABASE_URL."""
    if role == PROXY_ROLE:
        return {}  # it opens nothing sealed, and asks here for what it must know
    told = {"key": key.decode(), "origin_url": settings.effective_origin_url}
    if role != "node":
        told["redis_url"] = settings.redis_url
    if role in ("planner", "flow") and not settings.effective_database_url.startswith("sqlite"):
        told["database_url"] = settings.database_url
    return told


def _beside(settings: Settings) -> list[NodeOfVpc]:
    """The node of this host, where proxies of other hosts send what their tunnels carry for it."""
    if settings.socket("node") not in settings.node_addresses:
        return []
    address = settings.underlay or own_address()
    return [NodeOfVpc(f"node{LOCAL}{socket.gethostname()}", f"{address}:0", BESIDE_CONTROL, "", "")]


def _node_name(index: int) -> str:
    return f"node-{index + 1}" if index else "node"


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _openapi(app: FastAPI) -> dict[str, Any]:
    """FastAPI's document with our errors: problems instead of its 422, and the key where one is needed."""
    if app.openapi_schema:
        return app.openapi_schema
    schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    components = schema["components"]
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for path, operations in schema["paths"].items():
        for operation in operations.values():
            operation["responses"].pop("422", None)
            if path not in OPEN_PATHS:
                operation["security"] = [{"key": []}]
            for code, response in operation["responses"].items():
                if int(code) >= 400:
                    response["content"] = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemAnswer"}}}
    for unused in ("HTTPValidationError", "ValidationError"):
        components["schemas"].pop(unused, None)
    add_links(schema)
    app.openapi_schema = schema
    return schema
