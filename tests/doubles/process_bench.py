"""Real sandboxes for tests: the process driver, started and stopped, with nothing left behind; functions from source text."""

import asyncio
import contextlib
import itertools
import json
import os
import re
import signal
from collections.abc import AsyncIterator, Set
from pathlib import Path
from typing import Any

import msgspec
from doubles.loop import abandoned, open_descriptors

from workers.drivers.frames import FromGuest, ToGuest
from workers.drivers.process.driver import ProcessDriver
from workers.framing import MORE, Frame
from workers.ports import InitReport, IsolationReport, Specialisation
from workers.versions import Kind

WAIT_S = 15.0
INIT_S = 30.0
ECHO = "def handler(event, context):\n    return event\n"


class HandlerError(Exception):
    """The guest answered ERROR. `detail`: type, message, stack."""

    def __init__(self, detail: dict[str, str]) -> None:
        super().__init__(f"{detail['type']}: {detail['message']}")
        self.detail = detail


class Running:
    """An instance under test."""

    def __init__(self, clone: Any, report: InitReport) -> None:
        self.clone = clone
        self.report = report
        self.logs: list[tuple[int, str, str]] = []  # (id, stream, text)
        self.output = {"out": b"", "err": b""}
        self.exits: list[str] = []
        self.calls: asyncio.Queue[tuple[int, dict[str, Any], bytes]] = asyncio.Queue()
        self.others: list[Frame] = []
        self.gone = asyncio.Event()
        self._answers: dict[int, asyncio.Queue[Frame]] = {}
        self._ids = itertools.count(1)
        clone.on_frame = self._take
        clone.on_output = self._written
        clone.on_exit = self._left

    def _take(self, frame: Frame) -> None:
        if frame.kind == FromGuest.LOG:
            self.logs.append((frame.id, json.loads(frame.meta)["stream"], frame.body.decode()))
        elif frame.kind == FromGuest.CALL:
            self.calls.put_nowait((frame.id, json.loads(frame.meta), frame.body))
        elif frame.kind in (FromGuest.RESULT, FromGuest.ERROR) and frame.id in self._answers:
            self._answers[frame.id].put_nowait(frame)
        else:
            self.others.append(frame)

    def _written(self, stream: str, text: bytes) -> None:
        self.output[stream] += text

    def _left(self, reason: str) -> None:
        self.exits.append(reason)
        self.gone.set()

    def begin(self, payload: Any = None, deadline_s: float = 10.0, http: dict[str, Any] | None = None) -> int:
        """Sends an invocation; its id."""
        ident = next(self._ids)
        self._answers[ident] = asyncio.Queue()
        raw = isinstance(payload, bytes)
        meta: dict[str, Any] = {
            "invocation": f"{ident:016x}",
            "content_type": "application/octet-stream" if raw else "application/json",
            "deadline_s": deadline_s,
            "trace_id": "f" * 32,
            "depth": 0,
        }
        if http is not None:
            meta["http"] = http
        body = payload if raw else json.dumps(payload).encode()
        self.clone.send(ToGuest.INVOKE, ident, json.dumps(meta).encode(), body)
        return ident

    async def end(self, ident: int, timeout_s: float = WAIT_S) -> tuple[dict[str, Any], list[bytes]]:
        """(meta of the first RESULT frame, bodies). Raises HandlerError; EOFError when the sandbox dies first."""
        head: dict[str, Any] | None = None
        bodies: list[bytes] = []
        while True:
            frame = await self._next(ident, timeout_s)
            if frame.kind == FromGuest.ERROR:
                raise HandlerError(json.loads(frame.meta))
            head = json.loads(frame.meta) if head is None else head
            bodies.append(frame.body)
            if not frame.flags & MORE:
                return head, bodies

    async def _next(self, ident: int, timeout_s: float) -> Frame:
        frame = asyncio.ensure_future(self._answers[ident].get())
        gone = asyncio.ensure_future(self.gone.wait())
        try:
            await asyncio.wait({frame, gone}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if frame.done():
                return frame.result()
            if gone.done():
                raise EOFError(self.exits[0])
            raise TimeoutError(f"no answer within {timeout_s} s")
        finally:
            for task in (frame, gone):
                task.cancel()
            await asyncio.gather(frame, gone, return_exceptions=True)

    async def value(self, payload: Any = None, timeout_s: float = WAIT_S) -> Any:
        """The decoded result of one invocation."""
        head, bodies = await self.end(self.begin(payload), timeout_s)
        body = b"".join(bodies)
        return json.loads(body) if head["content_type"] == "application/json" else body

    def answer(self, call: int, value: Any = None, **meta: Any) -> None:
        """Answers a call of the guest."""
        head = {"status": "ok", "content_type": "application/json", **meta}
        self.clone.send(ToGuest.CALL_RESULT, call, json.dumps(head).encode(), json.dumps(value).encode())


class Templated:
    """A function template under test."""

    def __init__(self, template: Any, work: Specialisation) -> None:
        self.template = template
        self.work = work
        self.running: list[Running] = []

    async def run(self, **changes: Any) -> Running:
        """An instance cloned from it."""
        clone = await self.template.clone(self.work.memory_mb)
        try:
            report = await clone.specialise(msgspec.structs.replace(self.work, **changes), INIT_S)
        except BaseException:
            await clone.kill("it did not start")
            raise
        self.running.append(Running(clone, report))
        return self.running[-1]


class Bench:
    """A started driver (process or microVM) and what was made with it."""

    def __init__(self, folder: Path, driver: Any, report: IsolationReport) -> None:
        self.folder = folder
        self._running: list[Running] = []
        self._templates: list[Templated] = []
        self.driver = driver
        self.report = report
        self._layers = itertools.count(1)

    def layer(self, files: dict[str, str]) -> Path:
        """A folder of code, as tier 1 would hold it."""
        layer = self.folder / f"layer{next(self._layers)}"
        for name, text in files.items():
            path = layer / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        for folder, _, names in os.walk(layer):
            os.chmod(folder, 0o755)
            for name in names:
                os.chmod(Path(folder) / name, 0o644)
        return layer

    def work(
        self,
        source: str | dict[str, str] = ECHO,
        *,
        handler: str = "handler:handler",
        kind: Kind = Kind.EVENT,
        concurrency: int = 1,
        memory_mb: int = 128,
        environment: dict[str, str] | None = None,
        dependencies: dict[str, str] | None = None,
        tenant: str = "acme",
    ) -> Specialisation:
        layers = [self.layer({"handler.py": source} if isinstance(source, str) else source)]
        if dependencies is not None:
            layers.append(self.layer(dependencies))
        version = f"{tenant}/shop:7"
        return Specialisation(version, handler, kind, concurrency, memory_mb, tuple(layers), environment or {})

    async def template(self, source: str | dict[str, str] = ECHO, *, tenant: str = "acme", **more: Any) -> "Templated":
        """A function template of `source`. Its init sees nothing of `environment`; its clones do."""
        work = self.work(source, tenant=tenant, **more)
        withheld = msgspec.structs.replace(work, environment={}, withheld=tuple(work.environment))
        made = Templated(await self.driver.template(tenant, withheld, INIT_S), work)
        self._templates.append(made)
        return made

    async def run_templated(self, source: str | dict[str, str] = ECHO, **more: Any) -> Running:
        """As `run`, but cloned from a function template made for it, which stays."""
        return await (await self.template(source, **more)).run()

    async def run(
        self, source: str | dict[str, str] = ECHO, *, tenant: str = "acme", memory_mb: int = 128, **more: Any
    ) -> Running:
        """A sandbox specialised with `source`."""
        clone = await self.driver.clone(tenant, memory_mb)
        try:
            report = await clone.specialise(self.work(source, tenant=tenant, memory_mb=memory_mb, **more), INIT_S)
        except BaseException:
            await clone.kill("it did not start")
            raise
        self._running.append(Running(clone, report))
        return self._running[-1]

    async def end(self) -> None:
        """Ends what was made here and still lives."""
        running = [*self._running, *(one for template in self._templates for one in template.running)]
        await asyncio.gather(*(one.clone.kill("the test is over") for one in running))
        for one in self._templates:
            await one.template.end("the test is over")


@contextlib.asynccontextmanager
async def bench(folder: Path, **driver: Any) -> AsyncIterator[Bench]:
    """A driver for one test. When it has stopped no process, descriptor or control group of it may be left."""
    folder.mkdir(exist_ok=True, parents=True)
    before = open_descriptors()
    children, groups = descendants(), set(groups_of(os.getpid()))
    made = ProcessDriver(folder / "driver", **driver)
    report = await made.start()
    try:
        yield Bench(folder, made, report)
    finally:
        await made.stop()
    left = descendants(children)
    assert not left, f"processes left: {[command_of(pid) for pid in left]}"
    names = descriptors_since(before)
    assert not names, f"descriptors left: {names}"
    assert set(groups_of(os.getpid())) <= groups, "control groups left"


def descendants(besides: Set[int] = frozenset()) -> set[int]:
    """Processes below this one, without those in `besides` and what is below them: servers that the whole run shares.

    Looked twice: the kernel's list of children may miss one while another of them ends."""
    return _descendants(besides) | _descendants(besides)


def _descendants(besides: Set[int]) -> set[int]:
    found = [os.getpid()]
    for pid in found:
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{pid}/task"):
                children = map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split())
                found += [child for child in children if child not in besides]
    return set(found[1:])


def target_of(descriptor: str) -> str:
    """What a descriptor of this process is; empty for the one that listed them, which is closed by now."""
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/self/fd/{descriptor}")
    return ""


def descriptors_since(before: Set[str]) -> list[str]:
    """What is open now and was not then, without what a test that failed has left behind: that one has been told already."""
    names = map(target_of, open_descriptors() - before - abandoned)
    return [name for name in names if name]


def command_of(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    return "gone"


def groups_of(pid: int) -> list[str]:
    """Control groups a driver of process `pid` made and has not removed."""
    ours = (f"-{pid}", f"-{pid}-node")
    below = re.compile(rf"-{pid}(-node)?(/|$)")  # not those of a process whose number only begins so
    found: list[str] = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        if after.split()[0] in ("cgroup", "cgroup2"):
            for folder, names, _ in os.walk(before.split()[4]):  # groups come and go while we look: os.walk does not mind
                found += [f"{folder}/{name}" for name in names if name.startswith("foreglow-") and name.endswith(ours)]
                found += [f"{folder}/{name}" for name in names if below.search(folder)]
    return found


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
