"""What the gateway tells planners: triggers first, records behind them; bounded, dropped and counted."""

import asyncio
import time
from typing import Any

import structlog

from tracing.records import InvocationRecord
from workers.rpc.connection import Connection
from workers.rpc.messages import Demand, Records, Rpc, TriggerEvent, Triggers

TRIGGER_GAP_S = 0.002  # the first trigger leaves at once, those within the gap together
RECORD_GAP_S = 0.05
LIMIT = 20_000
BATCH = 2_000

log = structlog.get_logger(__name__)


class Reports:
    """Owner of the gateway's RPC connections; every subscriber gets everything from its subscription on.

    With no subscriber records wait (up to LIMIT, oldest dropped) for one to come; triggers do not, they would be stale.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._subscribers: set[Connection] = set()
        self._triggers: list[TriggerEvent] = []
        self._records: list[InvocationRecord] = []
        self._trigger_timer: asyncio.TimerHandle | None = None
        self._record_timer: asyncio.TimerHandle | None = None
        self._triggers_sent_at = 0.0
        self.dropped = 0
        self.triggers_unheard = 0
        self.triggers_congested = 0

    @property
    def subscribers(self) -> int:
        return len(self._subscribers)

    def trigger(self, event: TriggerEvent) -> None:
        if not self._subscribers:
            self.triggers_unheard += 1
            return
        self._triggers.append(event)
        if self._trigger_timer is not None:
            return
        since = time.monotonic() - self._triggers_sent_at
        if since >= TRIGGER_GAP_S:
            self._send_triggers()
        else:
            self._trigger_timer = self._loop.call_later(TRIGGER_GAP_S - since, self._send_triggers)

    def demand(self, message: Demand) -> None:
        """What was since the last time, also when it was nothing: silence is an answer."""
        for subscriber in self._subscribers:
            if not subscriber.congested:
                subscriber.send(Rpc.DEMAND, 0, message)

    def record(self, record: InvocationRecord) -> None:
        self._records.append(record)
        if len(self._records) > LIMIT:
            del self._records[: LIMIT // 10]
            self.dropped += LIMIT // 10
        if self._record_timer is None and self._subscribers:
            self._record_timer = self._loop.call_later(RECORD_GAP_S, self._send_records)

    def _send_triggers(self) -> None:
        self._trigger_timer = None
        self._triggers_sent_at = time.monotonic()
        message = Triggers(self._triggers)
        self._triggers = []
        for subscriber in self._subscribers:
            if subscriber.congested:
                self.triggers_congested += len(message.events)
            else:
                subscriber.send(Rpc.TRIGGERS, 0, message)

    def _send_records(self) -> None:
        self._record_timer = None
        if not self._subscribers:
            return
        if any(one.congested for one in self._subscribers):
            self._record_timer = self._loop.call_later(RECORD_GAP_S, self._send_records)
            return
        batch, self._records = self._records[:BATCH], self._records[BATCH:]
        message = Records(batch, self.dropped)
        for subscriber in self._subscribers:
            subscriber.send(Rpc.RECORDS, 0, message)
        if self._records:
            self._record_timer = self._loop.call_later(0.001, self._send_records)

    def flush(self) -> None:
        """Hands out everything at once; for the end of the process."""
        for timer in (self._trigger_timer, self._record_timer):
            if timer is not None:
                timer.cancel()
        self._send_triggers()
        while self._records and self._subscribers:
            self._send_records()
            if self._record_timer is not None:
                self._record_timer.cancel()

    def on_member_gone(self, name: str) -> None:
        """It hears nothing more."""
        for connection in list(self._subscribers):
            if connection.certified is not None and connection.certified.name == name:
                connection.drop("it is no member of this cluster any more")

    def on_open(self, connection: Connection) -> None:
        log.info("planner.connected", peer=connection.peer.name)

    def on_lost(self, connection: Connection, why: str) -> None:
        self._subscribers.discard(connection)

    def on_message(self, connection: Connection, kind: int, ident: int, message: Any, body: bytes) -> None:
        if kind == Rpc.SUBSCRIBE:
            self._subscribers.add(connection)
            if self._records and self._record_timer is None:
                self._record_timer = self._loop.call_later(0, self._send_records)
