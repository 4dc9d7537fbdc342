"""A gateway in front of nodes that run over the driver double: everything of it but the HTTP server and Redis."""

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import httpx
from doubles.loop import until
from doubles.nodes import SECRET, Rig

from graph.ids import FunctionId
from orchestrator.catalog.routes import KeyRoute, Route, TenantRoute
from orchestrator.catalog.watch import RouteTable
from orchestrator.gateway.allowances import Allowances
from orchestrator.gateway.app import GatewayApp
from orchestrator.gateway.links import NodeLink
from orchestrator.gateway.reports import Reports
from orchestrator.gateway.runs import Runs
from orchestrator.gateway.waiting import WaitingRoom
from orchestrator.quotas import OwnQuotas, Quotas
from workers.rpc.messages import Hello
from workers.versions import VersionSpec

TOKEN, OTHER_TOKEN = "a-token-of-acme", "a-token-of-other"


def digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


KEYS = {digest(TOKEN): KeyRoute("k1", "acme"), digest(OTHER_TOKEN): KeyRoute("k2", "other")}


def route(*versions: VersionSpec, generation: int = 1, calls: Sequence[str] = ()) -> Route:
    """The route of one function; its versions are given oldest first."""
    function, _, number = versions[-1].version.rpartition(":")
    return Route(FunctionId(function), generation, int(number), versions, tuple(calls))


class Gate:
    def __init__(self, table: RouteTable, runs: Runs, reports: Reports, allowances: Allowances, app: GatewayApp) -> None:
        self.table, self.runs, self.reports, self.allowances, self.app = table, runs, reports, allowances, app
        transport = httpx.ASGITransport(app=app)  # type: ignore[arg-type]
        self.client = httpx.AsyncClient(
            transport=transport, base_url="http://gateway", headers={"authorization": f"Bearer {TOKEN}"}
        )

    def serve(self, *specs: VersionSpec) -> None:
        for one in specs:
            self.table.put(one.version.rpartition(":")[0], route(one))

    def allow(self, tenant: str, **quotas: float) -> None:
        self.table.change("tenant", tenant, TenantRoute(tenant, 1, OwnQuotas(**quotas)))  # type: ignore[arg-type]

    async def post(self, name: str, content: bytes = b"", **headers: str) -> httpx.Response:
        return await self.client.post(f"/function/{name}", content=content, headers=headers)


@contextlib.asynccontextmanager
async def running_gateway(
    *nodes: Rig | Path,
    max_waiting: int = 100,
    max_wait_s: float = 60.0,
    max_depth: int = 16,
    max_payload: int = 6 << 20,
) -> AsyncIterator[Gate]:
    """A gateway with keys and no routes yet, linked to `nodes` (rigs, or sockets where nobody may listen yet)."""
    table, reports = RouteTable(), Reports()
    table.replace({}, dict(KEYS))
    allowances = Allowances(table, Quotas())
    runs = Runs(table, reports, WaitingRoom(max_waiting, max_wait_s), allowances, max_depth, max_payload)
    hello = Hello("gateway", "gw", SECRET)
    paths = [one if isinstance(one, Path) else one.path for one in nodes]
    runs.set_links([NodeLink(path, hello, runs.on_call, runs.on_cancel_call) for path in paths])
    linking = [asyncio.create_task(link.run()) for link in runs.links]
    gate = Gate(table, runs, reports, allowances, GatewayApp(table, runs, allowances, max_payload))
    try:
        await until(lambda: all(link.up for link, node in zip(runs.links, nodes, strict=True) if isinstance(node, Rig)))
        yield gate
    finally:
        await gate.client.aclose()
        for task in linking:
            task.cancel()
        await asyncio.gather(*linking, return_exceptions=True)
    await until(lambda: len(runs) == 0, "every run has ended")
