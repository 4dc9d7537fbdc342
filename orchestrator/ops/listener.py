"""The operations listener of a process: /healthz, /readyz, /metrics, on a unix socket of its own or on a private address.

It asks for no key and shows no tenant's content: the socket is this user's alone (0600), and an address given instead is to be
one that only operators reach.
"""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any

import msgspec
import structlog
import uvicorn
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.registry import Collector

from orchestrator.ops.health import Check, Checks, judge
from orchestrator.ops.notify import notify
from orchestrator.ops.shared import BuildMetrics
from orchestrator.settings import Settings

METRICS_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
ANSWER_S = 5.0
CONNECTIONS = 32
GRACE_S = 1
START_S = 5.0
READY_POLL_S = 0.05

Message = MutableMapping[str, Any]
Answer = tuple[int, bytes, bytes]

log = structlog.get_logger(__name__)


class Operations:
    """One process's answers, and the server that gives them.

    `serving`: the process has begun to do what it is for; the first such moment is told to systemd. `checks`: what else it
    needs. `collectors` are read when somebody asks. `alive`: an empty text, or why the process is to be started again. With
    `blocking` all of these run in a thread, one question at a time, because they wait for a database or a broker; without,
    they run in the loop whose state they read.
    """

    def __init__(
        self,
        process: str,
        serving: Callable[[], bool],
        checks: Checks,
        *collectors: Collector,
        alive: Callable[[], str] = str,
        blocking: bool = False,
    ) -> None:
        self.process = process
        self.registry = CollectorRegistry()
        self._serving = serving
        self._checks = checks
        self._alive = alive
        self._blocking = blocking
        self._turn = asyncio.Lock()
        ProcessCollector(registry=self.registry)
        self.registry.register(BuildMetrics())
        for collector in collectors:
            self.registry.register(collector)
        self._server: _Server | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._path: Path | None = None

    async def start(self, settings: Settings) -> None:
        """Raises OSError when the address or the socket cannot be used."""
        listening, self._path = bind(settings, self.process)
        config = uvicorn.Config(
            self,
            lifespan="off",
            access_log=False,
            log_config=None,
            log_level="warning",
            http="h11",
            ws="none",
            server_header=False,
            proxy_headers=False,
            limit_concurrency=CONNECTIONS,
            timeout_graceful_shutdown=GRACE_S,
        )
        self._server = _Server(config)
        self._tasks = [
            asyncio.create_task(self._server.serve([listening])),
            asyncio.create_task(self._tell_when_serving()),
        ]
        async with asyncio.timeout(START_S):
            await self._server.up.wait()

    async def stop(self) -> None:
        """Idempotent; takes GRACE_S and a little at most."""
        notify("STOPPING=1")
        if self._server is None:
            return
        server, self._server = self._server, None
        server.should_exit = True
        self._tasks[1].cancel()
        _, late = await asyncio.wait(self._tasks, timeout=GRACE_S + 1.0)
        for task in late:
            task.cancel()
        if self._path is not None:
            with contextlib.suppress(OSError):
                self._path.unlink()
                self._path.parent.rmdir()  # the last one out

    async def _tell_when_serving(self) -> None:
        while not self._serving():  # noqa: ASYNC110 - each process has a sign of its own, not one event
            await asyncio.sleep(READY_POLL_S)
        notify("READY=1")

    # -- answers

    async def __call__(
        self, scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[..., Awaitable[None]]
    ) -> None:
        if scope["type"] != "http":
            return
        status, kind, body = await self._answer(scope["method"], scope["path"])
        headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    async def _answer(self, method: str, path: str) -> Answer:
        answers = {"/healthz": self._healthz, "/readyz": self._readyz, "/metrics": self._metrics}
        answer = answers.get(path)
        if answer is None:
            return _plain(404, f"{path[:100]} is not here: /healthz, /readyz and /metrics are")
        if method not in ("GET", "HEAD"):
            return _plain(405, "only GET and HEAD")
        try:
            async with asyncio.timeout(ANSWER_S):
                if not self._blocking:
                    return answer()
                async with self._turn:  # a slow database must not gather threads that wait for it
                    return await asyncio.to_thread(answer)
        except TimeoutError:
            return _plain(503, f"{self.process} did not answer within {ANSWER_S:g} s")
        except Exception as error:
            log.exception("operations.failed", path=path)
            return _plain(500, f"{path}: {type(error).__name__}, see the log of {self.process}")

    def _healthz(self) -> Answer:
        why = self._alive()
        return _plain(503, why) if why else _plain(200, "ok")

    def _readyz(self) -> Answer:
        serving = Check("serving", self._serving(), "it is still starting")
        readiness = judge(self.process, [serving, *self._checks()])
        return 200 if readiness.ready else 503, b"application/json", msgspec.json.encode(readiness)

    def _metrics(self) -> Answer:
        return 200, METRICS_TYPE, generate_latest(self.registry)


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.up.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """The signals are the process's own."""
        yield


class OperationsThread:
    """The same for a process whose main thread blocks: a loop in a thread of its own."""

    def __init__(self, make: Callable[[], Operations], settings: Settings) -> None:
        self._make = make
        self._settings = settings
        self._loop = asyncio.new_event_loop()
        self._stopping = asyncio.Event()
        self._started = threading.Event()
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._main, name="operations", daemon=True)

    def start(self) -> None:
        """Raises OSError when the address or the socket cannot be used."""
        self._thread.start()
        self._started.wait(START_S + 1.0)
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stopping.set)
            self._thread.join(GRACE_S + 2.0)

    def _main(self) -> None:
        try:
            self._loop.run_until_complete(self._run())
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
        finally:
            self._loop.close()

    async def _run(self) -> None:
        operations = self._make()
        try:
            await operations.start(self._settings)
        except OSError as error:
            self._error = error
            return
        finally:
            self._started.set()
        await self._stopping.wait()
        await operations.stop()


def bind(settings: Settings, process: str) -> tuple[socket.socket, Path | None]:
    """The listening socket, and its path when it is a unix socket. Raises OSError."""
    if settings.ops_address:
        host, _, port = settings.ops_address.rpartition(":")
        host = host.strip("[]")
        listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind((host, int(port)))
        except OSError as error:
            listening.close()
            raise OSError(error.errno, f"ops_address: {settings.ops_address}: {error.strerror} (FOREGLOW_OPS_ADDRESS)") from error
        return listening, None
    path = settings.ops_socket(process)
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    if not path.parent.exists():  # a process that nobody prepared the ground for; who comes first in there must be us
        path.parent.mkdir(mode=0o700, parents=True)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listening.bind(str(path))
        path.chmod(0o600)  # its folder is 0700
    except OSError as error:
        listening.close()
        raise OSError(error.errno, f"{path}: {error.strerror}") from error
    return listening, path


def _plain(status: int, text: str) -> Answer:
    return status, b"text/plain; charset=utf-8", f"{text}\n".encode()
