"""The request path of a node: acquire an instance, run the invocation in it, answer.

Everything here runs in callbacks on the event loop; only preparing an instance is a task (workers.lifecycle).
"""

import asyncio
import time
from collections.abc import Callable, Sequence

import structlog

from graph.calls import StartKind
from graph.ids import VersionId, function_of
from workers.admission import ON_DEMAND, MemoryLedger
from workers.child_calls import CallRepeated, ChildCalls
from workers.decisions import DecisionBook
from workers.drivers.frames import FromGuest, ToGuest
from workers.framing import MORE, Frame
from workers.idling import Idling
from workers.instances import Instance
from workers.invocations import Invocation, bounded, decode_error, decode_log, decode_result, guest_invoke
from workers.lifecycle import Lifecycle
from workers.logs import LogStore
from workers.preparation import Preparer
from workers.rpc.connection import Connection
from workers.rpc.messages import ErrorDetail, InvokeRequest, InvokeResult
from workers.versions import VersionSpec

MAX_RESULT = 6 << 20

log = structlog.get_logger(__name__)


class Execution:
    """The invocations of a node, and what holds the instances they run in: `instances` begins and ends them, `idling` says how
    long an unused one stays, `calls` are those that handlers make. `changed` is called whenever counts may have moved, `started`
    when a start begins; neither may block."""

    def __init__(
        self,
        preparer: Preparer,
        memory: MemoryLedger,
        decisions: DecisionBook,
        logs: LogStore,
        changed: Callable[[], None],
        started: Callable[[], None],
    ) -> None:
        self.instances = Lifecycle(preparer, memory, self, changed, started)
        self.idling = Idling(self.instances, decisions)
        self.calls = ChildCalls()
        self.draining: set[str] = set()  # versions of which no instance is kept
        self._table = self.instances.table
        self._decisions = decisions
        self._logs = logs
        self._changed = changed
        self._loop = asyncio.get_running_loop()
        self._streams: dict[tuple[Connection, int], Invocation] = {}

    # -- invocations

    def invoke(self, connection: Connection, stream: int, request: InvokeRequest, body: bytes, spec: VersionSpec) -> None:
        """Runs one invocation; its result goes back on the stream, whatever happens."""
        now = time.monotonic()
        invocation = Invocation(connection, stream, request, body, now)
        self._streams[connection, stream] = invocation
        instance = self._table.take(request.version)
        if instance is not None:
            self._dispatch(invocation, instance, instance.start_kind(), now)
            return
        instance = self._table.adoptable(request.version)
        if instance is not None:
            self._adopt(invocation, instance)
            return
        started = self.instances.begin(spec, ON_DEMAND, child=request.depth > 0, trace_id=request.trace_id)
        if started is None:
            self._fail(invocation, "full")
            return
        invocation.decision_id = self._decisions.claim(request.version, request.trace_id, request.invocation_id)
        invocation.instance = started
        self._wait(invocation, started)

    def _adopt(self, invocation: Invocation, instance: Instance) -> None:
        invocation.start = StartKind.ALMOST_WARM
        invocation.decision_id = instance.decision_id
        invocation.instance = instance
        first = not instance.waiting
        self._wait(invocation, instance)
        if first:
            self.instances.hurry(instance)
            if instance.decision_id:
                self._decisions.used(instance.decision_id, invocation.request.invocation_id)

    def _wait(self, invocation: Invocation, instance: Instance) -> None:
        instance.waiting.append(invocation)
        invocation.timer = self._loop.call_later(invocation.request.deadline_s, self._late, invocation)
        self._table.changed.add(instance.spec.version)
        self._changed()

    def _dispatch(self, invocation: Invocation, instance: Instance, start: StartKind, now: float) -> None:
        if invocation.start is StartKind.UNKNOWN:
            invocation.start = start
        if instance.decision_id and not instance.served:
            invocation.decision_id = instance.decision_id
            self._decisions.used(instance.decision_id, invocation.request.invocation_id)
        instance.served += 1
        instance.next_id = ident = (instance.next_id + 1) & 0xFFFFFFFF
        invocation.instance = instance
        invocation.dispatched = now
        instance.live[ident] = invocation
        self._table.occupied(instance)
        left = invocation.request.deadline_s - (now - invocation.arrived)
        if invocation.timer is None:
            invocation.timer = self._loop.call_later(max(left, 0.0), self._late, invocation)
        assert instance.clone is not None
        instance.clone.send(ToGuest.INVOKE, ident, guest_invoke(invocation.request, round(left, 3)), invocation.body)
        invocation.body = b""
        self._changed()

    def _late(self, invocation: Invocation) -> None:
        """The deadline is over. User code cannot be interrupted, so the instance goes."""
        self._fail(invocation, "timeout", ErrorDetail("Timeout", f"no answer within {invocation.request.deadline_s:.3g} s"))
        self._abandon(invocation, "a timeout ended the instance")

    def cancel(self, connection: Connection, stream: int) -> None:
        """Its caller gave it up (or is gone)."""
        invocation = self._streams.get((connection, stream))
        if invocation is not None and not invocation.done:
            self._fail(invocation, "cancelled")
            self._abandon(invocation, "its caller was cancelled")

    def _abandon(self, invocation: Invocation, why: str) -> None:
        instance = invocation.instance
        if instance is None:
            return
        if invocation.dispatched:
            self.instances.kill(instance, why)
        elif invocation in instance.waiting:
            instance.waiting.remove(invocation)

    def connection_lost(self, connection: Connection) -> None:
        """Nobody can take the answers any more: what runs for this connection ends with it."""
        for peer, stream in [key for key in self._streams if key[0] is connection]:
            self.cancel(peer, stream)

    def _fail(self, invocation: Invocation, status: str, error: ErrorDetail | None = None) -> None:
        timings = invocation.timings(time.monotonic())
        self._finish(invocation, InvokeResult(status, invocation.start, timings, error=error, decision_id=invocation.decision_id))

    def _finish(self, invocation: Invocation, result: InvokeResult, body: bytes = b"") -> None:
        self._streams.pop((invocation.connection, invocation.stream), None)
        if invocation.calls:
            self.calls.end(invocation)
        invocation.finish(result, body)

    # -- what becomes of instances

    def ready(self, instance: Instance, now: float) -> None:
        """Takes in who waits for it; unused, it is its decision's."""
        if instance.decision_id and not instance.waiting:
            self._decisions.ready(instance.decision_id, instance.timings, instance.source, self.idling.expire)
        while instance.waiting and instance.free > 0:
            self._dispatch(instance.waiting.popleft(), instance, instance.made_by, now)
        if not instance.live and instance.spec.version in self.draining:
            self.instances.kill(instance, "draining")

    def not_ready(self, instance: Instance, waiting: Sequence[Invocation], status: str, detail: ErrorDetail) -> None:
        """Who waited for it is told why there is none."""
        for invocation in waiting:
            if invocation.start is StartKind.UNKNOWN:
                invocation.start = instance.made_by
            self._fail(invocation, status, detail)

    def lost(self, instance: Instance, why: str) -> None:
        """Its own invocations fail, nothing else does."""
        if instance.decision_id:
            self._decisions.lost(instance.decision_id, why)
        for invocation in [*instance.live.values(), *instance.waiting]:
            self._fail(invocation, "killed", ErrorDetail("InstanceKilled", why))

    # -- what guests say

    def heard(self, instance: Instance, frame: Frame) -> None:
        """A broken or hostile guest loses its instance, nobody else notices."""
        try:
            kind = frame.kind
            if kind == FromGuest.RESULT:
                self._on_result(instance, frame)
            elif kind == FromGuest.CALL:
                self.calls.made(instance, frame)
            elif kind == FromGuest.LOG:
                self._on_log(instance, frame)
            elif kind == FromGuest.ERROR:
                detail = decode_error(frame.meta)
                error = bounded(detail.type, detail.message, detail.stack)
                self._leave(instance, frame.id, "bad-payload" if detail.payload else "error", error=error)
            elif kind == FromGuest.CANCEL_CALL:
                self.calls.given_up(instance, frame.id)
        except CallRepeated as error:
            self.instances.kill(instance, f"the guest broke the protocol: {error}")
        except Exception as error:  # whatever a guest can provoke (RecursionError was one) is its own end only
            log.warning("guest.broke_protocol", version=instance.spec.version, error=f"{type(error).__name__}: {error}"[:500])
            self.instances.kill(instance, f"the guest broke the protocol: {type(error).__name__}: {error}"[:500])

    def _on_result(self, instance: Instance, frame: Frame) -> None:
        invocation = instance.live.get(frame.id)
        if invocation is None:
            return  # it came too late: the invocation was answered already
        if frame.flags & MORE or invocation.collected is not None:
            if invocation.collected is None:
                invocation.collected = bytearray()
            if len(invocation.collected) + len(frame.body) > MAX_RESULT:
                self._too_large(instance, invocation)
                return
            invocation.collected += frame.body
            if frame.meta and invocation.head is None:
                invocation.head = decode_result(frame.meta)
            if frame.flags & MORE:
                return
            head, body = invocation.head or decode_result(b"{}"), bytes(invocation.collected)
        else:
            head, body = decode_result(frame.meta), frame.body
        if len(body) > MAX_RESULT:
            self._too_large(instance, invocation)
            return
        http = head.http
        self._leave(
            instance,
            frame.id,
            "ok",
            body,
            content_type=head.content_type,
            http_status=http.status if http is not None else 0,
            headers=http.headers if http is not None else [],
        )

    def _too_large(self, instance: Instance, invocation: Invocation) -> None:
        detail = ErrorDetail("ResultTooLarge", f"the result is over {MAX_RESULT} bytes")
        self._fail(invocation, "error", detail)
        self.instances.kill(instance, detail.message)

    def _leave(
        self,
        instance: Instance,
        ident: int,
        status: str,
        body: bytes = b"",
        content_type: str = "",
        http_status: int = 0,
        headers: list[tuple[str, str]] | None = None,
        error: ErrorDetail | None = None,
    ) -> None:
        """The handler is done: answer, and the instance has room again."""
        invocation = instance.live.pop(ident, None)
        if invocation is None:
            return
        now = time.monotonic()
        self._finish(
            invocation,
            InvokeResult(
                status,
                invocation.start,
                invocation.timings(now),
                content_type,
                http_status,
                headers or [],
                error,
                invocation.decision_id,
            ),
            body,
        )
        self._table.released(instance, now)
        if self.draining and not instance.live and instance.spec.version in self.draining:
            self.instances.kill(instance, "draining")
        self._changed()

    def _on_log(self, instance: Instance, frame: Frame) -> None:
        invocation = instance.live.get(frame.id)
        stream = "err" if decode_log(frame.meta).stream == "err" else "out"
        self._write_log(instance, invocation, stream, frame.body)

    def wrote(self, instance: Instance, stream: str, text: bytes) -> None:
        """Written past the runtime: it belongs to the one live invocation, if there is just one."""
        live = list(instance.live.values())
        self._write_log(instance, live[0] if len(live) == 1 else None, stream, text)

    def _write_log(self, instance: Instance, invocation: Invocation | None, stream: str, text: bytes) -> None:
        version = instance.spec.version
        ident = invocation.request.invocation_id if invocation is not None else ""
        self._logs.write(function_of(VersionId(version)), version, ident, stream, text, time.time())
