"""The request path of a node: acquire an instance, run the invocation in it, carry its calls, answer.

Everything here runs in callbacks on the event loop; only preparing an instance is a task.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from functools import partial

import structlog

from graph.calls import StartKind
from graph.ids import VersionId, function_of, tenant_of
from workers.admission import ON_DEMAND, MemoryLedger
from workers.decisions import DecisionBook
from workers.drivers.frames import FromGuest, ToGuest
from workers.framing import MORE, Frame
from workers.instances import Instance, InstanceTable, State
from workers.invocations import (
    Invocation,
    decode_call,
    decode_error,
    decode_log,
    decode_result,
    guest_call_result,
    guest_invoke,
)
from workers.keeping import KeepTimes
from workers.logs import LogStore
from workers.ports import CodeUnavailable, DriverError, InitFailed, NetworkUnavailable
from workers.preparation import Preparer
from workers.probing import probe as ask_guest
from workers.rpc.connection import Connection
from workers.rpc.messages import ChildCall, ErrorDetail, InvokeRequest, InvokeResult, Rpc
from workers.sealing import SealError
from workers.tallies import StartTimes
from workers.versions import VersionSpec

MAX_RESULT = 6 << 20
MAX_CALLS = 256  # child calls in flight of one invocation
END_S = 10.0
START_BUSY_S = 0.2  # standbys are not refilled this long after a start began
UNAVAILABLE: dict[type[Exception], str] = {
    CodeUnavailable: "code-unavailable",
    NetworkUnavailable: "network-unavailable",
}

log = structlog.get_logger(__name__)


class Execution:
    """Owns the instances. `changed` is called whenever counts may have moved; it must not block."""

    def __init__(
        self,
        preparer: Preparer,
        memory: MemoryLedger,
        logs: LogStore,
        changed: Callable[[], None],
        started: Callable[[], None],
    ) -> None:
        self.table = InstanceTable()
        self.memory = memory
        self.decisions: DecisionBook | None = None
        self.draining: set[str] = set()  # versions of which no instance is kept
        self._preparer = preparer
        self._logs = logs
        self._changed = changed
        self._started = started
        self._loop = asyncio.get_running_loop()
        self.prepared = StartTimes()  # instances that became ready
        self.not_prepared: Counter[str] = Counter()  # those that did not, by status
        self.keeps = KeepTimes()
        self.ended_idle: Counter[str] = Counter({"lifetime": 0, "price": 0, "wanted": 0})  # given up after their use, by why
        self._stopping = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._calls: dict[tuple[Connection, int], tuple[Invocation, int]] = {}
        self._streams: dict[tuple[Connection, int], Invocation] = {}

    # -- invocations

    def invoke(self, connection: Connection, stream: int, request: InvokeRequest, body: bytes, spec: VersionSpec) -> None:
        """Runs one invocation; its result goes back on the stream, whatever happens."""
        now = time.monotonic()
        invocation = Invocation(connection, stream, request, body, now)
        self._streams[connection, stream] = invocation
        instance = self.table.take(request.version)
        if instance is not None:
            self._dispatch(invocation, instance, instance.start_kind(), now)
            return
        instance = self.table.adoptable(request.version)
        if instance is not None:
            self._adopt(invocation, instance)
            return
        started = self.begin(spec, ON_DEMAND, child=request.depth > 0, trace_id=request.trace_id)
        if started is None:
            self._fail(invocation, "full")
            return
        if self.decisions is not None:
            invocation.decision_id = self.decisions.claim(request.version, request.trace_id, request.invocation_id)
        invocation.instance = started
        self._wait(invocation, started)

    def _adopt(self, invocation: Invocation, instance: Instance) -> None:
        invocation.start = StartKind.ALMOST_WARM
        invocation.decision_id = instance.decision_id
        invocation.instance = instance
        first = not instance.waiting
        self._wait(invocation, instance)
        if first:
            self._preparer.hurry(instance)
            if instance.clone is not None:
                instance.clone.speculative(False)
            if instance.decision_id and self.decisions is not None:
                self.decisions.used(instance.decision_id, invocation.request.invocation_id)

    def _wait(self, invocation: Invocation, instance: Instance) -> None:
        instance.waiting.append(invocation)
        invocation.timer = self._loop.call_later(invocation.request.deadline_s, self._late, invocation)
        self.table.changed.add(instance.spec.version)
        self._changed()

    def _dispatch(self, invocation: Invocation, instance: Instance, start: StartKind, now: float) -> None:
        if invocation.start is StartKind.UNKNOWN:
            invocation.start = start
        if instance.decision_id and not instance.served:
            invocation.decision_id = instance.decision_id
            if self.decisions is not None:
                self.decisions.used(instance.decision_id, invocation.request.invocation_id)
        instance.served += 1
        instance.next_id = ident = (instance.next_id + 1) & 0xFFFFFFFF
        invocation.instance = instance
        invocation.dispatched = now
        instance.live[ident] = invocation
        self.table.occupied(instance)
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
            self.kill(instance, why)
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
        for ident in invocation.calls.values():
            if self._calls.pop((invocation.connection, ident), None) is not None:
                invocation.connection.send(Rpc.CANCEL_CALL, ident)
        invocation.calls.clear()
        invocation.finish(result, body)

    # -- what guests say

    def _on_frame(self, instance: Instance, frame: Frame) -> None:
        """A broken or hostile guest loses its instance, nobody else notices."""
        try:
            kind = frame.kind
            if kind == FromGuest.RESULT:
                self._on_result(instance, frame)
            elif kind == FromGuest.CALL:
                self._on_call(instance, frame)
            elif kind == FromGuest.LOG:
                self._on_log(instance, frame)
            elif kind == FromGuest.ERROR:
                detail = decode_error(frame.meta)
                error = _bounded(detail.type, detail.message, detail.stack)
                self._leave(instance, frame.id, "bad-payload" if detail.payload else "error", error=error)
            elif kind == FromGuest.CANCEL_CALL:
                self._on_cancel_call(instance, frame.id)
        except Exception as error:  # whatever a guest can provoke (RecursionError was one) is its own end only
            log.warning("guest.broke_protocol", version=instance.spec.version, error=f"{type(error).__name__}: {error}"[:500])
            self.kill(instance, f"the guest broke the protocol: {type(error).__name__}: {error}"[:500])

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
        self.kill(instance, detail.message)

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
        self.table.released(instance, now)
        if self.draining and not instance.live and instance.spec.version in self.draining:
            self.kill(instance, "draining")
        self._changed()

    def _on_call(self, instance: Instance, frame: Frame) -> None:
        call = decode_call(frame.meta)
        invocation = instance.live.get(call.invocation)
        refusal = ""
        if any(frame.id in one.calls for one in instance.live.values()):
            self.kill(instance, "the guest broke the protocol: a call has the id of one in flight")
            return
        if invocation is None:
            refusal = "the invocation this call names is not live in this instance"
        elif len(invocation.calls) >= MAX_CALLS:
            refusal = f"more than {MAX_CALLS} calls in flight"
        if invocation is None or refusal:
            result = InvokeResult("refused", error=ErrorDetail("CallRefused", refusal))
            self._answer_guest(instance, frame.id, result, b"")
            return
        connection = invocation.connection
        ident = connection.next_id()
        invocation.calls[frame.id] = ident
        self._calls[connection, ident] = (invocation, frame.id)
        connection.send(
            Rpc.CALL,
            ident,
            ChildCall(invocation.request.invocation_id, call.function, call.content_type, call.asynchronous),
            frame.body,
        )

    def call_result(self, connection: Connection, ident: int, result: InvokeResult, body: bytes) -> None:
        """The answer to a child call, for the guest that waits for it."""
        found = self._calls.pop((connection, ident), None)
        if found is None:
            return
        invocation, guest_call = found
        invocation.calls.pop(guest_call, None)
        if invocation.instance is not None:
            self._answer_guest(invocation.instance, guest_call, result, body)

    def _answer_guest(self, instance: Instance, guest_call: int, result: InvokeResult, body: bytes) -> None:
        if instance.clone is not None and instance.state is not State.GONE:
            instance.clone.send(ToGuest.CALL_RESULT, guest_call, guest_call_result(result), body)

    def _on_cancel_call(self, instance: Instance, guest_call: int) -> None:
        for invocation in instance.live.values():
            ident = invocation.calls.pop(guest_call, None)
            if ident is not None:
                self._calls.pop((invocation.connection, ident), None)
                invocation.connection.send(Rpc.CANCEL_CALL, ident)
                return

    def _on_log(self, instance: Instance, frame: Frame) -> None:
        invocation = instance.live.get(frame.id)
        stream = "err" if decode_log(frame.meta).stream == "err" else "out"
        self._write_log(instance, invocation, stream, frame.body)

    def _on_output(self, instance: Instance, stream: str, text: bytes) -> None:
        """Written past the runtime: it belongs to the one live invocation, if there is just one."""
        live = list(instance.live.values())
        self._write_log(instance, live[0] if len(live) == 1 else None, stream, text)

    def _write_log(self, instance: Instance, invocation: Invocation | None, stream: str, text: bytes) -> None:
        version = instance.spec.version
        ident = invocation.request.invocation_id if invocation is not None else ""
        self._logs.write(function_of(VersionId(version)), version, ident, stream, text, time.time())

    # -- instances

    def begin(
        self,
        spec: VersionSpec,
        priority: float,
        decision_id: str = "",
        child: bool = False,
        trace_id: str = "",
        probe: bool = False,
    ) -> Instance | None:
        """Starts preparing an instance; None when there is no memory for it. On demand, what is planned or idle gives way."""
        if self._stopping:
            return None
        victims: list[Instance] = []
        held_mb = self.memory.of_instance(spec.memory_mb)
        missing = self.memory.missing(held_mb, child)
        if missing > 0:
            if decision_id:
                return None
            victims = self.table.victims(missing)
            templates = self._preparer.templates
            if not victims:
                beyond = missing - templates.held_mb
                victims = self.table.victims(beyond)
                if beyond > 0 and not victims:
                    return None
                templates.give_way(missing)
            for victim in victims:
                self._drop(victim, "gave way to a request")
        self.memory.reserve(held_mb)
        self._preparer.keep_code(spec)
        instance = Instance(spec, spec.memory_mb, decision_id, trace_id, beside_mb=self.memory.beside_mb, probe=probe)
        self.table.add(instance)
        self._started()
        task = self._loop.create_task(self._prepare(instance, priority, victims))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._changed()
        return instance

    async def _prepare(self, instance: Instance, priority: float, victims: list[Instance]) -> None:
        status, detail = "", ErrorDetail("", "")
        try:
            for victim in victims:
                if victim.clone is not None:
                    await victim.clone.kill("gave way to a request")
            await self._preparer.prepare(instance, priority)
            await self._probe(instance)
        except InitFailed as error:
            found = error.detail
            status, detail = (
                "init-failed",
                _bounded(found.get("type", "Error"), found.get("message", ""), found.get("stack", "")),
            )
        except (CodeUnavailable, NetworkUnavailable) as error:
            status, detail = UNAVAILABLE[type(error)], _bounded(type(error).__name__, str(error), "")
        except TimeoutError:
            status, detail = "init-failed", ErrorDetail("InitTimeout", "importing the handler took too long")
        except (DriverError, SealError, OSError) as error:
            status, detail = "killed", _bounded(type(error).__name__, str(error), "")
        except Exception as error:
            # an instance that stays "preparing" would hold its memory and its waiters for ever
            log.exception("instance.preparing_broke", version=instance.spec.version)
            status, detail = "killed", _bounded(type(error).__name__, str(error), "")
        if status:
            self._failed(instance, status, detail)
            return
        if instance.state is State.GONE:  # given up while it was being prepared
            await self._end(instance, "given up")
            return
        assert instance.clone is not None
        instance.clone.on_frame = partial(self._on_frame, instance)
        instance.clone.on_output = partial(self._on_output, instance)
        instance.clone.on_exit = partial(self._gone, instance)
        now = time.monotonic()
        self.table.ready(instance, now)
        self.prepared.add(instance.made_by, instance.timings)
        if instance.decision_id and not instance.waiting and self.decisions is not None:
            self.decisions.ready(instance.decision_id, instance.timings, instance.source, self.expire)
        while instance.waiting and instance.free > 0:
            self._dispatch(instance.waiting.popleft(), instance, instance.made_by, now)
        if not instance.live and instance.spec.version in self.draining:
            self.kill(instance, "draining")
        self._changed()

    async def _probe(self, instance: Instance) -> None:
        if instance.probe and instance.state is not State.GONE:
            await ask_guest(instance.clone, partial(self._on_frame, instance))

    def _failed(self, instance: Instance, status: str, detail: ErrorDetail) -> None:
        if instance.state is State.GONE:
            return  # given up while it was being prepared: whoever did that has told everybody
        waiting = list(instance.waiting)
        self.not_prepared[status] += 1
        log.warning(
            "instance.failed",
            version=instance.spec.version,
            status=status,
            error=detail.type
            if status == "init-failed"
            else f"{detail.type}: {detail.message}"[:500],  # a function may say anything
            decision_id=instance.decision_id,
            trace_id=waiting[0].request.trace_id if waiting else "",
            invocation_id=waiting[0].request.invocation_id if waiting else "",
        )
        instance.waiting.clear()
        self._drop(instance, f"{status}: {detail.type}: {detail.message}"[:500])
        for invocation in waiting:
            if invocation.start is StartKind.UNKNOWN:
                invocation.start = instance.made_by
            self._fail(invocation, status, detail)

    def _gone(self, instance: Instance, why: str) -> None:
        """Its sandbox died. Its own invocations fail, nothing else does."""
        self._drop(instance, why)

    def _drop(self, instance: Instance, why: str) -> None:
        """Takes an instance out of the books at once; ending its processes is the caller's next step."""
        if instance.state is State.GONE:
            return
        preparing = instance.state is State.PREPARING
        self.table.remove(instance)
        instance.detach()
        if preparing:
            self._preparer.hurry(instance)  # so that it learns at once that nobody wants it
        self.memory.give_back(instance.held_mb)
        self._preparer.release_code(instance.spec)
        if instance.decision_id and self.decisions is not None:
            self.decisions.lost(instance.decision_id, why)
        for invocation in [*instance.live.values(), *instance.waiting]:
            self._fail(invocation, "killed", ErrorDetail("InstanceKilled", why))
        instance.live.clear()
        instance.waiting.clear()
        self._changed()

    def kill(self, instance: Instance, why: str) -> None:
        """Gives an instance up now; its processes end in the background."""
        self._drop(instance, why)
        if instance.clone is not None:
            task = self._loop.create_task(self._end(instance, why))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _end(self, instance: Instance, why: str) -> None:
        assert instance.clone is not None
        instance.detach()
        try:
            await instance.clone.kill(why)
        except DriverError as error:
            log.error("instance.not_ended", version=instance.spec.version, error=str(error))

    def expire(self, decision_id: str) -> None:
        """A prewarmed instance stayed unused for its lifetime. It stays where it is wanted, but its decision has ended."""
        kept = next((one for one in self.table if one.decision_id == decision_id and self._held(one)), None)
        if kept is None:
            self.give_up(decision_id, "unused for its lifetime")
        elif self.decisions is not None:
            self.decisions.lost(decision_id, "unused for its lifetime; the instance stays, so many are wanted")
            kept.decision_id = ""

    def give_up(self, decision_id: str, why: str) -> None:
        """Ends the instance of a decision, unless an invocation has taken or adopted it."""
        for instance in self.table:
            if instance.decision_id == decision_id:
                if not instance.served and not instance.waiting:
                    self.kill(instance, why)
                return

    def sweep_idle(self, idle_s: float) -> None:
        """Gives up what has been idle for `idle_s`, or for as long as it is worth keeping; those of an open decision have a
        lifetime of their own. As many stay as planners want here."""
        now = time.monotonic()
        for instance in self.table.idle():
            floor, only = self.keeps.floor(instance.spec.version, now)
            if floor and len(self.table.of(instance.spec.version)) <= floor:
                continue
            if only and not self._decided(instance):
                self.ended_idle["wanted"] += 1
                self.kill(instance, f"{floor} are wanted here")
                continue
            worth_s = self.keeps.of(instance.spec.version, now)
            by_price = worth_s is not None and worth_s < idle_s
            if now - instance.idle_since < (worth_s if by_price and worth_s is not None else idle_s):
                continue
            if not self._decided(instance):
                self.ended_idle["price" if by_price else "lifetime"] += 1
                self.kill(instance, f"idle for {worth_s:.3g} s: not worth keeping longer" if by_price else "idle")

    def _decided(self, instance: Instance) -> bool:
        """Its decision has not ended."""
        return self.decisions is not None and instance.decision_id in self.decisions

    def _held(self, instance: Instance) -> bool:
        floor, _ = self.keeps.floor(instance.spec.version, time.monotonic())
        return not instance.served and 0 < len(self.table.of(instance.spec.version)) <= floor

    def cool(self, functions: set[str]) -> int:
        """Gives up every idle or preparing instance nobody waits for, of these FunctionIds."""
        chosen = [
            one
            for one in self.table
            if function_of(VersionId(one.spec.version)) in functions and not one.live and not one.waiting
        ]
        for instance in chosen:
            self.kill(instance, "cooled on request")
        return len(chosen)

    async def end_tenant(self, tenant: str) -> None:
        """Ends every instance of the tenant, whatever it does; returns when their processes are gone, after a bound at most."""
        others = set(self._tasks)
        for instance in [one for one in self.table if tenant_of(VersionId(one.spec.version)) == tenant]:
            self.kill(instance, "its tenant is gone")
        ending = self._tasks - others
        if ending:
            await asyncio.wait(ending, timeout=END_S)

    async def stop(self) -> None:
        self._stopping = True
        await self.end_all("the node stops")

    async def end_all(self, why: str) -> None:
        """Gives every instance up, whatever it does; returns when they are gone, 10 s at most."""
        for instance in list(self.table):
            self.kill(instance, why)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=10.0)


def _bounded(kind: str, message: str, stack: str) -> ErrorDetail:
    """What a guest says of an error, cut to what is worth carrying."""
    return ErrorDetail(kind[:200], message[:8192], stack[:65536])
