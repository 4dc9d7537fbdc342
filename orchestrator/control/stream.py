"""Decisions as server-sent events: the planner is asked again and again for what changed since the last answer."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from orchestrator.control.peers import Planner
from orchestrator.control.problems import Problem

POLL_S = 0.25
AWAY_S = 2.0
HEARTBEAT_S = 10.0
MAX_STREAMS = 50
BATCH = 500


class DecisionStream:
    """`stopping` is asked before each wait: a server that shuts down ends its streams."""

    def __init__(self, planner: Planner, stopping: Callable[[], bool]) -> None:
        self._planner = planner
        self._stopping = stopping
        self._open = 0

    async def start(self, tenant: str, function: str, run: str, after: int | None) -> AsyncIterator[bytes]:
        """Events from now on, or behind revision `after`. Raises Problem: planner away, too many streams."""
        if self._open >= MAX_STREAMS:
            raise Problem(429, f"{MAX_STREAMS} streams are open already", headers={"Retry-After": "10"})
        if after is None:
            answer = await self._ask(tenant, function, run, limit=1)
            after = int(answer["revision"])
        return self._events(tenant, function, run, after)

    async def _events(self, tenant: str, function: str, run: str, after: int) -> AsyncIterator[bytes]:
        self._open += 1
        try:
            yield b": decisions follow\n\n"
            said = time.monotonic()
            while not self._stopping():
                pause = POLL_S
                try:
                    answer = await self._ask(tenant, function, run, after=after, limit=BATCH)
                except Problem:
                    answer, pause = {"decisions": []}, AWAY_S
                for decision in answer["decisions"]:
                    after = max(after, int(decision["revision"]))
                    yield f"id: {decision['revision']}\ndata: {json.dumps(decision)}\n\n".encode()
                    said = time.monotonic()
                if answer.get("revision", after) < after:
                    after = int(answer["revision"])  # the planner began anew
                if time.monotonic() - said > HEARTBEAT_S:
                    yield b": still here\n\n"
                    said = time.monotonic()
                if len(answer["decisions"]) < BATCH:
                    await asyncio.sleep(pause)
        finally:
            self._open -= 1

    async def _ask(self, tenant: str, function: str, run: str, **more: Any) -> dict[str, Any]:
        answer = await self._planner.ask("decisions", tenant=tenant, function=function, run=run, **more)
        return dict(json.loads(answer))
