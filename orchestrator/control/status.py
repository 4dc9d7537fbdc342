"""Is it alive, is it ready, and what runs."""

import asyncio
import json
from typing import Any

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool

import orchestrator
from orchestrator.catalog.model import NodeState
from orchestrator.catalog.publish import Publisher
from orchestrator.catalog.store import Store
from orchestrator.control.peers import Peer, Planner, Roster
from orchestrator.control.problems import Problem
from orchestrator.control.schemas.platform import HealthAnswer, StatusAnswer
from orchestrator.zones import CACHE_ROLE, DEFAULT_ZONE

STATE_TIMEOUT_S = 2.0


def router(store: Store, publisher: Publisher, planner: Planner, nodes: Roster) -> APIRouter:
    routes = APIRouter(tags=["status"])

    @routes.get("/healthz")
    async def healthz() -> HealthAnswer:
        """The process is alive. Needs no key."""
        return HealthAnswer(status="ok")

    @routes.get("/readyz")
    def readyz() -> HealthAnswer:
        """The database answers. Needs no key."""
        if not store.database.reachable():
            raise Problem(503, "the database is not reachable")
        return HealthAnswer(status="ok")

    @routes.get("/v1/status", response_model=StatusAnswer)
    async def status() -> dict[str, Any]:
        """What runs, what is away, what isolation is in force, what the control flow still has to do."""
        peers: list[Peer | Planner] = [planner, *await nodes.peers()]
        states, redis, backlog, members = await asyncio.gather(
            asyncio.gather(*(_state(peer) for peer in peers)),
            run_in_threadpool(publisher.ping),
            run_in_threadpool(store.outbox.backlog),
            run_in_threadpool(store.nodes.list),
        )
        return {
            "version": orchestrator.__version__,
            "redis": "ok" if redis else "away",
            "events": {"open": backlog.open, "parked": backlog.parked},
            "zone_caches": [
                {"name": one.name, "zone": one.zone or DEFAULT_ZONE, "state": one.state}
                for one in members
                if one.role == CACHE_ROLE and one.state != NodeState.LEFT
            ],
            **{peer.name: state for peer, state in zip(peers, states, strict=True)},
        }

    return routes


async def _state(peer: Peer | Planner) -> object:
    try:
        return json.loads(await peer.ask("state", STATE_TIMEOUT_S))
    except Problem:
        return "away"
