"""One end of a link: a TLS connection that carries the streams of one Vpc between a node and a proxy."""

import asyncio
from collections.abc import Callable
from typing import Protocol

import msgspec
import structlog

from workers.framing import HEADER, Frame, FrameError, encode
from workers.network.portable.credit import Budget
from workers.network.portable.secured import Secured
from workers.network.portable.streams import Flow, Full, Stream
from workers.network.portable.words import CREDIT, LAST_STREAM, MAX_STREAMS, Kind, LinkError, Open, Reason, decode, parser
from workers.rpc.transport import NotTrusted, Peer

HELLO_TIMEOUT_S = 5.0
MAX_WAITING = 4 << 20
"""A peer that lets answers it caused pile up to this is cut off."""

PING_S, IDLE_PING_S = 0.2, 2.0
SUSPECT_S = 0.5
"""Nothing heard for so long after a ping: new streams go elsewhere, those that run stay."""

SILENT_S, IDLE_SILENT_S = 3.0, 8.0
"""Nothing heard for so long: the link is lost."""

_DATA = int(Kind.DATA)
_pack = HEADER.pack

log = structlog.get_logger(__name__)


class Owner(Protocol):
    """Whose end it is."""

    def on_secured(self, link: "Link", peer: Peer) -> None:
        """TLS stands, the certificate is good. Raises NotTrusted."""

    def on_word(self, link: "Link", kind: Kind, ident: int, meta: bytes) -> None:
        """HELLO, WELCOME, SPEC, CLOSING or OPEN came. Raises LinkError."""

    def on_lost(self, link: "Link", why: str) -> None:
        """Called once; every stream has been told."""


