"""Recorded traces from elsewhere: read, assembled, and taught to the planner in batches."""

import asyncio
import io
from collections import Counter
from collections.abc import Iterator, Sequence

import msgspec
from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool

from graph.calls import Trace
from graph.ids import TenantId
from orchestrator.control.functions import tenant_of
from orchestrator.control.peers import Planner
from orchestrator.control.problems import Problem
from orchestrator.control.schemas import ImportAnswer, ImportRequest
from tracing.assembly import traces_of
from tracing.formats import FormatError, trainticket
from workers.framing import MAX_META

OBSERVE_TIMEOUT_S = 30.0
WAIT_S = 60.0
BATCH_BYTES = MAX_META // 2
LONGEST_TRACE_BYTES = MAX_META - (64 << 10)
"""What fits into one message to the planner, some room left for the rest of it."""

_encode = msgspec.msgpack.Encoder().encode


def router(planner: Planner) -> APIRouter:
    routes = APIRouter(tags=["insight"])
    one_at_a_time = asyncio.Lock()

    @routes.post("/v1/traces/import")
    async def import_traces(wanted: ImportRequest, request: Request) -> ImportAnswer:
        """Learn the call graph from recorded traces. All or nothing is not promised: what was taught before an error stays."""
        tenant = TenantId(tenant_of(request))
        try:
            await asyncio.wait_for(one_at_a_time.acquire(), WAIT_S)
        except TimeoutError:
            raise Problem(503, "another import runs; try again", headers={"Retry-After": "10"}) from None
        try:
            traces, spans, left_out = await run_in_threadpool(_read, tenant, wanted)
            taught = 0
            for batch in batches(traces, left_out):
                told = await planner.ask("observe", OBSERVE_TIMEOUT_S, tenant=tenant, traces=_encode(batch), decay=wanted.decay)
                learned = int(msgspec.json.decode(told)["observed"])
                taught += learned
                if learned < len(batch):
                    left_out["nothing to learn from"] += len(batch) - learned
        finally:
            one_at_a_time.release()
        calls = sum(len(trace.calls) for trace in traces)
        return ImportAnswer(traces=taught, calls=calls, spans=spans, left_out=left_out.total(), reasons=dict(left_out))

    return routes


def _read(tenant: TenantId, wanted: ImportRequest) -> tuple[list[Trace], int, Counter[str]]:
    try:
        spans = trainticket.read(io.StringIO(wanted.text, newline=""))
    except FormatError as error:
        raise Problem(400, str(error), "text") from error
    traces, left_out = traces_of(tenant, spans, wanted.map)
    return traces, len(spans), left_out


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
