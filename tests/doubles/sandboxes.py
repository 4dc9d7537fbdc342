"""A driver and a code tier in memory, for what a test must control: when something is ready, how it fails, what a guest says.

They implement workers.ports and nothing of the process driver: real sandboxes have tests of their own.
"""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from workers.drivers.frames import FromGuest, ToGuest
from workers.framing import Frame
from workers.ports import (
    CodeReport,
    DriverError,
    Fetched,
    InitReport,
    IsolationReport,
    SandboxNetwork,
    Specialisation,
    Traits,
    Usage,
)
from workers.versions import VersionSpec

PLAIN = Traits()
REPORT = IsolationReport("double", "none", {"memory": "none", "pids": "none"}, ("it is a double",))


class Valve:
    """Lets everybody through until closed; one who waits is let through by `open` or one at a time by `pass_one`."""

    def __init__(self) -> None:
        self._open = asyncio.Event()
        self._open.set()
        self._waiting: list[asyncio.Future[None]] = []

    def close(self) -> None:
        self._open.clear()

    def open(self) -> None:
        self._open.set()
        while self._waiting:
            self.pass_one()

    def pass_one(self) -> None:
        turn = self._waiting.pop(0)
        if not turn.done():
            turn.set_result(None)

    @property
    def waiting(self) -> int:
        return sum(1 for turn in self._waiting if not turn.done())

    async def passed(self) -> None:
        if not self._open.is_set():
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            await turn


