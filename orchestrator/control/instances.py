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
        """Instances of the tenant's versions by state, per node, and function templates with why there is none where one was
        thought of; `away` names nodes that did not answer."""
        nodes = await roster.peers()
        asked = [node.ask(what, tenant=tenant_of(request)) for node in nodes for what in ("counts", "templates")]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        found: list[Document] = []
        templates: list[Document] = []
        away: dict[str, None] = {}
        for node, counts, held in zip(nodes, answers[::2], answers[1::2], strict=True):
            for answer, row, rows in ((counts, _counted, found), (held, _template, templates)):
                if isinstance(answer, bytes):
                    rows += [row(node.name, one) for one in json.loads(answer)]
                elif isinstance(answer, Problem):
                    away[node.name] = None
                else:
                    raise answer
        return {"instances": found, "templates": templates, "away": list(away)}

    return routes


def _counted(node: str, count: Mapping[str, Any]) -> Document:
    version = VersionId(count["version"])
    states = {state: count[state] for state in STATES}
    return {"function": name_of(function_of(version)), "version": number_of(version), "node": node, **states}


def _template(node: str, one: Mapping[str, Any]) -> Document:
    version = VersionId(one["version"])
    told = {key: one[key] for key in ("standing", "reason", "init_ms", "memory_mb", "clones")}
    return {"function": name_of(function_of(version)), "version": number_of(version), "node": node, **told}
