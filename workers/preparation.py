"""Getting one instance ready: code, clone and tunnel side by side, then lockdown and init."""

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from graph.calls import StartKind
from tracing.records import Timings
from workers.admission import ON_DEMAND, CoreGate
from workers.held_standbys import HeldStandbys, Taker
from workers.init_order import InitOrder
from workers.instances import Instance, State
from workers.ports import (
    Attachment,
    Clone,
    CodeTier,
    Driver,
    DriverError,
    Fetched,
    FunctionTemplate,
    InitFailed,
    InitReport,
    Specialisation,
)
from workers.sealing import Sealer
from workers.standbys import StandbyPool
from workers.templating import FunctionTemplates
from workers.tunnelling import Tunnels, needs_tunnel
from workers.versions import VersionSpec

INIT_TIMEOUT_S = 60.0
NO_CODE = Fetched((), "")  # a function template has it
FETCHES = 16
"""Versions whose code is brought at once, those that requests wait for first."""


class GivenUp(DriverError):
    """Nobody wants the instance any more; what is left to do for it is left out."""


class Preparer:
    """Clones the version's function template; else takes a standby or clones the tenant's template, brings the code and
    specialises. Knows nothing of who asked."""

    def __init__(
        self,
        driver: Driver,
        standbys: StandbyPool,
        held: HeldStandbys,
        gate: CoreGate,
        order: InitOrder,
        code: CodeTier,
        sealer: Sealer,
        templates: FunctionTemplates,
        tunnels: Tunnels,
    ) -> None:
        self._driver = driver
        self._order = order
        self._standbys = standbys
        self._held = held
        self._gate = gate
        self._fetches = CoreGate(FETCHES, yielding=False)
        self._code = code
        self._sealer = sealer
        self.templates = templates
        self.tunnels = tunnels

    async def prepare(self, instance: Instance, priority: float) -> None:
        """Fills in the instance's clone, attachment, made_by and timings. On any error nothing is left of them.

        Raises CodeUnavailable, NetworkUnavailable, DriverError (InitFailed and GivenUp among them), SealError, TimeoutError.
        """
        template = self.templates.take(instance.spec)
        if template is not None:
            try:
                await self._prepare(instance, priority, template)
            except (InitFailed, GivenUp):
                raise
            except DriverError as error:  # it may have been killed, or be used up: a start of the other kind does as well
                self.templates.broke(instance.spec, template, str(error))
            else:
                return
        await self._prepare(instance, priority, None)
        self.templates.observed(instance.spec, instance.timings.init)

    async def _prepare(self, instance: Instance, priority: float, template: FunctionTemplate | None) -> None:
        _check_wanted(instance)
        began = time.perf_counter()
        spec = instance.spec
        fetching = None
        if template is None and not self._code.held(spec):  # it comes while the clone is made
            fetching = asyncio.ensure_future(self._fetch(instance, priority))
            fetching.add_done_callback(_seen)
        attaching: asyncio.Future[tuple[Attachment, float] | None] | None = None
        clone: Clone | None = None
        try:
            clone = await self._clone(instance, priority, template)
            instance.clone = clone
            cloned = time.perf_counter()
            if needs_tunnel(spec):  # it is attached while its code comes and others have their turn
                attaching = asyncio.ensure_future(self.tunnels.attach(spec, clone))
                attaching.add_done_callback(_seen)
            code = NO_CODE
            if template is None:
                code = await fetching if fetching is not None else await self._code.fetch(spec)
            fetched = time.perf_counter()
            _check_wanted(instance)
            if instance.decision_id and not instance.adopted:
                await self._order.turn(instance, priority)
                _check_wanted(instance)
                clone.speculative(not instance.adopted)
            turned = time.perf_counter()
            attached = await attaching if attaching is not None else None
            _check_wanted(instance)
            if attached is not None:
                instance.attachment = attached[0]
            report = await self._init(clone, instance, code.folders)
        except BaseException:
            for begun in (fetching, attaching):
                if begun is not None:
                    begun.cancel()
            await _detach(attaching)
            instance.attachment = None
            if clone is not None:
                await clone.kill("preparing failed")
            raise
        if instance.decision_id:
            clone.speculative(False)
        net_ms = attached[1] if attached is not None else 0.0
        code_ms, queue_ms = (fetched - cloned) * 1000, (turned - fetched) * 1000
        beside_code_ms = max(0.0, net_ms - code_ms)  # what was waited for at once counts once, as the tunnel's
        instance.timings = Timings(
            queue=max(0.0, queue_ms - beside_code_ms),
            clone=(cloned - began) * 1000,
            code=max(0.0, code_ms - net_ms) + report.attach_ms,
            net=net_ms,
            init=report.init_ms,
            code_from=code.source,
        )

    def keep_code(self, spec: VersionSpec) -> None:
        """An instance of it is about to be here, or a plan wants one; as often as that, `release_code` follows."""
        self._code.pin(spec)

    def release_code(self, spec: VersionSpec) -> None:
        self._code.unpin(spec)

    def hurry(self, instance: Instance) -> None:
        """A request waits for it now, or nobody wants it any more: what it is queued for comes at once."""
        self._gate.hurry(instance)
        self._fetches.hurry(instance)
        self._order.hurry(instance)

    async def _init(self, clone: Clone, instance: Instance, layers: Sequence[Path]) -> InitReport:
        spec = instance.spec
        work = Specialisation(
            spec.version,
            spec.handler,
            spec.kind,
            spec.concurrency,
            instance.memory_mb,
            tuple(layers),
            self._sealer.open(spec.environment),
        )
        self._order.began(instance, clone.cpu)
        try:
            return await clone.specialise(work, INIT_TIMEOUT_S)
        finally:
            self._order.ended(instance)

    async def _clone(self, instance: Instance, priority: float, template: FunctionTemplate | None) -> Clone:
        spec = instance.spec
        if template is not None:
            instance.made_by = StartKind.COLD
            instance.source = "template"
            place = await self._enter(self._gate, instance, priority)
            try:
                return await template.clone(instance.memory_mb)
            finally:
                self._gate.leave(place)
        standby = await self._standby(instance, priority)
        if standby is not None:
            instance.made_by, instance.source = StartKind.STANDBY, "standby"
            return standby
        instance.made_by, instance.source = StartKind.COLD, "clone"
        place = await self._enter(self._gate, instance, priority)
        try:
            return await self._driver.clone(spec.tenant, instance.memory_mb)
        finally:
            self._gate.leave(place)

    async def _standby(self, instance: Instance, priority: float) -> Clone | None:
        """Its run's own first, then one that nobody spoke for; for a request one that another run may not need after all."""
        tenant, memory_mb = instance.spec.tenant, instance.memory_mb
        for_id = instance.waiting[0].request.invocation_id if instance.waiting else ""
        by = Taker(for_id, instance.spec.version)
        own = await self._held.take(tenant, memory_mb, instance.trace_id, by)
        if own is not None:
            return own
        waiting = self._standbys.take(tenant, memory_mb)
        if waiting is None and (instance.adopted or priority <= ON_DEMAND):
            return self._held.take_any(tenant, memory_mb, by)
        return waiting

    async def _fetch(self, instance: Instance, priority: float) -> Fetched:
        """Holds no core: most of it is waiting, and while the origin stands still whose code is here must get on. The code tier
        itself sees to it that no more chunks are unpacked at once than there are cores."""
        place = await self._enter(self._fetches, instance, priority)
        try:
            return await self._code.fetch(instance.spec)
        finally:
            self._fetches.leave(place)

    async def _enter(self, gate: CoreGate, instance: Instance, priority: float) -> float:
        """A request may have adopted the instance before this step came to the gate, and nobody may want it after. What the gate
        wants back."""
        place = await gate.enter(ON_DEMAND if instance.adopted else priority, instance)
        if instance.state is State.GONE:
            gate.leave(place)
            raise GivenUp("given up before its turn")
        return place


def _check_wanted(instance: Instance) -> None:
    if instance.state is State.GONE:
        raise GivenUp("given up while it was being prepared")


async def _detach(attaching: "asyncio.Future[tuple[Attachment, float] | None] | None") -> None:
    """Whatever comes of it: nothing stays attached that nobody wants."""
    if attaching is None:
        return
    await asyncio.wait({attaching})
    if not attaching.cancelled() and attaching.exception() is None:
        attached = attaching.result()
        if attached is not None:
            attached[0].detach()


def _seen(begun: "asyncio.Future[Any]") -> None:
    """When the clone fails as well, its error is the one that is told."""
    if not begun.cancelled():
        begun.exception()
