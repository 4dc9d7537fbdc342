"""Who hears what changes on this node: outcomes and counts as they move, or its heartbeat only."""

import asyncio
from collections.abc import Callable

from workers.rpc.connection import Connection
from workers.rpc.messages import DecisionUpdate, Inventory, Outcomes, Rpc

TELL_EVERY_S = 0.002
MOST_UPDATES = 10_000
ONCE_A_SECOND = 1  # the id of a SUBSCRIBE whose sender wants no more than the heartbeat


class Subscribers:
    """`changes` says what has moved since it was asked last (None: nothing), `whole` everything there is. A connection that does
    not keep up is left out of counts; it gets every outcome."""

    def __init__(self, changes: Callable[[], Inventory | None], whole: Callable[[], Inventory]) -> None:
        self._changes = changes
        self._whole = whole
        self._subscribers: set[Connection] = set()
        self._watchers: set[Connection] = set()  # hear the heartbeat only
        self._updates: list[DecisionUpdate] = []
        self._handle: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    def add(self, connection: Connection, how: int) -> None:
        """`how`: the id of its SUBSCRIBE. It is told everything now."""
        wanted, other = self._subscribers, self._watchers
        if how == ONCE_A_SECOND:
            wanted, other = other, wanted
        wanted.add(connection)
        other.discard(connection)
        self.heartbeat()

    def discard(self, connection: Connection) -> None:
        self._subscribers.discard(connection)
        self._watchers.discard(connection)

    def moved(self) -> None:
        """Counts may have changed: subscribers hear of it TELL_EVERY_S later at most."""
        if self._subscribers and self._handle is None:
            self._handle = self._loop.call_later(TELL_EVERY_S, self._tell)

    def decided(self, update: DecisionUpdate) -> None:
        """Kept while nobody is there to hear it, the newest MOST_UPDATES."""
        self._updates.append(update)
        del self._updates[:-MOST_UPDATES]
        self.moved()

    def heartbeat(self) -> None:
        """Everything, to all."""
        inventory = self._whole()
        for connection in (*self._subscribers, *self._watchers):
            if not connection.congested:
                connection.send(Rpc.INVENTORY, 0, inventory)

    def _tell(self) -> None:
        self._handle = None
        if self._updates:
            outcomes = Outcomes(self._updates)
            self._updates = []
            for connection in self._subscribers:
                connection.send(Rpc.OUTCOMES, 0, outcomes)
        inventory = self._changes()
        if inventory is not None:
            for connection in self._subscribers:
                if not connection.congested:
                    connection.send(Rpc.INVENTORY, 0, inventory)
