"""Private networks: what they are is in the database, how the way there stands is asked of the nodes."""

import asyncio
import json
import time
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from orchestrator.catalog.nudge import Nudge
from orchestrator.catalog.store import Store
from orchestrator.catalog.vpcs import VpcSettings, VpcView
from orchestrator.control.functions import tenant_of
from orchestrator.control.peers import Peer, Roster
from orchestrator.control.problems import Problem
from orchestrator.control.schemas.parts import VPC
from orchestrator.control.schemas.vpcs import (
    ProxyAnswer,
    TunnelAnswer,
    VpcAnswer,
    VpcRequest,
    VpcsAnswer,
    VpcSettingsRequest,
    VpcStateAnswer,
)

ASK_S = 2.0

VpcName = Annotated[str, Path(pattern=f"^{VPC}$", description="A private network of this tenant.", examples=["database"])]


def router(store: Store, nudge: Nudge, nodes: Roster) -> APIRouter:
    """The endpoints of private networks."""
    routes = APIRouter(tags=["private networks"])

    @routes.post("/v1/vpcs", status_code=201)
    def create_vpc(wanted: VpcRequest, request: Request, response: Response) -> VpcAnswer:
        """Make a private network. Functions in it wait until a proxy for it has joined."""
        view = store.vpcs.create(tenant_of(request), wanted.name, _settings(wanted), time.time())
        nudge.give()
        response.headers["Location"] = f"/v1/vpcs/{wanted.name}"
        return VpcAnswer(**_shown(view))

    @routes.get("/v1/vpcs")
    def list_vpcs(
        request: Request,
        after: Annotated[str, Query(max_length=63, description="Names behind this one.")] = "",
        limit: Annotated[int, Query(ge=1, le=1000)] = 1000,
    ) -> VpcsAnswer:
        """All private networks of the tenant, by name."""
        found = store.vpcs.list(tenant_of(request), after, limit)
        return VpcsAnswer(vpcs=[VpcAnswer(**_shown(view)) for view in found])

    @routes.get("/v1/vpcs/{name}")
    async def describe_vpc(name: VpcName, request: Request) -> VpcStateAnswer:
        """One private network: its proxies, the functions in it, and each node's tunnel, with its backend and why."""
        tenant = tenant_of(request)
        view = await run_in_threadpool(store.vpcs.describe, tenant, name)
        asked = await nodes.peers()
        answers = await asyncio.gather(*(_tunnel(node, tenant, view.spec.vpc) for node in asked))
        return VpcStateAnswer(
            **_shown(view),
            tunnels=[one for one in answers if one is not None],
            away=[node.name for node, one in zip(asked, answers, strict=True) if one is None],
        )

    @routes.put("/v1/vpcs/{name}")
    def change_vpc(name: VpcName, wanted: VpcSettingsRequest, request: Request) -> VpcAnswer:
        """Change all settings of a private network. Connections that they allow no more end."""
        view = store.vpcs.change(tenant_of(request), name, _settings(wanted), time.time())
        nudge.give()
        return VpcAnswer(**_shown(view))

    @routes.delete("/v1/vpcs/{name}", status_code=204, response_class=Response)
    def remove_vpc(name: VpcName, request: Request) -> None:
        """Remove a private network that no version is in which can still be asked for. Instances of other versions keep it until
        they end."""
        store.vpcs.remove(tenant_of(request), name, time.time())
        nudge.give()

    return routes


def _settings(wanted: VpcSettingsRequest) -> VpcSettings:
    return VpcSettings(wanted.cidrs, wanted.rules, wanted.address, wanted.resolver)


def _shown(view: VpcView) -> dict[str, Any]:
    spec = view.spec
    return {
        "name": view.name,
        "number": spec.number,
        "cidrs": view.cidrs,
        "rules": view.rules,
        "address": view.address,
        "resolver": view.resolver,
        "generation": spec.generation,
        "created": view.created,
        "proxies": [
            ProxyAnswer(name=one.name, address=one.address, role="backup" if place else "primary")
            for place, one in enumerate(spec.proxies)
        ],
        "functions": view.functions,
    }


async def _tunnel(node: Peer, tenant: str, vpc: str) -> TunnelAnswer | None:
    """None: it did not answer."""
    try:
        told = json.loads(await node.ask("tunnels", ASK_S, tenant=tenant))
    except Problem:
        return None
    found = next((one for one in told["tunnels"] if one["vpc"] == vpc), None)
    if found is None:
        why = told["reason"] if told["backend"] == "none" else "the node was told nothing of it (yet), or may not host the tenant"
        return TunnelAnswer(node=told["node"], backend=told["backend"], ready=False, generation=0, reason=why, attached=0)
    reason = found["reason"]
    if told["reason"] and told["backend"] != "kernel":
        reason = f"{reason}; not a better backend: {told['reason']}" if reason else told["reason"]
    return TunnelAnswer(
        node=told["node"],
        backend=found["backend"] or told["backend"],
        ready=found["ready"],
        generation=found["generation"],
        reason=reason,
        attached=found["attached"],
    )
