"""What planner and nodes know: asked over RPC and handed through. Nothing here touches the database but to check a name."""

import asyncio
import json
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Path, Query, Request, Response
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from orchestrator.catalog.store import Store
from orchestrator.control.functions import Name, tenant_of
from orchestrator.control.peers import Planner, Roster
from orchestrator.control.problems import Problem
from orchestrator.control.schemas.calibration import CalibrationAnswer
from orchestrator.control.schemas.decisions import DecisionAnswer, DecisionsAnswer, PlanAnswer, TotalsAnswer
from orchestrator.control.schemas.graph import GraphAnswer, WorkflowsAnswer
from orchestrator.control.schemas.planning import CooledAnswer, CoolRequest, PrewarmAnswer, PrewarmRequest, WarmRequest
from orchestrator.control.schemas.runs import ActivityAnswer, LogsAnswer, RunAnswer, RunsAnswer
from orchestrator.control.schemas.scaling import ScalingAnswer
from orchestrator.control.stream import DecisionStream

Observed = Annotated[str, Path(max_length=255, description="A function, deployed or known from traces.", examples=["checkout"])]
Limit = Annotated[int, Query(ge=1, le=1000)]
Function = Annotated[str, Query(max_length=255, description="Only about this function.")]
Run = Annotated[str, Query(max_length=64, description="Only of this run (trace id).")]
Functions = Annotated[
    str, Query(max_length=6400, pattern=r"^[^,]*(,[^,]*){0,99}$", description="Only of these, with commas between: 100 at most.")
]
After = Annotated[
    float | None,
    Query(ge=0, allow_inf_nan=False, description="With what held at this moment (Unix time) and each change since."),
]
GRAPH_TYPES = {"json": "application/json", "dot": "text/vnd.graphviz", "mermaid": "text/plain"}
TEXT = {"schema": {"type": "string"}}
GRAPH_CONTENT: dict[int | str, dict[str, Any]] = {200: {"content": {"text/vnd.graphviz": TEXT, "text/plain": TEXT}}}
EVENTS: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": TEXT}}}


