"""One invocation from the gateway's side, entry or child: place it, run it on a node, report it. Child calls come back here."""

import asyncio
import random
import time
from dataclasses import dataclass, field
from functools import partial

import msgspec
import structlog

from graph.calls import StartKind
from orchestrator.catalog.watch import RouteTable
from orchestrator.gateway.allowances import Allowances
from orchestrator.gateway.choosing import Choices
from orchestrator.gateway.demand import DemandCounts
from orchestrator.gateway.links import Answer, NodeLink
from orchestrator.gateway.reports import Reports
from orchestrator.gateway.resolve import NotFound, resolve
from orchestrator.gateway.tally import Tally
from orchestrator.gateway.waiting import Overload, WaitingRoom
from orchestrator.placement import in_reach, place
from tracing.records import InvocationRecord, Timings
from workers.rpc.connection import RpcError
from workers.rpc.messages import ChildCall, ErrorDetail, HttpRequest, InvokeRequest, InvokeResult, Rpc, TriggerEvent
from workers.versions import VersionSpec

RETRIABLE = ("full", "draining")
NOTED = ("killed", "timeout", "init-failed", "code-unavailable", "network-unavailable", "full")
"""What an operator looks for; the rest is the caller's."""

NEVER_RAN = ("full", "draining", "unknown-version", "code-unavailable", "network-unavailable", "init-failed")

log = structlog.get_logger(__name__)
_ids = random.Random(random.SystemRandom().getrandbits(128))  # noqa: S311 (ids must be unique, not secret)


def new_trace_id() -> str:
    return f"{_ids.getrandbits(128) | 1:032x}"


def new_span_id() -> str:
    return f"{_ids.getrandbits(64) | 1:016x}"


@dataclass(slots=True, eq=False)
class Run:
    """One invocation in flight. `deadline` is in the loop's clock; `choices` are those of the run it belongs to."""

    tenant: str
    spec: VersionSpec
    trace_id: str
    invocation_id: str
    parent_id: str
    depth: int
    deadline: float
    content_type: str
    http: HttpRequest | None = None
    link: str = ""
    link_used: NodeLink | None = None
    place_ms: float = 0.0
    choices: Choices | None = None
    children: "set[asyncio.Task[None]]" = field(default_factory=set)


