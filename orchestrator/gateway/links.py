"""The gateway's side of each node: one connection, its streams in flight, and what the node last said of itself."""

import asyncio
from collections.abc import Callable, Collection
from typing import Any

import structlog

from orchestrator.heartbeat import SILENT_S, Pulse, until_lost
from workers.rpc.connection import Connection, RpcError, dial
from workers.rpc.messages import ChildCall, Hello, InvokeRequest, InvokeResult, Rpc, Stale
from workers.rpc.transport import Address, Identity, Peer, label
from workers.versions import VersionSpec

RETRY_S = (0.05, 1.0)
GRACE_S = 2.0  # a node answers by the deadline; one that has not by then does not work any more

log = structlog.get_logger(__name__)

Answer = tuple[InvokeResult, bytes]
OnCall = Callable[["NodeLink", int, ChildCall, bytes], None]


class NodeLink:
    """Keeps a connection to one node. `on_call` and `on_cancel_call` hear of child calls; they must not block."""

    def __init__(
        self,
        address: Address,
        hello: Hello,
        on_call: OnCall,
        on_cancel_call: Callable[["NodeLink", int], None],
        identity: Identity | None = None,
        expected: Peer | None = None,
        epoch: int = 0,
    ) -> None:
        self.address = address
        self.connection: Connection | None = None
        self.free_mb = 0
        self.tunnels: Collection[str] = ()
        self._hello = hello
        self._on_call = on_call
        self._on_cancel_call = on_cancel_call
        self._streams: dict[int, asyncio.Future[Answer]] = {}
        self._idle: dict[str, int] = {}
        self._lost = asyncio.Event()
        self._identity = identity
        self._expected = expected
        self._epoch = epoch
        self._tenants: Collection[str] = ()
        self._alone = True
        self._pulse = Pulse()

    @property
    def up(self) -> bool:
        return self.connection is not None

    @property
    def name(self) -> str:
        welcome = self.connection.welcome if self.connection is not None else None
        return welcome.name if welcome is not None else label(self.address)

    def idle(self, version: str) -> int:
        return self._idle.get(version, 0)

    def hosts(self, tenant: str) -> bool:
        return not self._tenants or tenant in self._tenants

    def set_tenants(self, tenants: Collection[str]) -> None:
        """From now on; what runs there of others ends by itself."""
        self._tenants = frozenset(tenants)

    def set_alone(self, alone: bool) -> None:
        """With several nodes the link asks for every inventory, which placement goes by; alone, for the heartbeat only."""
        if alone != self._alone:
            self._alone = alone
            if self.connection is not None:
                self.connection.send(Rpc.SUBSCRIBE, int(alone))

    def set_epoch(self, epoch: int) -> None:
        """The node counts from this epoch on; one that welcomed us with an older is told so and dropped."""
        self._epoch = epoch
        if self.connection is not None and self._stale(self.connection):
            self.connection.close()

    def set_whom(self, whom: Peer) -> None:
        """It is renewing its certificate: these count from now on, where it is dialled anew."""
        self._expected = whom

    async def run(self) -> None:
        """Dials for ever. A node that goes silent is dropped: what is in flight on it fails then."""
        delay = RETRY_S[0]
        while True:
            try:
                connection = await dial(self.address, self, self._hello, identity=self._identity, expected=self._expected)
            except RpcError as error:
                log.debug("node.unreachable", node=str(self.address), error=str(error))
                await asyncio.sleep(delay)
                delay = min(delay * 2, RETRY_S[1])
                continue
            if self._stale(connection):
                connection.close()
                await asyncio.sleep(RETRY_S[1])
                continue
            delay = RETRY_S[0]
            self.connection = connection
            connection.send(Rpc.SUBSCRIBE, int(self._alone))
            self._lost.clear()
            try:
                if await until_lost(self._lost, self._pulse):
                    log.warning("node.silent", node=self.name)
                    connection.drop(f"nothing was heard of the node for {SILENT_S} s")
            except asyncio.CancelledError:
                connection.close()
                raise

    def _stale(self, connection: Connection) -> bool:
        """Tells a node whose epoch is void."""
        welcome = connection.welcome
        if welcome is None or welcome.epoch >= self._epoch:
            return False
        connection.send(Rpc.STALE, 0, Stale(self._epoch))
        return True

    async def invoke(self, spec: VersionSpec, request: InvokeRequest, body: bytes) -> Answer:
        """One invocation on this node. Raises RpcError when the node is not reachable; whether a byte reached an instance is
        then unknown unless the link was down before. Cancelling the wait cancels the invocation."""
        answer = await self._invoke(spec, request, body)
        if answer[0].status == "unknown-version" and self.connection is not None:
            self.connection.defined.discard(spec.version)
            answer = await self._invoke(spec, request, body)
        return answer

    async def _invoke(self, spec: VersionSpec, request: InvokeRequest, body: bytes) -> Answer:
        connection = self.connection
        if connection is None:
            raise RpcError("the node is not reachable")
        if connection.congested:
            return InvokeResult("full"), b""  # it does not read: what is sent now only piles up here
        if spec.version not in connection.defined:
            connection.defined.add(spec.version)
            connection.send(Rpc.DEFINE, 0, spec)
        stream = connection.next_id()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answer] = loop.create_future()
        self._streams[stream] = future
        connection.send(Rpc.INVOKE, stream, request, body)
        timer = loop.call_later(request.deadline_s + GRACE_S, self._unanswered, connection, stream)
        try:
            return await future
        except asyncio.CancelledError:
            connection.send(Rpc.CANCEL, stream)
            raise
        finally:
            timer.cancel()
            self._streams.pop(stream, None)

    def _unanswered(self, connection: Connection, stream: int) -> None:
        connection.send(Rpc.CANCEL, stream)
        future = self._streams.get(stream)
        if future is not None and not future.done():
            future.set_exception(RpcError("the node did not answer by the deadline"))

    def on_open(self, connection: Connection) -> None:
        pass

    def on_message(self, connection: Connection, kind: int, ident: int, message: Any, body: bytes) -> None:
        self._pulse.beat()
        if kind == Rpc.RESULT:
            future = self._streams.get(ident)
            if future is not None and not future.done():
                future.set_result((message, body))
        elif kind == Rpc.CALL:
            self._on_call(self, ident, message, body)
        elif kind == Rpc.CANCEL_CALL:
            self._on_cancel_call(self, ident)
        elif kind == Rpc.INVENTORY:
            self.free_mb = message.free_mb
            if message.whole:
                self._idle.clear()
                self.tunnels = frozenset(message.tunnels)
            for count in message.versions:
                self._idle[count.version] = count.idle + count.preparing

    def on_lost(self, connection: Connection, why: str) -> None:
        if self.connection is not connection:
            return  # it was told that it is stale, and never counted
        self.connection = None
        for future in self._streams.values():
            if not future.done():
                future.set_exception(RpcError(f"the connection to the node was lost while the invocation ran: {why}"))
        self._lost.set()
