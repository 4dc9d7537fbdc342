"""Code that plans want on this node: kept in tier 1 until they are over, and brought ahead of its instances."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import structlog

from workers.ports import CodeTier, CodeUnavailable
from workers.rpc.messages import PrepareItem
from workers.versions import VersionSpec

AT_ONCE = 2
"""A planner that connects asks for everything. None takes a turn at the cores: those are for starts."""

log = structlog.get_logger(__name__)


class PlannedCode:
    """`keep` runs something in the background, for as long as the node serves."""

    def __init__(self, code: CodeTier, keep: Callable[[Coroutine[Any, Any, None]], None]) -> None:
        self._code = code
        self._keep = keep
        self._pinned: dict[str, VersionSpec] = {}  # by open decision
        self._turns = asyncio.Semaphore(AT_ONCE)

    def expect(self, item: PrepareItem, spec: VersionSpec) -> None:
        """What a plan wants keeps its place in tier 1 until the plan is over, and comes now when the instance is for later."""
        self._pinned[item.decision_id] = spec
        self._code.pin(spec)
        if item.delay_s > 0:
            self.bring(spec)

    def bring(self, spec: VersionSpec) -> None:
        """In the background, unless it is here."""
        if not self._code.held(spec):
            self._keep(self._bring(spec))

    async def _bring(self, spec: VersionSpec) -> None:
        try:
            async with self._turns:
                await self._code.bring_ahead(spec)
        except CodeUnavailable as error:
            log.warning("code.prefetch_failed", version=spec.version, error=str(error))

    def over(self, decision_id: str) -> None:
        """Its instance, if there is one, has a pin of its own."""
        spec = self._pinned.pop(decision_id, None)
        if spec is not None:
            self._code.unpin(spec)

    def close(self) -> None:
        for decision_id in list(self._pinned):
            self.over(decision_id)