class Link:
    """The reader of one connection. `carried`: streams and flows by id. `waiting`: those that found it congested. `suspect`: it
    has been silent for too long to begin something on it. `up`: hello and welcome were said; `generation`, `source`: that
    the proxy named last."""

    def __init__(self, owner: Owner, budget: Budget, pings: bool) -> None:
        """`pings`: this side asks whether the other is there (the node's does); the other answers, and gives up later."""
        self.carried: dict[int, Stream | Flow] = {}
        self.waiting: dict[int, Stream] = {}
        self.congested = False
        self.suspect = False
        self.up = False
        self.quick = False
        self.last = 0
        self.generation = 0
        self.source = ""
        self.closing = ""
        self.why = ""
        self._owner = owner
        self._budget = budget
        self._pings = pings
        self._parser = parser()
        self._empty = asyncio.Event()
        self._connection: Secured | None = None
        self._loop = asyncio.get_running_loop()
        self._heard = self._ticked = self._loop.time()
        self._timer: asyncio.TimerHandle = self._loop.call_later(HELLO_TIMEOUT_S, self._tick)

    # -- life

    def connection_made(self, connection: Secured) -> None:
        self._connection = connection
        try:
            self._owner.on_secured(self, connection.peer)
        except NotTrusted as error:
            self.drop(str(error))

    def opened(self) -> None:
        """Hello and welcome were said: from now on it is watched."""
        self.up = True
        self._heard = self._ticked = self._loop.time()
        self._again()

    def connection_lost(self, exc: Exception | None) -> None:
        self.drop(str(exc) if exc else "the peer closed the connection")

    def drop(self, why: str) -> None:
        """Ends it now, with all it carries. Idempotent."""
        if self.why:
            return
        self.why, self.up = why or "lost", False
        self._timer.cancel()
        if self._connection is not None:
            self._connection.abort()
        for carried in list(self.carried.values()):
            carried.lost(self.why)
        self._owner.on_lost(self, self.why)

    def hurry(self, on: bool) -> None:
        """Something depends on it: it is to be known within a second when the peer is gone."""
        if on != self.quick:
            self.quick = on
            if on and self.up:
                self._heard = self._ticked = self._loop.time()
                self.send(Kind.PING)
                self._again()

    def _again(self) -> None:
        self._timer.cancel()
        self._timer = self._loop.call_later(PING_S if self.quick else IDLE_PING_S, self._tick)

    def _tick(self) -> None:
        now = self._loop.time()
        if not self.up:
            self.drop("no hello within the time limit")
            return
        every = PING_S if self.quick else IDLE_PING_S
        if now - self._ticked > 2 * every + PING_S:  # this process was held up, and may have the answers unread
            self._heard = max(self._heard, now - every)
        self._ticked = now
        silent = now - self._heard
        if silent > (SILENT_S if self.quick else IDLE_SILENT_S) * (1 if self._pings else 4):
            self.drop(f"the peer has been silent for {silent:.1f} s")
            return
        if self._pings:
            self.suspect = self.quick and silent > SUSPECT_S
            if self.suspect:
                for carried in list(self.carried.values()):
                    carried.give_up("the proxy is silent")
            self.send(Kind.PING)
        self._again()

    # -- out

    def send(self, kind: Kind, ident: int = 0, meta: bytes = b"", body: bytes = b"") -> None:
        """Queues one frame; nothing happens on a lost link."""
        if self._connection is None or self.why:
            return
        self._connection.write(encode(kind, ident, meta, body))
        if self.congested and self._connection.waiting > MAX_WAITING:
            self._loop.call_soon(self.drop, "the peer does not read its answers")

    def say(self, kind: Kind, ident: int, word: msgspec.Struct) -> None:
        self.send(kind, ident, msgspec.msgpack.encode(word))

    def send_data(self, ident: int, chunk: bytes) -> None:
        """As `send` does, by the fewest steps: for the bytes of a stream on a link that is not lost."""
        if self._connection is not None:
            self._connection.write(_pack(_DATA, 0, 0, ident, 0, len(chunk)) + chunk)

    def send_credit(self, ident: int, amount: int) -> None:
        self.send(Kind.CREDIT, ident, CREDIT.pack(amount))

    def pause_writing(self) -> None:
        self.congested = True

    def resume_writing(self) -> None:
        self.congested = False
        waiting, self.waiting = self.waiting, {}
        for stream in waiting.values():  # who has waited longest first; it is at the end when it has to wait again
            stream.go_on()

    # -- streams

    def open(self, to: Open, answered: Callable[[Reason | None], None]) -> Stream:
        """The node's side: asks for a stream. Raises Full."""
        stream = Stream(self, self._next(), to, self._budget, answered)
        self.carried[stream.ident] = stream
        self.say(Kind.OPEN, stream.ident, to)
        return stream

    def open_flow(self, to: Open, on_datagram: Callable[[bytes], None], on_end: Callable[[], None]) -> Flow:
        """The node's side: asks for a flow; datagrams may follow at once. Raises Full, also while the link is behind: a function
        may begin as many as it likes, and they must not pile up."""
        if self.congested:
            raise Full("the link is behind")
        flow = Flow(self, self._next(), to, on_datagram, on_end)
        self.carried[flow.ident] = flow
        self.say(Kind.OPEN, flow.ident, to)
        return flow

    def _next(self) -> int:
        if len(self.carried) >= MAX_STREAMS or self.last >= LAST_STREAM:
            raise Full(f"{len(self.carried)} streams are open on this link")
        self.last += 1
        return self.last

    def forget(self, ident: int) -> None:
        self.carried.pop(ident, None)
        self.waiting.pop(ident, None)
        if not self.carried:
            self._empty.set()

    async def drained(self) -> None:
        """Waits until it carries nothing."""
        while self.carried:
            self._empty.clear()
            await self._empty.wait()

    # -- in

    def data_received(self, data: bytes) -> None:
        self._heard = self._loop.time()
        self.suspect = False
        try:
            if (ident := self._parser.lone(data, _DATA)) and isinstance(stream := self.carried.get(ident), Stream):
                stream.on_data(data[HEADER.size :])  # what most reads are, by the fewest steps
                return
            for frame in self._parser.feed(data):
                self._take(frame)
                if self.why:
                    return
        except (LinkError, FrameError) as error:
            self.drop(f"protocol error: {error}")
        except Exception as error:  # whatever else a peer can provoke ends its link only
            log.exception("link.failed")
            self.drop(f"protocol error: {type(error).__name__}")

    def _take(self, frame: Frame) -> None:
        kind, ident = frame.kind, frame.id
        if kind == Kind.PING:
            self.send(Kind.PONG)
            return
        if kind == Kind.PONG:
            return
        if kind in (Kind.HELLO, Kind.WELCOME, Kind.SPEC, Kind.CLOSING, Kind.OPEN):
            self._owner.on_word(self, Kind(kind), ident, frame.meta)
            return
        if not self.up or ident == 0 or ident > self.last or kind > Kind.DATAGRAM:
            raise LinkError(f"frame kind {kind} for stream {ident}, which does not exist")
        carried = self.carried.get(ident)
        if carried is None:
            return  # it ended here while this was under way
        if isinstance(carried, Stream):
            self._for_stream(carried, frame)
        else:
            self._for_flow(carried, frame)

    def _for_stream(self, stream: Stream, frame: Frame) -> None:
        kind = frame.kind
        if kind == Kind.DATA:
            stream.on_data(frame.body)
        elif kind == Kind.CREDIT:
            if len(frame.meta) != CREDIT.size:
                raise LinkError("credit without an amount")
            stream.on_credit(CREDIT.unpack(frame.meta)[0])
        elif kind == Kind.EOF:
            stream.on_eof()
        elif kind == Kind.RESET:
            stream.on_reset()
        elif kind in (Kind.ACCEPTED, Kind.REFUSED):
            stream.on_answer(decode(frame.meta, Reason) if kind == Kind.REFUSED else None)
        else:
            raise LinkError(f"frame kind {kind} for a stream")

    def _for_flow(self, flow: Flow, frame: Frame) -> None:
        kind = frame.kind
        if kind == Kind.DATAGRAM:
            flow.on_datagram(frame.body)
        elif kind == Kind.RESET:
            flow.on_reset()
        elif kind in (Kind.ACCEPTED, Kind.REFUSED):
            flow.on_answer(decode(frame.meta, Reason) if kind == Kind.REFUSED else None)
        else:
            raise LinkError(f"frame kind {kind} for a flow")
