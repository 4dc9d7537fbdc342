"""Getting one instance ready: code, clone and (later) tunnel side by side, then lockdown and init."""

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

from graph.calls import StartKind
from tracing.records import Timings
from workers.admission import CoreGate
from workers.instances import Instance
from workers.ports import Clone, CodeTier, Driver, Specialisation
from workers.sealing import Sealer
from workers.standbys import StandbyPool

INIT_TIMEOUT_S = 60.0


class Preparer:
    """Takes a standby or clones the template, brings the code, specialises. Knows nothing of who asked."""

    def __init__(self, driver: Driver, standbys: StandbyPool, gate: CoreGate, code: CodeTier, sealer: Sealer) -> None:
        self._driver = driver
        self._standbys = standbys
        self._gate = gate
        self._code = code
        self._sealer = sealer

    async def prepare(self, instance: Instance, priority: float) -> None:
        """Fills in the instance's clone, made_by and timings. On any error nothing is left of the clone.

        Raises CodeUnavailable, DriverError (InitFailed among them), SealError, TimeoutError.
        """
        began = time.perf_counter()
        spec = instance.spec
        fetching = None if self._code.held(spec) else asyncio.ensure_future(self._fetch(instance, priority))
        clone: Clone | None = None
        try:
            clone = await self._clone(instance, priority)
            instance.clone = clone
            cloned = time.perf_counter()
            layers = await fetching if fetching is not None else await self._code.fetch(spec)
            fetched = time.perf_counter()
            if instance.decision_id and not instance.adopted:
                clone.speculative(True)
            report = await clone.specialise(
                Specialisation(
                    spec.version,
                    spec.handler,
                    spec.kind,
                    spec.concurrency,
                    instance.memory_mb,
                    tuple(layers),
                    self._sealer.open(spec.environment),
                ),
                INIT_TIMEOUT_S,
            )
        except BaseException:
            if fetching is not None:
                fetching.cancel()
            if clone is not None:
                await clone.kill("preparing failed")
            raise
        if instance.decision_id:
            clone.speculative(False)
        instance.timings = Timings(
            clone=(cloned - began) * 1000,
            code=(fetched - cloned) * 1000 + report.attach_ms,
            init=report.init_ms,
        )

    async def _clone(self, instance: Instance, priority: float) -> Clone:
        spec = instance.spec
        standby = self._standbys.take(spec.tenant, instance.memory_mb)
        if standby is not None:
            instance.made_by = StartKind.STANDBY
            return standby
        instance.made_by = StartKind.COLD
        await self._gate.enter(priority, instance)
        try:
            return await self._driver.clone(spec.tenant, instance.memory_mb)
        finally:
            self._gate.leave()

    async def _fetch(self, instance: Instance, priority: float) -> Sequence[Path]:
        """Unpacking holds a core; while the code is only on its way nobody's slot is taken, but the two are one call here."""
        await self._gate.enter(priority, instance)
        try:
            return await self._code.fetch(instance.spec)
        finally:
            self._gate.leave()
