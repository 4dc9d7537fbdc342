"""The instances of a node: begun, prepared, given up, ended. What runs in them is workers.execution's."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Protocol

import structlog

from graph.ids import VersionId, tenant_of
from workers.admission import MemoryLedger
from workers.framing import Frame
from workers.instances import Instance, InstanceTable, State
from workers.invocations import Invocation, bounded
from workers.ports import CodeUnavailable, DriverError, InitFailed, NetworkUnavailable
from workers.preparation import Preparer
from workers.probing import probe as ask_guest
from workers.rpc.messages import ErrorDetail
from workers.sealing import SealError
from workers.tallies import StartTimes
from workers.versions import VersionSpec

END_S = 10.0
UNAVAILABLE: dict[type[Exception], str] = {
    CodeUnavailable: "code-unavailable",
    NetworkUnavailable: "network-unavailable",
}

log = structlog.get_logger(__name__)


class Occupants(Protocol):
    """Who uses the instances. Called on the node's loop; none of these may block."""

    def heard(self, instance: Instance, frame: Frame) -> None:
        """Its guest said something; of one with a probe, also before it is ready."""

    def wrote(self, instance: Instance, stream: str, text: bytes) -> None:
        """Its sandbox wrote to `out` or `err`, past the guest's runtime."""

    def ready(self, instance: Instance, now: float) -> None:
        """It takes invocations from now on: those in `waiting` first."""

    def not_ready(self, instance: Instance, waiting: Sequence[Invocation], status: str, detail: ErrorDetail) -> None:
        """It could not be prepared, and is gone: these waited for it."""

    def lost(self, instance: Instance, why: str) -> None:
        """It is gone, whatever it was doing. Both `live` and `waiting` are emptied after this."""


class Lifecycle:
    """Begins and ends instances. `changed` is called whenever counts may have moved, `started` when a start begins."""

    def __init__(
        self,
        preparer: Preparer,
        memory: MemoryLedger,
        occupants: Occupants,
        changed: Callable[[], None],
        started: Callable[[], None],
    ) -> None:
        self.table = InstanceTable()
        self.memory = memory
        self.prepared = StartTimes()  # instances that became ready
        self.not_prepared: Counter[str] = Counter()  # those that did not, by status
        self._preparer = preparer
        self._occupants = occupants
        self._changed = changed
        self._started = started
        self._loop = asyncio.get_running_loop()
        self._stopping = False
        self._tasks: set[asyncio.Task[None]] = set()

    # -- beginning

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
        self._keep(self._prepare(instance, priority, victims))
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
                bounded(found.get("type", "Error"), found.get("message", ""), found.get("stack", "")),
            )
        except (CodeUnavailable, NetworkUnavailable) as error:
            status, detail = UNAVAILABLE[type(error)], bounded(type(error).__name__, str(error), "")
        except TimeoutError:
            status, detail = "init-failed", ErrorDetail("InitTimeout", "importing the handler took too long")
        except (DriverError, SealError, OSError) as error:
            status, detail = "killed", bounded(type(error).__name__, str(error), "")
        except Exception as error:
            # an instance that stays "preparing" would hold its memory and its waiters for ever
            log.exception("instance.preparing_broke", version=instance.spec.version)
            status, detail = "killed", bounded(type(error).__name__, str(error), "")
        if status:
            self._failed(instance, status, detail)
            return
        if instance.state is State.GONE:  # given up while it was being prepared
            await self._end(instance, "given up")
            return
        assert instance.clone is not None
        instance.clone.on_frame = partial(self._occupants.heard, instance)
        instance.clone.on_output = partial(self._occupants.wrote, instance)
        instance.clone.on_exit = partial(self._drop, instance)
        now = time.monotonic()
        self.table.ready(instance, now)
        self.prepared.add(instance.made_by, instance.timings)
        self._occupants.ready(instance, now)
        self._changed()

    async def _probe(self, instance: Instance) -> None:
        if instance.probe and instance.state is not State.GONE:
            await ask_guest(instance.clone, partial(self._occupants.heard, instance))

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
        self._occupants.not_ready(instance, waiting, status, detail)

    def hurry(self, instance: Instance) -> None:
        """A request has adopted it: what it is queued for comes at once, and it runs as on demand."""
        self._preparer.hurry(instance)
        if instance.clone is not None:
            instance.clone.speculative(False)

    # -- ending

    def _drop(self, instance: Instance, why: str) -> None:
        """Takes an instance out of the books at once; ending its processes is the caller's next step, where they live."""
        if instance.state is State.GONE:
            return
        preparing = instance.state is State.PREPARING
        self.table.remove(instance)
        instance.detach()
        if preparing:
            self._preparer.hurry(instance)  # so that it learns at once that nobody wants it
        self.memory.give_back(instance.held_mb)
        self._preparer.release_code(instance.spec)
        self._occupants.lost(instance, why)
        instance.live.clear()
        instance.waiting.clear()
        self._changed()

    def kill(self, instance: Instance, why: str) -> None:
        """Gives an instance up now; its processes end in the background."""
        self._drop(instance, why)
        if instance.clone is not None:
            self._keep(self._end(instance, why))

    async def _end(self, instance: Instance, why: str) -> None:
        assert instance.clone is not None
        instance.detach()
        try:
            await instance.clone.kill(why)
        except DriverError as error:
            log.error("instance.not_ended", version=instance.spec.version, error=str(error))

    async def end_tenant(self, tenant: str) -> None:
        """Ends every instance of the tenant, whatever it does; returns when their processes are gone, after a bound at most."""
        others = set(self._tasks)
        for instance in [one for one in self.table if tenant_of(VersionId(one.spec.version)) == tenant]:
            self.kill(instance, "its tenant is gone")
        ending = self._tasks - others
        if ending:
            await asyncio.wait(ending, timeout=END_S)

    async def stop(self) -> None:
        """`end_all`, and none begins any more."""
        self._stopping = True
        await self.end_all("the node stops")

    async def end_all(self, why: str) -> None:
        """Gives every instance up, whatever it does; returns when their processes are gone, after a bound at most."""
        for instance in list(self.table):
            self.kill(instance, why)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=END_S)

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
