"""Template processes seen from the node: started, asked for clones, retired once their clones have gone."""

import asyncio
import contextlib
import os
import socket
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from workers.drivers import syscalls
from workers.drivers.process.interpreter import Interpreter
from workers.ports import DriverError

START_TIMEOUT_S = 30.0
CLONE_TIMEOUT_S = 10.0
MAX_ASKED = 8  # requests at a template at a time: it makes one clone after the other, and its socket holds few messages
END_TIMEOUT_S = 5.0
ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "HOME": "/tmp",  # noqa: S108
    "TMPDIR": "/tmp",  # noqa: S108
    "LANG": "C.UTF-8",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}
MAX_MESSAGE = 65536

Answer = tuple[dict[str, Any], list[int]]
"""What a template said, and the descriptors it sent along."""

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


class Setup(msgspec.Struct, frozen=True):
    """First message to a template. `uid` 0: it stays the node's user."""

    sandboxed: bool
    uid: int
    binds: Sequence[tuple[str, str]]
    links: Sequence[tuple[str, str]]
    masks: Sequence[str]


class CloneRequest(msgspec.Struct, frozen=True):
    """`keeper`, at a tenant's template: the clone becomes the keeper of a function template. `original`, at a keeper: the
    clone is the one that imports the version's module."""

    id: int
    tmp_mb: int = 0
    address_space_mb: int = 0
    into_cgroup: bool = False
    keeper: bool = False
    original: bool = False