class DoubleClone:
    """A sandbox whose guest is the driver's `handler`."""

    def __init__(self, driver: "DoubleDriver", clone_id: str, tenant: str, memory_mb: int) -> None:
        self.clone_id = clone_id
        self.tenant = tenant
        self.memory_mb = memory_mb
        self.on_frame: Callable[[Frame], None] = lambda _frame: None
        self.on_output: Callable[[str, bytes], None] = lambda _stream, _text: None
        self.on_exit: Callable[[str], None] = lambda _why: None
        self.work: Specialisation | None = None
        self.sent: list[Frame] = []
        self.speculations: list[bool] = []
        self.ended = ""
        self.rested = False
        self.init_ms = driver.init_ms
        self._driver = driver
        self._gone: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    # -- the port

    @property
    def network(self) -> SandboxNetwork | None:
        return self._driver.network

    async def specialise(self, work: Specialisation, timeout_s: float) -> InitReport:
        self.work = work
        self._driver.initialising.append(self)
        turn = asyncio.ensure_future(self._driver.init_turn.passed())
        try:
            await asyncio.wait({turn, self._gone}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            turn.cancel()
        if self._gone.done():
            raise DriverError(self.ended)
        if self._driver.init_error is not None:
            raise self._driver.init_error
        return InitReport(attach_ms=2.0, init_ms=self.init_ms)

    def send(self, kind: int, ident: int, meta: bytes = b"", body: bytes = b"") -> None:
        if self.ended:
            return
        frame = Frame(kind, 0, ident, meta, body)
        self.sent.append(frame)
        if kind == ToGuest.INVOKE:
            asyncio.get_running_loop().call_soon(self._handle, frame)

    def _handle(self, frame: Frame) -> None:
        if not self.ended:
            self._driver.handler(self, frame)

    async def rest(self) -> None:
        self.rested = True
        await self._driver.rest_turn.passed()
        if self._driver.rest_error is not None:
            raise self._driver.rest_error

    def speculative(self, on: bool) -> None:
        self.speculations.append(on)

    def cpu(self) -> tuple[float, bool] | None:
        return 0.0, False

    def usage(self) -> Usage | None:
        return None if self.ended else Usage(1 << 20, 1)

    async def kill(self, reason: str) -> None:
        await self._driver.kill_turn.passed()
        self.die(reason)

    # -- the test's side

    def say(self, kind: int, ident: int, meta: object = None, body: bytes = b"", flags: int = 0) -> None:
        """The guest sends a frame. `meta`: bytes as they are, anything else as JSON."""
        if not self.ended:
            raw = meta if isinstance(meta, bytes) else msgspec.json.encode(meta) if meta is not None else b"{}"
            self.on_frame(Frame(kind, flags, ident, raw, body))

    def answer(self, ident: int, body: bytes = b"done", content_type: str = "text/plain") -> None:
        self.say(FromGuest.RESULT, ident, {"content_type": content_type}, body)

    def die(self, reason: str) -> None:
        """The sandbox ends, by whatever cause."""
        if not self.ended:
            self.ended = reason
            self._gone.set_result(reason)
            self.on_exit(reason)

    def invocations(self) -> list[Frame]:
        return [frame for frame in self.sent if frame.kind == ToGuest.INVOKE]


def echo(clone: DoubleClone, frame: Frame) -> None:
    """Answers with the payload."""
    clone.say(FromGuest.RESULT, frame.id, {"content_type": "application/octet-stream"}, frame.body)


def silent(_clone: DoubleClone, _frame: Frame) -> None:
    """Never answers: the test does, or nobody."""


class DoubleTemplate:
    """Clones like its driver, with the init done."""

    def __init__(self, driver: "DoubleDriver", tenant: str, work: Specialisation) -> None:
        self.driver, self.tenant, self.work = driver, tenant, work
        self.memory_mb, self.init_ms = driver.template_mb, 400.0
        self.on_gone: Callable[[str], None] = lambda _why: None
        self.ended = ""
        self.clones: list[DoubleClone] = []

    async def clone(self, memory_mb: int) -> "DoubleClone":
        if self.ended:
            raise DriverError(self.ended)
        if self.driver.template_clone_error is not None:
            raise self.driver.template_clone_error
        clone = DoubleClone(self.driver, f"t{len(self.clones) + 1}", self.tenant, memory_mb)
        clone.init_ms = 0.5
        self.clones.append(clone)
        self.driver.clones.append(clone)
        return clone

    async def end(self, reason: str) -> None:
        self.ended = self.ended or reason

    def die(self, reason: str) -> None:
        """It ends by itself."""
        self.ended = reason
        self.on_gone(reason)


class DoubleDriver:
    """Clones at once and echoes, unless the test closes a valve, sets an error or another handler."""

    name = "double"

    def __init__(self, traits: Traits = PLAIN) -> None:
        self.traits = traits
        self.rest_turn = Valve()
        self.rest_error: Exception | None = None
        self.clone_turn, self.init_turn, self.kill_turn = Valve(), Valve(), Valve()
        self.clone_error: Callable[[str, int], Exception | None] = lambda _tenant, _memory_mb: None
        self.init_error: Exception | None = None
        self.init_ms = 3.0
        self.template_turn = Valve()
        self.template_error: Exception | None = None
        self.template_clone_error: Exception | None = None
        self.template_mb = 40
        self.templates: list[DoubleTemplate] = []
        self.handler: Callable[[DoubleClone, Frame], None] = echo
        self.clones: list[DoubleClone] = []
        self.initialising: list[DoubleClone] = []
        self.template_asked: list[tuple[str, float]] = []  # versions, and how long their init may take
        self.template_turns: defaultdict[str, Valve] = defaultdict(Valve)  # by tenant
        self.retired: list[str] = []
        self.network: SandboxNetwork | None = None
        self.tries = 0
        self.cloning = 0
        self.most_cloning = 0

    async def start(self) -> IsolationReport:
        return REPORT

    async def clone(self, tenant: str, memory_mb: int) -> DoubleClone:
        self.tries += 1
        self.cloning += 1
        self.most_cloning = max(self.most_cloning, self.cloning)
        try:
            await self.clone_turn.passed()
        finally:
            self.cloning -= 1
        error = self.clone_error(tenant, memory_mb)
        if error is not None:
            raise error
        clone = DoubleClone(self, f"c{len(self.clones) + 1}", tenant, memory_mb)
        self.clones.append(clone)
        return clone

    async def template(self, tenant: str, work: Specialisation, timeout_s: float) -> DoubleTemplate:
        self.template_asked.append((work.version, timeout_s))
        await self.template_turn.passed()
        await self.template_turns[tenant].passed()
        if self.template_error is not None:
            raise self.template_error
        self.templates.append(DoubleTemplate(self, tenant, work))
        return self.templates[-1]

    async def retire(self, tenant: str) -> None:
        self.retired.append(tenant)

    async def stop(self) -> None:
        for clone in self.clones:
            clone.die("the driver stops")

    @property
    def alive(self) -> list[DoubleClone]:
        return [clone for clone in self.clones if not clone.ended]

    @property
    def instances(self) -> list[DoubleClone]:
        """Those alive that became, or are becoming, a version."""
        return [clone for clone in self.alive if clone.work is not None]


class DoubleCode:
    """Holds every version from the start, or fetches when the test says so."""

    def __init__(self) -> None:
        self.fetch_turn = Valve()
        self.everything_held = True
        self.error: Exception | None = None
        self.fetched: list[str] = []
        self.forgotten: list[str] = []
        self.brought: dict[str, list[str]] = {}
        self.fetching = 0
        self.most_fetching = 0
        self.pins: Counter[str] = Counter()

    async def fetch(self, spec: VersionSpec) -> Fetched:
        if spec.version in self.fetched and self.error is None:
            return self._fetched(spec)
        self.fetching += 1
        self.most_fetching = max(self.most_fetching, self.fetching)
        try:
            await self.fetch_turn.passed()
        finally:
            self.fetching -= 1
        if self.error is not None:
            raise self.error
        self.fetched.append(spec.version)
        return self._fetched(spec)

    def _fetched(self, spec: VersionSpec) -> Fetched:
        return Fetched((Path("/code") / spec.package.code,), "tier1" if self.everything_held else "origin")

    async def bring_ahead(self, spec: VersionSpec) -> None:
        await self.fetch(spec)

    def report(self) -> CodeReport:
        return CodeReport(0, {"tier1": len(self.fetched)}, {"tier1": 0.0}, 0)

    def report_of(self, tenant: str) -> Mapping[str, CodeReport]:
        counts = Counter(name.rpartition(":")[0] for name in self.fetched if name.startswith(f"{tenant}/"))
        return {name: CodeReport(1 << 20, {"tier1": count}, {"tier1": 0.0}, 0) for name, count in counts.items()}

    def bring(self, tenant: str, specs: Sequence[VersionSpec]) -> None:
        self.brought[tenant] = [spec.version for spec in specs]

    def pin(self, spec: VersionSpec) -> None:
        self.pins[spec.version] += 1

    def unpin(self, spec: VersionSpec) -> None:
        self.pins[spec.version] -= 1

    async def forget(self, tenant: str) -> None:
        self.forgotten.append(tenant)

    def held(self, spec: VersionSpec) -> bool:
        return self.everything_held or spec.version in self.fetched
