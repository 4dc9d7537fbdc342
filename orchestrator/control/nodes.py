"""The members of the cluster, and the tokens by which processes join. For operators."""

import time
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Response

from orchestrator.authority import Authority
from orchestrator.catalog.model import NodeState
from orchestrator.catalog.nudge import Nudge
from orchestrator.catalog.store import Store
from orchestrator.control.guard import operator_only
from orchestrator.control.schemas.nodes import JoinTokenAnswer, JoinTokenRequest, NodeAnswer, NodesAnswer, NodeTenantsRequest
from orchestrator.control.schemas.platform import ProblemAnswer
from orchestrator.joining import write_token

NodeName = Annotated[str, Path(max_length=63, description="A member's name.", examples=["node-a"])]
REFUSED: dict[int | str, dict[str, object]] = {403: {"model": ProblemAnswer, "description": "Only for an operator's key."}}


def router(store: Store, authority: Authority, nudge: Nudge) -> APIRouter:
    """The endpoints of nodes and join tokens."""

    routes = APIRouter(tags=["nodes"], dependencies=[Depends(operator_only)], responses=REFUSED)

    @routes.post("/v1/join-tokens", status_code=201)
    def make_token(wanted: JoinTokenRequest) -> JoinTokenAnswer:
        """A token that lets one process join, once. It is shown here and nowhere else."""
        now = time.time()
        secret = store.nodes.make_token(wanted.role, wanted.ttl_s, now, wanted.vpc)
        return JoinTokenAnswer(token=write_token(secret, authority.digest), role=wanted.role, expires=now + wanted.ttl_s)

    @routes.get("/v1/nodes")
    def nodes() -> NodesAnswer:
        """Every member, by name, also those that left."""
        return NodesAnswer(
            nodes=[
                NodeAnswer(
                    name=one.name,
                    role=one.role,
                    address=one.address,
                    zone=one.zone,
                    state=one.state,
                    epoch=one.epoch,
                    joined=one.joined,
                    last_seen=one.last_seen,
                    tenants=list(one.tenants),
                    vpc=one.vpc,
                    silent_since=(one.last_seen or one.joined) if one.state == NodeState.SILENT else None,
                )
                for one in store.nodes.list()
            ]
        )

    @routes.delete("/v1/nodes/{name}", status_code=204, response_class=Response)
    def remove(name: NodeName) -> None:
        """The member's certificate does not count any more; its name may join again with a new token."""
        store.nodes.remove(name, time.time())
        nudge.give()

    @routes.put("/v1/nodes/{name}/tenants", status_code=204, response_class=Response)
    def allow(name: NodeName, wanted: NodeTenantsRequest) -> None:
        """Binds a node to tenants: no other's instance is placed on it, and zone caches refuse it other's code."""
        store.nodes.allow(name, wanted.tenants, time.time())
        nudge.give()

    return routes
