"""What nodes hold of one tenant, as they say themselves."""

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request

from graph.ids import VersionId, function_of, name_of, number_of
from orchestrator.control.answers import InstancesAnswer
from orchestrator.control.functions import tenant_of
from orchestrator.control.peers import Roster
from orchestrator.control.problems import Problem
from orchestrator.control.schemas import Document

STATES = ("idle", "busy", "preparing")


def router(roster: Roster) -> APIRouter:
    routes = APIRouter(tags=["insight"])

    @routes.get("/v1/instances", response_model=InstancesAnswer)
    async def instances(request: Request) -> Document:
        """Instances of the tenant's versions by state, per node; `away` names nodes that did not answer."""
        nodes = await roster.peers()
        asked = [node.ask("counts", tenant=tenant_of(request)) for node in nodes]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        found: list[Document] = []
        away: list[str] = []
        for node, answer in zip(nodes, answers, strict=True):
            if isinstance(answer, bytes):
                found += [_counted(node.name, count) for count in json.loads(answer)]
            elif isinstance(answer, Problem):
                away.append(node.name)
            else:
                raise answer
        return {"instances": found, "away": away}

    return routes


def _counted(node: str, count: Mapping[str, Any]) -> Document:
    version = VersionId(count["version"])
    states = {state: count[state] for state in STATES}
    return {"function": name_of(function_of(version)), "version": number_of(version), "node": node, **states}
