"""Function templates of a node: made in the background, handed out to starts, ended. Which: function_templates.py; how:
template_making.py."""

import asyncio
import contextlib
import time
from collections import Counter, OrderedDict
from collections.abc import Coroutine
from functools import partial
from typing import Any

import structlog

from graph.ids import VersionId, tenant_of
from workers.admission import MemoryLedger
from workers.function_templates import (
    CLONES,
    KNOWN,
    Candidate,
    Rules,
    Standing,
    choose,
    failed,
    least_first,
    outlived,
    wanted,
)
from workers.init_order import InitOrder
from workers.ports import CodeTier, Driver, DriverError, FunctionTemplate
from workers.sealing import Sealer
from workers.template_making import TemplateMaker
from workers.versions import VersionSpec

AT_ONCE = 2
"""Templates in the making, of two tenants: an init that hangs, or burns, holds up its own tenant's."""

LOOK_S = 5.0
END_S = 10.0
NO_MEMORY_RETRY_S = 20.0

log = structlog.get_logger(__name__)


class FunctionTemplates:
    """All methods run on the node's event loop. `memory` is shared with the instances: a template's is reserved in it."""

    def __init__(
        self, driver: Driver, code: CodeTier, sealer: Sealer, memory: MemoryLedger, order: InitOrder, rules: Rules
    ) -> None:
        self._driver, self._code, self._memory = driver, code, memory
        self._maker = TemplateMaker(driver, code, sealer, order)
        self.rules = rules
        self.cloned = 0
        self.refused: Counter[str] = Counter()  # by kind
        self._candidates: OrderedDict[str, Candidate] = OrderedDict()
        self._specs: dict[str, VersionSpec] = {}
        self._held: dict[str, FunctionTemplate] = {}
        self._nudge = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[None] | None = None
        self._making: dict[str, asyncio.Task[None]] = {}  # by tenant
        self._rests: dict[str, float] = {}  # tenants whose turn it is not until then, monotonic
        self._ending: set[asyncio.Task[None]] = set()
        self.busy_until = 0.0  # monotonic; the owner moves it ahead whenever a start is under way

    @property
    def standings(self) -> Counter[str]:
        return Counter(one.standing.value for one in self._candidates.values())

    @property
    def held_mb(self) -> int:
        return sum(one.memory_mb for one in self._candidates.values() if one.standing is Standing.HELD)

    def of(self, tenant: str) -> list[Candidate]:
        """What is known of the tenant's versions."""
        return [one for one in self._candidates.values() if tenant_of(VersionId(one.version)) == tenant]

    # -- starts

    def take(self, spec: VersionSpec) -> FunctionTemplate | None:
        """The version's template, if there is one to clone."""
        one = self._candidates.get(spec.version)
        if one is not None:
            one.used(time.monotonic())
        template = self._held.get(spec.version)
        if template is not None and one is not None:
            one.made += 1
            self.cloned += 1
            if one.made >= CLONES:
                self._nudge.set()
        return template

    def observed(self, spec: VersionSpec, init_ms: float) -> None:
        """An instance started without a template, and this is what its init took."""
        if self.rules.cap_mb <= 0 or self.rules.threshold_ms <= 0:
            return
        one = self._candidates.get(spec.version)
        if one is None:
            one = self._candidates[spec.version] = Candidate(
                spec.version, spec.memory_mb + self._driver.traits.template_beside_mb
            )
            one.used(time.monotonic())
            while len(self._candidates) > KNOWN:
                self.drop(next(iter(self._candidates)), "too many versions")
        self._specs[spec.version] = spec
        self._candidates.move_to_end(spec.version)
        one.init_ms = init_ms
        if one.standing is Standing.NONE and init_ms < self.rules.threshold_ms:
            one.reason = f"its init takes {init_ms:.0f} ms, under {self.rules.threshold_ms:g} ms"
        if wanted(one, self.rules, time.monotonic()):
            self._nudge.set()

    def broke(self, spec: VersionSpec, template: FunctionTemplate, reason: str) -> None:
        """A clone of it could not be had."""
        if self._held.get(spec.version) is template:
            log.warning("function_template.broke", version=spec.version, reason=reason[:500])
            self._lost(spec.version, template, reason)

    # -- the end of one

    def drop(self, version: str, why: str) -> None:
        """The version is no more: its template goes, and none is made."""
        one = self._candidates.pop(version, None)
        if one is not None:
            self._release(one, why)
        self._specs.pop(version, None)

    async def forget(self, tenant: str) -> None:
        """All of a tenant's; returns when their memory is free, after a bound at most."""
        for one in self.of(tenant):
            self.drop(one.version, "its tenant is gone")
        await self._settle()

    def give_way(self, needed_mb: int) -> None:
        """Frees memory for a request, the least worth first."""
        freed = 0
        for one in least_first(self._candidates.values(), time.monotonic()):
            if freed >= needed_mb:
                break
            freed += one.memory_mb
            self._release(one, "gave way to a request")

    def _release(self, one: Candidate, why: str) -> None:
        """Ends the template held; one being made sees for itself that it is not wanted."""
        template = self._held.pop(one.version, None)
        if template is None:
            return
        self._memory.give_back(one.memory_mb)
        one.memory_mb = one.made = 0
        one.standing, one.reason = Standing.NONE, why
        self._end_later(self._specs[one.version], template, why)

    def _end_later(self, spec: VersionSpec, template: FunctionTemplate, why: str) -> None:
        log.info("function_template.ended", version=spec.version, why=why)
        self._keep(self._end(spec, template, why))

    async def _end(self, spec: VersionSpec, template: FunctionTemplate, why: str) -> None:
        try:
            await template.end(why)
        except DriverError as error:
            log.error("function_template.not_ended", version=spec.version, error=str(error))
        finally:
            self._code.unpin(spec)

    def _lost(self, version: str, template: FunctionTemplate, why: str) -> None:
        """It ended by itself."""
        one = self._candidates.get(version)
        if one is None or self._held.get(version) is not template:
            return
        memory_mb = one.memory_mb
        self._release(one, why)
        if memory_mb:
            failed(one, f"it ended: {why}"[:500], False, time.monotonic())
        self._nudge.set()

    # -- making

    def start(self) -> None:
        if self.rules.cap_mb > 0 and self.rules.threshold_ms > 0:
            self._task = self._loop.create_task(self._make_all())

    async def stop(self) -> None:
        if self._task is not None:
            ending = [self._task, *self._making.values()]
            for task in ending:
                task.cancel()
            await asyncio.gather(*ending, return_exceptions=True)
        for version in list(self._candidates):
            self.drop(version, "the node stops")
        await self._settle()

    async def _settle(self) -> None:
        if self._ending:
            await asyncio.wait(self._ending, timeout=END_S)

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def _make_all(self) -> None:
        while True:
            now = time.monotonic()
            for one, why in outlived(self._candidates, now):
                self._release(one, why)
            self._rests = {tenant: until for tenant, until in self._rests.items() if until > now}
            passed_by = {*self._making, *self._rests}
            chosen = choose(self._candidates.values(), self.rules, now, passed_by) if len(self._making) < AT_ONCE else None
            if chosen is None:
                self._nudge.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min([LOOK_S, *(until - now for until in self._rests.values())])):
                        await self._nudge.wait()
            elif self.busy_until > now:
                await asyncio.sleep(self.busy_until - now)
            else:
                one, gone = chosen
                for other in gone:
                    self._release(other, f"gave way to {one.version}")
                self._making[self._specs[one.version].tenant] = self._loop.create_task(
                    self._take_turn(one, self._specs[one.version])
                )
                await asyncio.sleep(0)  # its memory counts from here on

    async def _take_turn(self, one: Candidate, spec: VersionSpec) -> None:
        """A tenant's turn; then it rests for as long as that took, so that others come in between."""
        began = time.monotonic()
        try:
            await self._make(one, spec)
        finally:
            ended = time.monotonic()
            del self._making[spec.tenant]
            self._rests[spec.tenant] = ended + ended - began
            self._nudge.set()

    async def _make(self, one: Candidate, spec: VersionSpec) -> None:
        """One of a tenant at a time: in the background, and yielding to whoever starts on demand."""
        replaced = self._held.get(one.version)
        if self._memory.missing(one.shape_mb, False) > 0 or not self._memory.reserve(one.shape_mb):
            one.reason, one.not_before = "no memory left on the node", time.monotonic() + NO_MEMORY_RETRY_S
            return
        reserved, held_mb = one.shape_mb, one.memory_mb
        if replaced is None:
            one.standing, one.memory_mb, one.reason = Standing.MAKING, one.shape_mb, ""
        self._code.pin(spec)
        template = None
        try:
            made = await self._maker.make(one, spec, lambda: len(self._making) == 1)
            template = made.template
        finally:
            if template is None:
                self._memory.give_back(reserved)
                self._code.unpin(spec)
        if template is None:
            self.refused[made.kind] += 1
            log.warning("function_template.refused", version=one.version, reason=made.why[:500])
            if replaced is not None:  # that one goes on; tried again after as many clones or hours
                one.made, one.born = 0, time.monotonic()
            else:
                failed(one, made.why[:1000], made.for_good, time.monotonic())
            return
        self._memory.give_back(reserved - template.memory_mb)
        template.on_gone = partial(self._lost, one.version, template)
        if self._candidates.get(one.version) is not one:
            self._memory.give_back(template.memory_mb)
            self._end_later(spec, template, "not wanted any more")
            return
        if replaced is not None and self._held.get(one.version) is replaced:
            self._memory.give_back(held_mb)
            self._end_later(spec, replaced, "used up: a fresh one has taken its place")
        self._held[one.version] = template
        one.standing, one.reason, one.memory_mb = Standing.HELD, "", template.memory_mb
        one.made, one.tries, one.born = 0, 0, time.monotonic()
        log.info("function_template.made", version=one.version, init_ms=round(template.init_ms), memory_mb=template.memory_mb)