class Runs:
    """Everything in flight through this gateway."""

    def __init__(
        self,
        table: RouteTable,
        reports: Reports,
        waiting: WaitingRoom,
        allowances: Allowances,
        max_depth: int,
        max_payload: int,
    ) -> None:
        self.links: list[NodeLink] = []
        self.tally = Tally()
        self.demand = DemandCounts(time.monotonic())
        self._table = table
        self._reports = reports
        self._waiting = waiting
        self._allowances = allowances
        self._max_depth = max_depth
        self._max_payload = max_payload
        self._loop = asyncio.get_running_loop()
        self._live: dict[str, Run] = {}
        self._children: dict[tuple[NodeLink, int], asyncio.Task[None]] = {}

    def __len__(self) -> int:
        return len(self._live)

    def set_links(self, links: list[NodeLink]) -> None:
        """The nodes there are from now on."""
        self.links = links
        for link in links:
            link.set_alone(len(links) < 2)
        self._waiting.wake_one()  # capacity may have come

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    async def run(self, run: Run, body: bytes, placed_from: float) -> Answer:
        """Runs it and reports it. Never raises but for cancellation: trouble is in the result's status."""
        began = time.time()
        self._live[run.invocation_id] = run
        self._reports.trigger(TriggerEvent(run.spec.version, run.trace_id, run.invocation_id, run.parent_id, began))
        since = time.monotonic()
        self.demand.enter(run.spec.version, not run.parent_id, since)
        run.place_ms = (since - placed_from) * 1000
        result, answer = InvokeResult("cancelled"), b""
        try:
            result, answer = await self._place(run, body, since)
        except RpcError as error:
            result = InvokeResult("killed", error=ErrorDetail("NodeLost", str(error)))
        except Overload as error:
            waited = Timings(queue=(time.monotonic() - since) * 1000)
            result = InvokeResult("full", timings=waited, error=ErrorDetail("Overload", str(error)))
            self.tally.throttled[error.reason] += 1
        finally:
            for child in run.children:
                child.cancel()
            del self._live[run.invocation_id]
            self._waiting.wake_one()
            self._record(run, result, began)
            ended = time.monotonic()
            self.demand.leave(run.spec.version, ended)
            self.tally.ended(run.spec.version, result, run.place_ms, ended - since)
            if result.status in NOTED:
                _note(run, result)
            if not run.parent_id:
                self._reports.trigger(
                    TriggerEvent(run.spec.version, run.trace_id, run.invocation_id, "", time.time(), ended=True)
                )
        return result, answer

    async def _place(self, run: Run, body: bytes, since: float) -> Answer:
        """Tries nodes until one takes it. Only an answer that promises that no byte reached an instance is tried again."""
        while True:
            up = [link for link in self.links if link.up and link.hosts(run.tenant)]
            if not up and run.deadline <= time.monotonic():
                detail = ErrorDetail("Timeout", "the deadline passed while no node that may run it was reachable")
                return InvokeResult("timeout", error=detail), b""
            for link in up if len(up) < 2 else place(run.spec.version, run.spec.memory_mb, in_reach(run.spec, up)):
                if not link.up:
                    continue  # lost while another node was asked
                left = run.deadline - time.monotonic()
                if left <= 0:
                    detail = ErrorDetail("Timeout", "the deadline passed while waiting for capacity")
                    return InvokeResult("timeout", error=detail), b""
                run.link_used = link
                request = InvokeRequest(
                    run.spec.version,
                    run.invocation_id,
                    run.trace_id,
                    run.parent_id,
                    run.depth,
                    left,
                    run.content_type,
                    run.http,
                )
                result, answer = await link.invoke(run.spec, request, body)
                if result.status not in RETRIABLE:
                    waited = (time.monotonic() - since) * 1000 - result.timings.start_ms - result.timings.run
                    return _with_wait(result, waited), answer
            try:
                await self._waiting.wait(since, run.deadline, reserved=bool(run.parent_id))
            except Overload as error:
                if up or not any(link.up for link in self.links):
                    raise
                raise Overload(f"no node that may host tenant {run.tenant} is up", error.reason) from None

    def _record(self, run: Run, result: InvokeResult, began: float) -> None:
        timings = result.timings
        self._reports.record(
            InvocationRecord(
                run.tenant,
                run.trace_id,
                run.invocation_id,
                run.parent_id,
                run.spec.version.rpartition(":")[0],
                int(run.spec.version.rpartition(":")[2]),
                began,
                time.time(),
                result.start,
                _recorded(result),
                msgspec.structs.replace(timings, place=run.place_ms),
                run.link_used.name if run.link_used is not None else "",
                result.error.type if result.error is not None else "",
                run.link,
                result.decision_id,
            )
        )

    # -- child calls

    def on_call(self, link: NodeLink, ident: int, call: ChildCall, body: bytes) -> None:
        """A live invocation calls another function. What it called ends with it, also when its node was lost."""
        parent = self._parent(link, call)
        task = self._loop.create_task(self._child(link, ident, call, body))
        self._children[link, ident] = task
        if parent is not None:
            parent.children.add(task)
        task.add_done_callback(partial(self._child_ended, link, ident, parent))

    def _child_ended(self, link: NodeLink, ident: int, parent: Run | None, task: "asyncio.Task[None]") -> None:
        if parent is not None:
            parent.children.discard(task)
        if self._children.get((link, ident)) is task:  # a node that came back counts its calls from one again
            del self._children[link, ident]

    def on_cancel_call(self, link: NodeLink, ident: int) -> None:
        task = self._children.get((link, ident))
        if task is not None:
            task.cancel()

    async def _child(self, link: NodeLink, ident: int, call: ChildCall, body: bytes) -> None:
        connection = link.connection
        result, answer = await self._run_child(link, call, body)
        if connection is not None:
            connection.send(Rpc.CALL_RESULT, ident, result, answer)

    def _parent(self, link: NodeLink, call: ChildCall) -> Run | None:
        """A node speaks for what runs on it, and for nothing else."""
        parent = self._live.get(call.invocation_id)
        return parent if parent is not None and parent.link_used is link else None

    async def _run_child(self, link: NodeLink, call: ChildCall, body: bytes) -> Answer:
        now = time.monotonic()
        parent = self._parent(link, call)
        if parent is None:
            return InvokeResult("refused", error=ErrorDetail("CallRefused", "the calling invocation has ended")), b""
        if parent.depth + 1 > self._max_depth:
            detail = ErrorDetail("TooDeep", f"more than {self._max_depth} calls deep")
            return InvokeResult("too-deep", error=detail), b""
        if call.asynchronous:
            return InvokeResult("refused", error=ErrorDetail("CallRefused", "asynchronous calls are not offered")), b""
        if len(body) > self._max_payload:
            detail = ErrorDetail("PayloadTooLarge", f"the payload is over {self._max_payload} bytes")
            return InvokeResult("too-large", error=detail), b""
        try:
            _, spec = resolve(self._table, parent.tenant, call.function, parent.choices)
        except NotFound as error:
            return InvokeResult("not-found", error=ErrorDetail("FunctionNotFound", str(error))), b""
        child = Run(
            parent.tenant,
            spec,
            parent.trace_id,
            new_span_id(),
            parent.invocation_id,
            parent.depth + 1,
            min(parent.deadline, now + spec.timeout_s),
            call.content_type,
            choices=parent.choices,
        )
        self._allowances.enter_child(child.tenant, now)
        try:
            return await self.run(child, body, now)
        finally:
            self._allowances.leave(child.tenant)


def _note(run: Run, result: InvokeResult) -> None:
    """No words of the function's: they may hold anything."""
    log.warning(
        "invocation.failed",
        trace_id=run.trace_id,
        invocation_id=run.invocation_id,
        version=run.spec.version,
        status=result.status,
        error=result.error.type if result.error is not None else "",
        node=run.link_used.name if run.link_used is not None else "",
    )


def _recorded(result: InvokeResult) -> str:
    """The status in the record's words. What never reached a handler was refused: it teaches nothing about calls."""
    if result.status in NEVER_RAN or (result.status == "timeout" and result.start is StartKind.UNKNOWN):
        return "refused"
    return result.status


def _with_wait(result: InvokeResult, waited_ms: float) -> InvokeResult:
    """Adds time spent waiting at the gateway to the result's queue time; the RPC itself is below what counts."""
    if waited_ms < 1.0:
        return result
    timings = result.timings
    queue = timings.queue + waited_ms
    return InvokeResult(
        result.status,
        result.start,
        msgspec.structs.replace(timings, queue=queue),
        result.content_type,
        result.http_status,
        result.headers,
        result.error,
        result.decision_id,
    )
