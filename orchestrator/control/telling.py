"""Tells each node that joined which members may speak to it: at once when it is reached, and whenever that changes.

Nodes have no routes, and must not believe a gateway or planner about gateways and planners; control's word
is the authority's own.
"""

import asyncio

import structlog

from orchestrator.control.peers import Peer, Roster
from workers.rpc.connection import Connection, RpcError
from workers.rpc.messages import Caller, Callers, Rpc

TELL_S = 1.0
AT_ONCE = 64

log = structlog.get_logger(__name__)


class Telling:
    """`run` never returns."""

    def __init__(self, roster: Roster) -> None:
        self._roster = roster
        self._told: dict[Peer, tuple[Connection, list[Caller]]] = {}
        self._turns = asyncio.Semaphore(AT_ONCE)

    async def run(self) -> None:
        while True:
            try:
                await self._round()
            except Exception:  # whatever it was: nodes that are told nothing more would let removed members in
                log.exception("callers.not_told")
            await asyncio.sleep(TELL_S)

    async def _round(self) -> None:
        nodes, callers = await self._roster.members()
        if callers is None:
            return
        self._told = {node: self._told[node] for node in nodes if node in self._told}
        await asyncio.gather(*(self._tell(node, callers) for node in nodes))

    async def _tell(self, node: Peer, callers: list[Caller]) -> None:
        async with self._turns:
            try:
                connection = await node.connected()
            except (RpcError, TimeoutError) as error:
                log.debug("callers.node_away", node=node.name, reason=str(error))
                return
            before = self._told.get(node)
            if before is None or before[0] is not connection or before[1] != callers:
                connection.send(Rpc.CALLERS, 0, Callers(callers))
                self._told[node] = (connection, callers)
