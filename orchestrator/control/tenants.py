"""Tenants and their quotas. Making, changing and removing them is for operators; everybody sees their own."""

import json
import time
from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from orchestrator.catalog.errors import Conflict
from orchestrator.catalog.gateways import Gateways
from orchestrator.catalog.nudge import Nudge
from orchestrator.catalog.store import Store
from orchestrator.catalog.tenants import TenantView
from orchestrator.control.functions import tenant_of
from orchestrator.control.guard import operator_only
from orchestrator.control.peers import Peer, Planner, Roster
from orchestrator.control.problems import Problem
from orchestrator.control.schemas.parts import TENANT
from orchestrator.control.schemas.tenants import (
    OwnQuotasAnswer,
    OwnTenantAnswer,
    QuotasAnswer,
    QuotasRequest,
    TenantAnswer,
    TenantRequest,
    TenantsAnswer,
    UseNowAnswer,
)
from orchestrator.quotas import OwnQuotas
from workers.code.origin import Origin, OriginError

ASK_S = 1.0

TenantName = Annotated[str, Path(pattern=f"^{TENANT}", description="Name of a tenant.", examples=["acme"])]


def router(store: Store, origin: Origin, nudge: Nudge, gateways: Gateways, planner: Planner, nodes: Roster) -> APIRouter:
    routes = APIRouter(tags=["tenants"])
    operators = [Depends(operator_only)]

    @routes.post("/v1/tenants", status_code=201, dependencies=operators)
    async def create_tenant(wanted: TenantRequest, response: Response) -> TenantAnswer:
        """Make a tenant. It has no key yet: POST /v1/keys?tenant=NAME makes one."""
        await _check_isolation(await nodes.peers())
        view = await run_in_threadpool(store.tenants.create, wanted.name, _own(wanted.quotas), time.time())
        await run_in_threadpool(nudge.give)
        response.headers["Location"] = f"/v1/tenants/{wanted.name}"
        return TenantAnswer.model_validate(view)

    @routes.get("/v1/tenants", dependencies=operators)
    def list_tenants(
        after: Annotated[str, Query(max_length=63, description="Names behind this one.")] = "",
        limit: Annotated[int, Query(ge=1, le=1000)] = 1000,
    ) -> TenantsAnswer:
        """All tenants, by name."""
        return TenantsAnswer(tenants=[TenantAnswer.model_validate(view) for view in store.tenants.list(after, limit)])

    @routes.get("/v1/tenant")
    async def own_tenant(request: Request) -> OwnTenantAnswer:
        """The tenant of the key: its quotas, and how much of each is in use now."""
        tenant = tenant_of(request)
        view = await run_in_threadpool(store.tenants.describe, tenant)
        in_flight = await run_in_threadpool(gateways.in_flight)
        return OwnTenantAnswer(
            name=view.name,
            created=view.created,
            quotas=QuotasAnswer.model_validate(view.quotas),
            own=OwnQuotasAnswer.model_validate(view.own),
            use=_use_now(view, None if in_flight is None else in_flight[tenant], await _prewarmed(planner, tenant)),
            role=request.state.role,
        )

    @routes.put("/v1/tenants/{name}/quotas", dependencies=operators)
    def set_quotas(name: TenantName, wanted: QuotasRequest) -> TenantAnswer:
        """Set all quotas of a tenant. One below what is in use stops only what is new."""
        view = store.tenants.set_quotas(name, _own(wanted), time.time())
        nudge.give()
        return TenantAnswer.model_validate(view)

    @routes.delete("/v1/tenants/{name}", status_code=204, dependencies=operators, response_class=Response)
    def remove_tenant(
        name: TenantName, functions: Annotated[bool, Query(description="Its functions go with it.")] = False
    ) -> None:
        """Remove a tenant: its keys die at once, its instances and code go, what was learned of it is forgotten. The name is
        never given again."""
        store.tenants.remove(name, functions, time.time())
        nudge.give()
        try:
            origin.forget_tenant(name)
        except OriginError as error:
            raise Problem(503, f"the tenant is removed, but not yet its code: {error}; remove it again") from error

    return routes


async def _check_isolation(nodes: Sequence[Peer]) -> None:
    """Where nodes cannot tell tenants apart there is one. A node that is away decides when it is asked to run something."""
    for node in nodes:
        try:
            report = json.loads(await node.ask("isolation", ASK_S))
        except Problem:
            continue
        if report.get("tier") == "none":
            raise Conflict(
                f"{node.name} runs functions without isolation, so it serves one tenant only; "
                "start it without --allow-no-isolation where sandboxes are possible (root, or user namespaces)"
            )


async def _prewarmed(planner: Planner, tenant: str) -> int | None:
    try:
        return int(json.loads(await planner.ask("prewarm", ASK_S, tenant=tenant))["open"])
    except Problem:
        return None


def _use_now(view: TenantView, in_flight: int | None, prewarmed: int | None) -> UseNowAnswer:
    use = view.use
    return UseNowAnswer(
        functions=use.functions,
        package_bytes=use.package_bytes,
        keys=use.keys,
        vpcs=use.vpcs,
        concurrency=in_flight,
        prewarm_instances=prewarmed,
    )


def _own(wanted: QuotasRequest) -> OwnQuotas:
    return OwnQuotas(**wanted.model_dump())
