"""What nodes hold of one tenant, as they say themselves."""

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request

from graph.ids import FunctionId, VersionId, function_of, name_of, number_of
from orchestrator.control.functions import tenant_of
from orchestrator.control.peers import Roster
from orchestrator.control.problems import Problem
from orchestrator.control.schemas.instances import CodeAnswer, InstancesAnswer
from orchestrator.control.schemas.platform import Document

STATES = ("idle", "busy", "preparing")


def router(roster: Roster) -> APIRouter:
    routes = APIRouter(tags=["insight"])

    @routes.get("/v1/instances", response_model=InstancesAnswer)
    async def instances(request: Request) -> Document:
        """Instances of the tenant's versions by state, per node, and function templates with why there is none where one was
        thought of; `away` names nodes that did not answer."""
        tenant = tenant_of(request)
        (answers, away), (held, silent) = await asyncio.gather(
            _ask_all(roster, "counts", tenant), _ask_all(roster, "templates", tenant)
        )
        return {
            "instances": [_counted(node, one) for node, answer in answers for one in answer],
            "templates": [_template(node, one) for node, answer in held for one in answer],
            "away": sorted({*away, *silent}),
        }

    @routes.get("/v1/code", response_model=CodeAnswer)
    async def code(request: Request) -> Document:
        """Where the code of the tenant's functions came from when they started, per node."""
        answers, away = await _ask_all(roster, "code", tenant_of(request))
        found = [
            {"function": name_of(FunctionId(name)), "node": node, **one}
            for node, answer in answers
            for name, one in answer.items()
        ]
        return {"functions": found, "away": away}

    return routes


async def _ask_all(roster: Roster, what: str, tenant: str) -> tuple[list[tuple[str, Any]], list[str]]:
    """Each node's name and answer, and the names of those that are away."""
    nodes = await roster.peers()
    answers = await asyncio.gather(*(node.ask(what, tenant=tenant) for node in nodes), return_exceptions=True)
    found: list[tuple[str, Any]] = []
    away: list[str] = []
    for node, answer in zip(nodes, answers, strict=True):
        if isinstance(answer, bytes):
            found.append((node.name, json.loads(answer)))
        elif isinstance(answer, Problem):
            away.append(node.name)
        else:
            raise answer
    return found, away


def _counted(node: str, count: Mapping[str, Any]) -> Document:
    version = VersionId(count["version"])
    states = {state: count[state] for state in STATES}
    kept = {"keep_s": count.get("keep_s")}  # a node of an earlier release does not say
    return {"function": name_of(function_of(version)), "version": number_of(version), "node": node, **states, **kept}


def _template(node: str, one: Mapping[str, Any]) -> Document:
    version = VersionId(one["version"])
    told = {key: one[key] for key in ("standing", "reason", "init_ms", "memory_mb", "clones")}
    return {"function": name_of(function_of(version)), "version": number_of(version), "node": node, **told}
