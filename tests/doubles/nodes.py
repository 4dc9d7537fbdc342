"""A whole node on its real socket, over the driver double, and a peer that speaks to it as gateways and planners do."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Sequence
from pathlib import Path
from typing import Any

from cryptography.fernet import Fernet
from doubles.loop import until
from doubles.planes import DoublePlane
from doubles.sandboxes import REPORT, DoubleCode, DoubleDriver

from workers.function_templates import Rules
from workers.node import NO_TEMPLATES, Node
from workers.rpc.connection import Connection, dial
from workers.rpc.messages import (
    ChildCall,
    DecisionUpdate,
    Hello,
    HttpRequest,
    InvokeRequest,
    InvokeResult,
    PrepareBatch,
    PrepareItem,
    Revoke,
    Rpc,
    VersionCount,
)
from workers.rpc.transport import Address, Identity
from workers.sealing import Sealer
from workers.tunnelling import Tunnels
from workers.versions import CodePackage, Kind, VersionSpec

SECRET = "the cluster's"
FINAL = {"hit", "late", "wasted", "cancelled"}


def spec(
    name: str = "echo",
    number: int = 1,
    tenant: str = "acme",
    memory_mb: int = 128,
    concurrency: int = 1,
    kind: Kind = Kind.EVENT,
    timeout_s: float = 60.0,
    environment: bytes = b"",
    vpc: str = "",
    egress: str = "none",
) -> VersionSpec:
    """A version of a function of tenant `acme`."""
    return VersionSpec(
        f"{tenant}/{name}:{number}",
        tenant,
        "main:handler",
        kind,
        "python3.11",
        memory_mb,
        timeout_s,
        concurrency,
        CodePackage("sha256:" + "0" * 64),
        environment,
        egress,
        vpc,
    )


class Caller:
    """One connection to a node: sends what it is told, keeps what it hears."""

    def __init__(self) -> None:
        self.connection: Connection = None  # type: ignore[assignment]
        self.lost = ""
        self.calls: list[tuple[int, ChildCall, bytes]] = []
        self.cancelled_calls: list[int] = []
        self.updates: list[DecisionUpdate] = []
        self.counts: dict[str, VersionCount] = {}
        self.free_mb = -1
        self.tunnels: list[str] = []
        self.results: dict[int, int] = {}  # stream -> how many results came
        self._streams: dict[int, asyncio.Future[tuple[InvokeResult, bytes]]] = {}
        self._numbers = 0

    # -- Owner of the connection

    def on_open(self, connection: Connection) -> None: ...

    def on_lost(self, connection: Connection, why: str) -> None:
        self.lost = why

    def on_message(self, connection: Connection, kind: int, ident: int, message: Any, body: bytes) -> None:
        if kind == Rpc.RESULT:
            self.results[ident] = self.results.get(ident, 0) + 1
            if ident in self._streams and not self._streams[ident].done():
                self._streams[ident].set_result((message, body))
        elif kind == Rpc.CALL:
            self.calls.append((ident, message, body))
        elif kind == Rpc.CANCEL_CALL:
            self.cancelled_calls.append(ident)
        elif kind == Rpc.OUTCOMES:
            self.updates.extend(message.updates)
        elif kind == Rpc.INVENTORY:
            self.free_mb = message.free_mb
            if message.whole:
                self.counts.clear()
                self.tunnels = message.tunnels
            self.counts.update((count.version, count) for count in message.versions)

    # -- the test's side

    def define(self, *specs: VersionSpec) -> None:
        for one in specs:
            self.connection.send(Rpc.DEFINE, 0, one)

    def start(
        self,
        version: VersionSpec,
        body: bytes = b"",
        deadline_s: float = 10.0,
        http: HttpRequest | None = None,
        invocation_id: str = "",
    ) -> "Running":
        """Begins an invocation; defines the version first, once."""
        if version.version not in self.connection.defined:
            self.connection.defined.add(version.version)
            self.define(version)
        self._numbers += 1
        stream = self.connection.next_id()
        future = self._streams[stream] = asyncio.get_running_loop().create_future()
        request = InvokeRequest(
            version.version, invocation_id or f"{self._numbers:016x}", "t" * 32, "", 0, deadline_s, "text/plain", http
        )
        self.connection.send(Rpc.INVOKE, stream, request, body)
        return Running(self, stream, request.invocation_id, future)

    async def invoke(self, version: VersionSpec, body: bytes = b"", **more: Any) -> tuple[InvokeResult, bytes]:
        return await self.start(version, body, **more).result()

    def prepare(self, *items: PrepareItem, epoch: int = 0) -> None:
        self.connection.send(Rpc.PREPARE, 0, PrepareBatch(list(items), epoch))

    def revoke(self, *decision_ids: str, why: str = "not needed", epoch: int = 0) -> None:
        self.connection.send(Rpc.REVOKE, 0, Revoke(list(decision_ids), why, epoch))

    async def subscribe(self) -> None:
        self.free_mb = -1
        self.connection.send(Rpc.SUBSCRIBE, 0)
        await until(lambda: self.free_mb >= 0, "the first inventory")

    async def caught_up(self) -> None:
        """Everything sent so far was taken in by the node: a question is answered after what came before it."""
        await self.connection.ask("isolation")

    def outcomes(self, decision_id: str) -> list[str]:
        return [update.outcome for update in self.updates if update.decision_id == decision_id]

    def endings(self, decision_id: str) -> list[str]:
        return [outcome for outcome in self.outcomes(decision_id) if outcome in FINAL]

    async def outcome(self, decision_id: str, wanted: Iterable[str]) -> DecisionUpdate:
        """The first update of the decision that is one of `wanted`."""
        chosen = set(wanted)

        def found() -> DecisionUpdate | None:
            return next((one for one in self.updates if one.decision_id == decision_id and one.outcome in chosen), None)

        await until(found, f"{decision_id} becomes {sorted(chosen)}: {self.updates}")
        update = found()
        assert update is not None
        return update


class Running:
    """An invocation under way."""

    def __init__(
        self, caller: Caller, stream: int, invocation_id: str, future: "asyncio.Future[tuple[InvokeResult, bytes]]"
    ) -> None:
        self.stream = stream
        self.invocation_id = invocation_id
        self._caller = caller
        self._future = future

    @property
    def done(self) -> bool:
        return self._future.done()

    async def result(self) -> tuple[InvokeResult, bytes]:
        return await asyncio.wait_for(asyncio.shield(self._future), 60.0)

    async def status(self) -> str:
        return (await self.result())[0].status

    def cancel(self) -> None:
        self._caller.connection.send(Rpc.CANCEL, self.stream)


class Rig:
    """The node under test with what a test needs to hold it."""

    def __init__(self, node: Node, driver: DoubleDriver, code: DoubleCode, path: Path, secret: str) -> None:
        self.node, self.driver, self.code, self.path, self.secret = node, driver, code, path, secret
        self.callers: list[Caller] = []

    async def caller(self, role: str = "gateway", epoch: int = 0) -> Caller:
        caller = Caller()
        caller.connection = await dial(self.path, caller, Hello(role, f"{role}-{len(self.callers)}", self.secret, epoch))
        self.callers.append(caller)
        return caller

    async def told(self, caller: Caller) -> None:
        """Everything that happened so far was told to `caller`, which has subscribed."""
        await caller.caught_up()
        await until(lambda: not self.node._subscribers._updates, "the updates have left")
        await caller.caught_up()

    async def quiet(self) -> None:
        """Nothing is being prepared, ended or refilled any more."""
        await until(lambda: not self.node.instances._tasks, "the node's tasks have ended")


@contextlib.asynccontextmanager
async def running_node(
    folder: Path,
    memory_mb: int = 4096,
    cores: int = 2,
    standbys: int = 0,
    idle_s: float = 600.0,
    key: bytes = b"",
    secret: str = SECRET,
    templates: Rules = NO_TEMPLATES,
    also: Sequence[Address] = (),
    identity: Identity | None = None,
    name: str = "node-1",
    tunnels: Tunnels | None = None,
) -> AsyncIterator[Rig]:
    """A node that serves until the block ends, on its socket and, with `identity`, on what is named also. Fails when a sandbox
    outlives it."""
    driver, code = DoubleDriver(), DoubleCode()
    sealer = Sealer(key or Fernet.generate_key())
    node = Node(name, driver, code, sealer, REPORT, memory_mb, cores, standbys, idle_s, templates, tunnels)
    path = folder / "node.sock"
    serving = asyncio.create_task(node.serve([path, *also], secret, identity))
    rig = Rig(node, driver, code, path, secret)
    try:
        await until(lambda: node.serving or serving.done(), "the node listens")
        yield rig
    finally:
        for valve in (driver.clone_turn, driver.init_turn, driver.kill_turn, code.fetch_turn):
            valve.open()
        for caller in rig.callers:
            caller.connection.close()
        serving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await serving
    assert set(code.pins.values()) <= {0}, "code stayed pinned, or was released too often"
    assert driver.alive == [], "sandboxes outlived their node"
    assert all(template.ended for template in driver.templates), "function templates outlived their node"
    plane = node.tunnels.plane
    if isinstance(plane, DoublePlane):
        assert plane.stopped
        assert all(one.detached for one in plane.attached), "an instance stayed attached"
    assert node.instances.memory.used_mb == 0, "memory stayed promised"
    assert not path.exists()