def router(store: Store, planner: Planner, nodes: Roster, stream: DecisionStream) -> APIRouter:
    """The endpoints of graph, plans, decisions, runs, workflows, logs."""
    routes = APIRouter(tags=["insight"])

    async def planner_says(request: Request, what: str, **args: Any) -> Response:
        return _json(await planner.ask(what, tenant=tenant_of(request), **args))

    @routes.get("/v1/graph", response_model=GraphAnswer, responses=GRAPH_CONTENT)
    async def graph(request: Request, format: Literal["json", "dot", "mermaid"] = "json") -> Response:  # noqa: A002
        """Who calls whom, with probabilities and counts."""
        answer = await planner.ask("graph", tenant=tenant_of(request), format=format)
        if format == "json":
            return _json(answer)
        return Response(json.loads(answer)["text"], media_type=f"{GRAPH_TYPES[format]}; charset=utf-8")

    @routes.get("/v1/plans/{name:path}", response_model=PlanAnswer)
    async def plan(name: Observed, request: Request) -> Response:
        """What would be prepared if the function were invoked now, and why."""
        return await planner_says(request, "plan", name=name)

    @routes.get("/v1/decisions", response_model=DecisionsAnswer)
    async def decisions(request: Request, function: Function = "", run: Run = "", limit: Limit = 100) -> Response:
        """Prewarm decisions, newest last: reason, evidence, outcome."""
        return await planner_says(request, "decisions", function=function, run=run, limit=limit)

    @routes.get("/v1/decisions/stream", responses=EVENTS, response_class=StreamingResponse)
    async def follow(
        request: Request,
        function: Function = "",
        run: Run = "",
        last_event_id: Annotated[int, Header(ge=-1, description="Go on behind this revision; -1: from now on.")] = -1,
    ) -> StreamingResponse:
        """Server-sent events: each decision when it is made and when it changes."""
        events = await stream.start(tenant_of(request), function, run, last_event_id if last_event_id >= 0 else None)
        return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})

    @routes.get("/v1/decisions/totals", response_model=TotalsAnswer)
    async def totals(request: Request, function: Function = "") -> Response:
        """What the decisions still in the log came to: how many ended how, hit ratio, seconds saved, instance-seconds wasted."""
        return await planner_says(request, "totals", function=function)

    @routes.get("/v1/decisions/{decision_id:path}", response_model=DecisionAnswer)
    async def decision(decision_id: Annotated[str, Path(max_length=255)], request: Request) -> Response:
        """One prewarm decision, with all it stands on."""
        return await planner_says(request, "decision", decision_id=decision_id)

    @routes.get("/v1/calibration", response_model=CalibrationAnswer)
    async def calibration(request: Request) -> Response:
        """How predictions held, what waiting and idling cost per function, and what may still be spent on prewarming."""
        return await planner_says(request, "calibration")

    @routes.get("/v1/scaling", response_model=ScalingAnswer)
    async def scaling(request: Request, functions: Functions = "", after: After = None) -> Response:
        """How many instances of each version are wanted, ready and busy, which term decided, and why."""
        return await planner_says(request, "scaling", functions=[one for one in functions.split(",") if one], after=after)

    @routes.get("/v1/functions/{name}/scaling", response_model=ScalingAnswer)
    async def scaling_of(name: Name, request: Request, after: After = None) -> Response:
        """The same of one function, with each change of the last time: the planner keeps 600 of a version."""
        await run_in_threadpool(store.functions.check, tenant_of(request), name)
        return await planner_says(request, "scaling", name=name, after=after)

    @routes.get("/v1/activity", response_model=ActivityAnswer)
    async def activity(request: Request) -> Response:
        """Invocations and errors per function in the last 15 minutes, and the last error of each."""
        return await planner_says(request, "activity")

    @routes.get("/v1/runs", response_model=RunsAnswer)
    async def runs(request: Request, limit: Limit = 50) -> Response:
        """Finished runs, newest last."""
        return await planner_says(request, "runs", limit=limit)

    @routes.get("/v1/runs/{trace_id}", response_model=RunAnswer)
    async def run(trace_id: Annotated[str, Path(max_length=64)], request: Request) -> Response:
        """One run as a tree of invocations, with start kinds and times, and its decisions."""
        return await planner_says(request, "run", trace_id=trace_id)

    @routes.get("/v1/workflows", response_model=WorkflowsAnswer)
    async def workflows(request: Request) -> Response:
        """Each entry and what it reaches."""
        return await planner_says(request, "workflows")

    @routes.post("/v1/functions/{name}/warm", response_model=PlanAnswer)
    async def warm(name: Name, wanted: WarmRequest, request: Request) -> Response:
        """Prepare a function and its whole path now."""
        return await planner_says(request, "warm", name=name, count=wanted.count)

    @routes.post("/v1/cool", response_model=CooledAnswer)
    async def cool(wanted: CoolRequest, request: Request) -> Response:
        """Give up idle instances, of one function or of all: what comes next starts cold."""
        return await planner_says(request, "cool", name=wanted.function or "")

    @routes.get("/v1/prewarm", response_model=PrewarmAnswer)
    async def prewarm(request: Request) -> Response:
        """The tenant's prewarm policy."""
        return await planner_says(request, "prewarm")

    @routes.put("/v1/prewarm", response_model=PrewarmAnswer)
    async def set_prewarm(wanted: PrewarmRequest, request: Request) -> Response:
        """Change the tenant's prewarm policy."""
        return await planner_says(request, "prewarm", policy=wanted.policy)

    @routes.get("/v1/functions/{name}/logs", response_model=LogsAnswer)
    async def logs(
        name: Name,
        request: Request,
        invocation: Annotated[str, Query(max_length=64, description="Only of this invocation.")] = "",
        limit: Limit = 100,
    ) -> dict[str, Any]:
        """What the function wrote, per invocation, newest last: 64 KiB each, kept for 24 hours."""
        tenant = tenant_of(request)
        await run_in_threadpool(store.functions.check, tenant, name)
        asked = [
            node.ask("logs", tenant=tenant, function=name, invocation=invocation, limit=limit) for node in await nodes.peers()
        ]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        return {"logs": _by_time(answers)[-limit:]}

    return routes


def _by_time(answers: list[bytes | BaseException]) -> list[Any]:
    """The entries of all nodes that answered. Raises Problem when none did."""
    failed = [answer for answer in answers if isinstance(answer, Problem)]
    if answers and len(failed) == len(answers):
        raise failed[0]
    found = [entry for answer in answers if isinstance(answer, bytes) for entry in json.loads(answer)]
    return sorted(found, key=lambda entry: float(entry["at"]))


def _json(answer: bytes) -> Response:
    return Response(answer, media_type="application/json")
