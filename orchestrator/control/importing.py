"""Traces from elsewhere: recorded ones are read, assembled and taught to the planner in batches; what came, and names for it."""

import contextlib
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from graph.calls import Trace
from graph.ids import TenantId
from orchestrator.control.functions import tenant_of
from orchestrator.control.peers import Planner
from orchestrator.control.problems import Problem
from orchestrator.control.schemas.traces import ImportAnswer, ImportRequest, IntakeAnswer, NamesAnswer, NamesRequest
from orchestrator.control.turns import Turns
from tracing.assembly import traces_of
from tracing.formats import FormatError, read_stream
from tracing.spans import Span
from workers.framing import MAX_META

OBSERVE_TIMEOUT_S = 30.0
WAIT_S = 60.0
AT_ONCE = 2
"""Imports of all tenants: each holds its spans in memory, and reads them with a core."""
BATCH_BYTES = MAX_META // 2
LONGEST_TRACE_BYTES = MAX_META - (64 << 10)
"""What fits into one message to the planner, some room left for the rest of it."""

After = Annotated[str, Query(max_length=255, description="Only names behind this one.")]
Limit = Annotated[int, Query(ge=1, le=1000)]

_encode = msgspec.msgpack.Encoder().encode


def router(planner: Planner) -> APIRouter:
    routes = APIRouter(tags=["insight"])
    turns = Turns(AT_ONCE)

    async def planner_says(request: Request, what: str, **args: Any) -> Response:
        return Response(await planner.ask(what, tenant=tenant_of(request), **args), media_type="application/json")

    @routes.get("/v1/traces", response_model=IntakeAnswer)
    async def intake(request: Request) -> Response:
        """What came of spans from elsewhere, and why some of them were not used."""
        return await planner_says(request, "intake")

    @routes.get("/v1/traces/names", response_model=NamesAnswer)
    async def names(request: Request, after: After = "", limit: Limit = 100) -> Response:
        """Functions known from traces that are not deployed, and which deployed functions they were said to be."""
        return await planner_says(request, "names", after=after, limit=limit)

    @routes.put("/v1/traces/names", response_model=NamesAnswer)
    async def give_names(wanted: NamesRequest, request: Request) -> Response:
        """Say which deployed functions observed ones are. It counts for traces that complete, or are imported, from now on."""
        return await planner_says(request, "name", map=wanted.map)

    @routes.post("/v1/traces/import")
    async def import_traces(wanted: ImportRequest, request: Request) -> ImportAnswer:
        """Learn the call graph from recorded traces. All or nothing is not promised: what was taught before an error stays."""
        tenant = TenantId(tenant_of(request))
        async with contextlib.AsyncExitStack() as turn:
            try:
                await turn.enter_async_context(turns.turn(tenant, WAIT_S))
            except TimeoutError:
                raise Problem(503, "other imports run; try again", headers={"Retry-After": "10"}) from None
            spans, left_out = await run_in_threadpool(_read, wanted)
            came = len(spans) + left_out.total()
            given = msgspec.json.decode(await planner.ask("names", tenant=tenant, limit=1, all=True))["map"]
            traces, dropped = await run_in_threadpool(traces_of, tenant, spans, {**given, **wanted.map})
            left_out += dropped
            taught, unlearned = 0, 0
            told: dict[str, Any] = {"spans": came}
            for batch, last in _marked(batches(traces, left_out)):
                if last:
                    told["left_out"] = dict(left_out)
                answer = await planner.ask(
                    "observe", OBSERVE_TIMEOUT_S, tenant=tenant, traces=_encode(batch), decay=wanted.decay, **told
                )
                told = {}
                learned = int(msgspec.json.decode(answer)["observed"])
                taught += learned
                unlearned += len(batch) - learned
            if unlearned:
                left_out["nothing to learn from"] += unlearned
        calls = sum(len(trace.calls) for trace in traces)
        return ImportAnswer(traces=taught, calls=calls, spans=came, left_out=left_out.total(), reasons=dict(left_out))

    return routes


def _read(wanted: ImportRequest) -> tuple[list[Span], Counter[str]]:
    left_out: Counter[str] = Counter()
    form = "" if wanted.format == "auto" else wanted.format
    try:
        return list(read_stream(io.BytesIO(wanted.text.encode()), left_out, form)), left_out
    except FormatError as error:
        raise Problem(400, str(error), "text") from error


def _marked(batches: Iterator[list[Trace]]) -> Iterator[tuple[list[Trace], bool]]:
    """Each with whether it is the last; an empty one when there is none, so that what was left out is told all the same."""
    before = next(batches, [])
    for batch in batches:
        yield before, False
        before = batch
    yield before, True


def batches(traces: Sequence[Trace], left_out: Counter[str]) -> Iterator[list[Trace]]:
    """The traces in their order, in lists that fit a message each. One that fits none is counted in `left_out`."""
    batch: list[Trace] = []
    size = 0
    for trace in traces:
        length = len(_encode(trace))
        if length > LONGEST_TRACE_BYTES:
            left_out["trace too long"] += 1
            continue
        if batch and size + length > BATCH_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(trace)
        size += length
    if batch:
        yield batch