class Template:
    """One template process, or the keeper of a function template: whatever is asked for clones. `process` ends with the
    thread of the event loop it was made on; `wait` reaps it, where it is a child of this process. `uid`: who it runs as."""

    def __init__(
        self,
        process: tuple[int, int],
        wait: Callable[[], int] | None,
        sock: socket.socket,
        uid: int,
        on_gone: Callable[["Template"], None],
    ) -> None:
        self.uid = uid
        self.made = 0
        self.living = 0
        self.gone = False
        self.retired = False
        self.pid, self._pidfd = process
        self._wait = wait
        self._sock = sock
        self._on_gone = on_gone
        self._loop = asyncio.get_running_loop()
        self._asked: dict[int, asyncio.Future[Answer]] = {}
        self._exits: dict[int, Callable[[str], None]] = {}
        self._turn = asyncio.Semaphore(MAX_ASKED)
        self._hello: asyncio.Future[None] = self._loop.create_future()
        self._ended = asyncio.Event()
        self._loop.add_reader(self._pidfd, self._on_end)
        self._loop.add_reader(sock.fileno(), self._on_message)

    @property
    def ended(self) -> bool:
        """Its process is no more."""
        return self._ended.is_set()

    async def set_up(self, setup: Setup) -> None:
        """Raises DriverError with the step that failed."""
        try:
            self._sock.send(_encode(setup))
            await asyncio.wait_for(self._hello, START_TIMEOUT_S)
        except (OSError, TimeoutError) as error:
            raise DriverError(f"the template process did not start: {error or 'timed out'}") from error

    async def clone(self, request: CloneRequest, descriptors: list[int], on_exit: Callable[[str], None]) -> Answer:
        """A new clone: its pid (as whoever made it sees it) and its pidfds. `on_exit(how)` is called when its exit status is
        known. Raises DriverError."""
        async with self._turn:
            return await self._clone(request, descriptors, on_exit)

    async def inspect(self, ident: int) -> tuple[str, str] | None:
        """Of a keeper: (kind, why) its original cannot be cloned; None when it can. Raises DriverError."""
        future: asyncio.Future[Answer] = self._loop.create_future()
        self._asked[ident] = future
        try:
            self._sock.send(_encode({"id": ident, "inspect": True}))
            answer, _ = await asyncio.wait_for(future, CLONE_TIMEOUT_S)
        except (OSError, TimeoutError) as error:
            raise DriverError(f"the keeper does not answer: {error or 'timed out'}") from error
        finally:
            self._asked.pop(ident, None)
        return tuple(answer["refused"]) if answer["refused"] else None

    async def _clone(self, request: CloneRequest, descriptors: list[int], on_exit: Callable[[str], None]) -> Answer:
        if self.gone:
            raise DriverError("the template process has ended")
        future: asyncio.Future[Answer] = self._loop.create_future()
        self._asked[request.id] = future
        self._exits[request.id] = on_exit
        self.made += 1
        self.living += 1
        try:
            socket.send_fds(self._sock, [_encode(request)], descriptors)
            return await asyncio.wait_for(asyncio.shield(future), CLONE_TIMEOUT_S)
        except BaseException as error:
            self._asked.pop(request.id, None)
            self._exits.pop(request.id, None)
            self._one_less()
            if future.done() and not future.cancelled() and future.exception() is None:
                _discard(future.result()[1])
            if isinstance(error, ConnectionError) and not self.gone:
                self._lost("the template process closed its channel")  # known here before its end is told
            if isinstance(error, OSError | TimeoutError):
                raise DriverError(f"the template process does not answer: {error or 'timed out'}") from error
            raise

    def clone_gone(self) -> None:
        """One of its clones has been taken apart."""
        self._one_less()

    def _one_less(self) -> None:
        self.living -= 1
        if self.retired and self.living == 0:
            self.end()

    def retire(self) -> None:
        """No more clones; it ends when the last one has."""
        self.retired = True
        if self.living == 0:
            self.end()

    def end(self) -> None:
        """Closes the channel, which a template takes as its end. Its clones die with it."""
        if not self.gone:
            self._lost("the template was ended")

    async def wait(self) -> None:
        """Until the process is gone. Raises DriverError when it does not go."""
        try:
            await asyncio.wait_for(self._ended.wait(), END_TIMEOUT_S)
        except TimeoutError as error:
            with contextlib.suppress(OSError):
                os.kill(self.pid, syscalls.SIGKILL)
            raise DriverError(f"template process {self.pid} did not end in {END_TIMEOUT_S:g} s") from error

    def _on_end(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        if self._wait is None:
            self._lost("the keeper of the function template ended")
        else:
            status = self._wait()
            self._lost(f"the template process ended ({'signal ' + str(-status) if status < 0 else 'exit ' + str(status)})")
        self._ended.set()
        self._on_gone(self)

    def _lost(self, why: str) -> None:
        if self.gone:
            return
        self.gone = True
        self._loop.remove_reader(self._sock.fileno())
        self._sock.close()
        waiting: list[asyncio.Future[Any]] = [self._hello, *self._asked.values()]
        for future in waiting:
            if not future.done():
                future.set_exception(DriverError(why))
                future.exception()  # nobody may be waiting any more
        self._asked.clear()

    def _on_message(self) -> None:
        try:
            message, descriptors, _, _ = socket.recv_fds(self._sock, MAX_MESSAGE, 2)
        except BlockingIOError:
            return
        except OSError as error:
            self._lost(f"the template process: {error}")
            return
        if not message:
            self._lost("the template process closed its channel")
            return
        self._take(_decode(message), descriptors)

    def _take(self, answer: dict[str, Any], descriptors: list[int]) -> None:
        if "exit" in answer:
            on_exit = self._exits.pop(answer["exit"], None)
            if on_exit is not None:
                on_exit(f"signal {answer['signal']}" if "signal" in answer else f"exit {answer['code']}")
        elif "id" in answer:
            future = self._asked.pop(answer["id"], None)
            if future is None or future.done():
                _discard(descriptors)
            elif descriptors or "refused" in answer:
                future.set_result((answer, descriptors))
            else:
                future.set_exception(DriverError(str(answer.get("error", "the template process sent no descriptor"))))
        elif not self._hello.done():
            if "error" in answer:
                self._hello.set_exception(DriverError(answer["error"]))
            else:
                self._hello.set_result(None)


def _discard(pidfds: list[int]) -> None:
    """Ends a clone nobody waits for any more."""
    for pidfd in pidfds:
        with contextlib.suppress(OSError):
            syscalls.pidfd_send_signal(pidfd, syscalls.SIGKILL)
        os.close(pidfd)


async def start_template(interpreter: Interpreter, uid: int, sandboxed: bool, on_gone: Callable[[Template], None]) -> Template:
    """A warmed template process; `on_gone` is called when it has ended. Raises DriverError."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    try:
        with theirs:
            process = subprocess.Popen(  # noqa: ASYNC220  the process dies with the thread that starts it: it must be this one
                [interpreter.executable, "-I", "-S", "-B", "-X", "utf8", "template.py", str(theirs.fileno())],
                cwd=Path(__file__).parent,
                env=ENVIRONMENT,
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
    except OSError as error:
        ours.close()
        raise DriverError(f"{interpreter.executable} does not start: {error}") from error
    template = Template((process.pid, os.pidfd_open(process.pid)), process.wait, ours, uid, on_gone)
    try:
        await template.set_up(Setup(sandboxed, uid, interpreter.binds, interpreter.links, interpreter.masks))
    except BaseException:
        template.end()
        raise
    return template
