"""The gateway process: links to nodes, routes, reports to planners, and the HTTP listener, in one event loop."""

import asyncio
import contextlib
import secrets
import socket
from functools import partial

import structlog
import uvicorn
import uvloop

from orchestrator.catalog.routes import NodeRoute
from orchestrator.catalog.watch import RouteTable, RouteWatcher
from orchestrator.gateway.allowances import Allowances
from orchestrator.gateway.app import GatewayApp
from orchestrator.gateway.demand import telling
from orchestrator.gateway.links import NodeLink
from orchestrator.gateway.metrics import GatewayMetrics, gateway_checks
from orchestrator.gateway.presence import Presence
from orchestrator.gateway.reports import Reports
from orchestrator.gateway.runs import Runs
from orchestrator.gateway.waiting import WaitingRoom
from orchestrator.heads import BoundedHttp
from orchestrator.members import LOCAL, Members, admit
from orchestrator.membership import Self
from orchestrator.ops.listener import Operations
from orchestrator.ops.routes import RouteMetrics
from orchestrator.renewal import keep_certified
from orchestrator.settings import Settings, rpc_secret
from workers.rpc.connection import Listening, listen
from workers.rpc.messages import Hello
from workers.rpc.transport import Address, Peer
from workers.sealing import load_key

DRAIN_S = 10
MAX_CONNECTIONS = 5000
STOP_S = 2.0

log = structlog.get_logger(__name__)


async def serve(settings: Settings) -> None:
    """Runs until SIGTERM."""
    secret = rpc_secret(load_key(settings.key_file))
    own = Self(settings, "gateway", f"gateway{LOCAL}{socket.gethostname()}")
    name = own.name
    reports = Reports()

    def member_changed(name: str, route: NodeRoute | None) -> None:
        members.on_node(name, route)
        if route is None:
            reports.on_member_gone(name)

    table = RouteTable(on_node=member_changed)
    allowances = Allowances(table, settings.quotas)
    runs = Runs(
        table,
        reports,
        WaitingRoom(settings.max_waiting, settings.max_wait_s),
        allowances,
        settings.max_depth,
        settings.max_payload_bytes,
    )
    hello = Hello("gateway", name, secret)

    def link_to(address: Address, expected: Peer, epoch: int) -> NodeLink:
        return NodeLink(address, hello, runs.on_call, runs.on_cancel_call, own.identity, expected, epoch)

    told = Listening(name, "gateway", admits=admit(("planner", "control"), table.nodes))
    servers = [await listen(at, reports, secret, told, None, own.identity) for at in own.listens(settings.socket("gateway"))]
    http = uvicorn.Server(
        uvicorn.Config(
            GatewayApp(table, runs, allowances, settings.max_payload_bytes),
            host=settings.host,
            port=settings.functions_port,
            lifespan="off",
            access_log=False,
            log_level="warning",
            server_header=False,
            proxy_headers=False,  # nobody in front is trusted to say who the client is
            date_header=False,
            ws="none",
            http=BoundedHttp,
            limit_concurrency=MAX_CONNECTIONS,
            timeout_graceful_shutdown=DRAIN_S,
        )
    )
    died = partial(_died, http)
    members: Members[NodeLink] = Members("node", link_to, runs.set_links, died)
    members.start(link_to(at, Peer("node", ""), 0) for at in settings.node_addresses)
    background = [
        asyncio.create_task(RouteWatcher(settings.effective_redis_url, table).run()),
        asyncio.create_task(Presence(settings.effective_redis_url, f"{name}-{secrets.token_hex(4)}", allowances).run()),
        asyncio.create_task(telling(runs.demand, reports)),
    ]
    for task in background:
        task.add_done_callback(died)
    runs.tally.functions = settings.metrics_functions
    operations = Operations(
        "gateway",
        lambda: http.started,
        lambda: gateway_checks(table, runs, reports),
        GatewayMetrics(runs, reports),
        RouteMetrics(table),
    )
    done = keep_certified(own)
    try:
        await operations.start(settings)
        await http.serve()
    finally:
        done()
        reports.flush()
        await operations.stop()
        for server in servers:
            server.close()
        for task in background:
            task.cancel()
        await asyncio.wait(background, timeout=STOP_S)  # a client library may swallow the first cancellation
        await members.stop()
        with contextlib.suppress(FileNotFoundError):
            settings.socket("gateway").unlink()


def _died(http: uvicorn.Server, task: "asyncio.Task[None]") -> None:
    """A gateway whose routes or links stand still must not look alive: it ends, and its supervisor starts it again."""
    if not task.cancelled():
        log.critical("gateway.task_died", error=repr(task.exception()))
        http.should_exit = True


def run(settings: Settings) -> None:
    uvloop.run(serve(settings))
