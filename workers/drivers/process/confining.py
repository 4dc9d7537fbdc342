"""Runs one command of a tenant's in a sandbox of its own, from a thread: no network but a socket we answer on, nothing kept.

For what is no function: source builds. The isolation is that of a function's sandbox (isolation.py, lockdown.py); what is
written goes to memory (a tmpfs of a fixed size), so whatever ends the sandbox also cleans up after it.
"""

import contextlib
import os
import select
import socket
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from workers.drivers import syscalls, watch
from workers.drivers.cells import PROCESSES, Cell
from workers.drivers.limits import Cgroups
from workers.drivers.process.interpreter import Interpreter
from workers.drivers.process.tiers import Tier, address_space_mb
from workers.drivers.users import host_users
from workers.ports import DriverError

PROGRAM = Path(__file__).with_name("confined.py")
PORT = 3141
OUT = "/tmp/out"  # noqa: S108
START_TIMEOUT_S = 30.0
END_TIMEOUT_S = 30.0
WATCH_EVERY_S = 0.25
KEPT_OUTPUT = 64 << 10
THREADS = 24
MESSAGE = 1 << 16
NEARLY = 0.98
"""Of the disk: fuller than this, what was written last may have been refused."""

_groups = threading.Lock()  # control groups are made and given back one at a time


class ConfinementError(Exception):
    """The sandbox could not be made; the message names the step."""


class Confines(msgspec.Struct, frozen=True):
    """What the command may use at most. The disk is memory, and counts as such."""

    seconds: float
    memory_mb: int
    disk_mb: int


class Command(msgspec.Struct, frozen=True):
    """`files`: (path here, path inside), read-only inside, beside the runtime's interpreter and libraries."""

    arguments: Sequence[str]
    environment: Mapping[str, str]
    files: Sequence[tuple[str, str]] = ()


class Setup(msgspec.Struct, frozen=True):
    """First message to confined.py. `uid` 0: it stays our own user."""

    arguments: Sequence[str]
    environment: Mapping[str, str]
    files: Sequence[tuple[str, str]]
    uid: int
    binds: Sequence[tuple[str, str]]
    links: Sequence[tuple[str, str]]
    masks: Sequence[str]
    port: int
    disk_mb: int
    address_space_mb: int
    into_cgroup: bool


class Ended(msgspec.Struct, frozen=True):
    """`code`: exit code, negative or above 128 a signal. `limits`: which limits were met, in words, empty when none was."""

    code: int
    output: str
    limits: tuple[str, ...]


class Confined:
    """A sandbox that runs. `listener` answers on PORT of its loopback; `folder` is its OUT, to be read once it has ended."""

    def __init__(self, confines: Confines, process: "subprocess.Popen[bytes]", sock: socket.socket, output: int) -> None:
        self._confines = confines
        self._process = process
        self._sock = sock
        self._output = _Tail(output)
        self._pid = 0
        self._pidfd = -1
        self._code: int | None = None
        self.listener: socket.socket | None = None
        self.folder = -1

    def start(self, setup: Setup, descriptors: Sequence[int]) -> None:
        """Raises ConfinementError."""
        try:
            socket.send_fds(self._sock, [msgspec.json.encode(setup)], list(descriptors))
        except OSError as error:
            raise ConfinementError(f"the sandbox did not start: {error}") from error
        deadline = time.monotonic() + START_TIMEOUT_S
        while self.listener is None or self.folder < 0:
            if not self._next(max(0.0, deadline - time.monotonic())):
                raise ConfinementError(f"the sandbox did not start within {START_TIMEOUT_S:.0f} s")

    def _next(self, timeout_s: float) -> bool:
        """Takes one message; False when none came."""
        if not select.select([self._sock], [], [], timeout_s)[0]:
            return False
        message, descriptors, _, _ = socket.recv_fds(self._sock, MESSAGE, 4)
        if not message:
            raise ConfinementError(f"the sandbox ended without a word{self._output.said()}")
        answer: dict[str, Any] = msgspec.json.decode(message)
        if "error" in answer:
            raise ConfinementError(str(answer["error"]))
        if "started" in answer:
            self._pid, self._pidfd = answer["started"], descriptors[0]
            self.listener = socket.socket(fileno=descriptors[1])
        elif "folder" in answer:
            self.folder = descriptors[0]
        else:
            self._code = int(answer["code"])
        return True

    def wait(self, cell: Cell | None, check: Callable[[], None]) -> Ended:
        """Until the command has ended or met a limit that ends it; nothing of it runs after. `check` may end it by raising."""
        deadline = time.monotonic() + self._confines.seconds
        met: list[str] = []
        while self._code is None:
            if time.monotonic() > deadline:
                met.append(f"it was not done within {self._confines.seconds:.0f} s")
                break
            check()
            if not self._next(WATCH_EVERY_S):
                self._look(cell, met)
                if any(limit.startswith("memory") for limit in met):
                    break
        self.kill()
        if cell is not None and cell.ran_out_of_memory():
            met.append(self._memory_met())
        return Ended(self._code if self._code is not None else -9, self._output.text(), tuple(dict.fromkeys(met)))

    def _look(self, cell: Cell | None, met: list[str]) -> None:
        memory, processes, most = None, None, PROCESSES - 1
        with contextlib.suppress(OSError, ValueError):
            if cell is not None:
                memory, processes = cell.memory_bytes(), cell.processes()
            state = os.fstatvfs(self.folder)
            if state.f_bavail < state.f_blocks * (1 - NEARLY):
                met.append(f"disk: it wrote more than {self._confines.disk_mb} MB")
            elif state.f_favail == 0:
                met.append("disk: it made too many files")
        if memory is None or processes is None:
            memory, processes = watch.used(self._pid, watch.members(self._pid), True, self._confines.memory_mb << 20)
            most = PROCESSES - THREADS  # the limit counts threads, this does not
            if memory > self._confines.memory_mb << 20:
                met.append(self._memory_met())
        if processes >= most:
            met.append(f"processes: it started more than {PROCESSES}")

    def _memory_met(self) -> str:
        return f"memory: it needed more than {self._confines.memory_mb} MB"

    def kill(self) -> None:
        """Ends it, and waits until the last process of its namespace is gone. Raises ConfinementError when that fails."""
        if self._pidfd >= 0 and not _ended(self._pidfd, 0):
            with contextlib.suppress(OSError):
                syscalls.pidfd_send_signal(self._pidfd, syscalls.SIGKILL)
            if not _ended(self._pidfd, END_TIMEOUT_S):
                raise ConfinementError(f"the sandbox (process {self._pid}) did not end within {END_TIMEOUT_S:.0f} s")

    def close(self) -> None:
        with contextlib.suppress(ConfinementError):
            self.kill()
        self._sock.close()  # which confined.py takes as its end
        if self._pidfd < 0:
            self._process.kill()  # and with it what it may have made
        try:
            self._process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self.listener is not None:
            self.listener.close()
        for descriptor in (self._pidfd, self.folder):
            if descriptor >= 0:
                os.close(descriptor)
        self._output.close()


class _Tail:
    """Reads a pipe in a thread of its own and keeps the end of what came: who prints without end blocks nobody."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._kept: deque[bytes] = deque()
        self._size = 0
        self._thread = threading.Thread(target=self._read, name="build-output", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while chunk := os.read(self._descriptor, 8192):
            self._kept.append(chunk)
            self._size += len(chunk)
            while self._size - len(self._kept[0]) >= KEPT_OUTPUT:
                self._size -= len(self._kept.popleft())

    def text(self) -> str:
        self._thread.join(END_TIMEOUT_S)
        return b"".join(self._kept).decode(errors="replace")

    def said(self) -> str:
        words = " ".join(b"".join(self._kept).decode(errors="replace").split())
        return f": {words[-300:]}" if words else ""

    def close(self) -> None:
        self._thread.join(END_TIMEOUT_S)
        if not self._thread.is_alive():
            os.close(self._descriptor)


def _ended(pidfd: int, timeout_s: float) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(timeout_s * 1000))


@contextlib.contextmanager
def confined(
    interpreter: Interpreter, tier: Tier, cgroups: Cgroups | None, command: Command, confines: Confines, user: int
) -> Iterator[tuple[Confined, Cell | None]]:
    """The command, started; gone when the block is left. `user` is the number of its host user in `tier`, where it has some.

    Call it from a thread that lives as long as the block: the sandbox dies with it. Raises ConfinementError.
    """
    with _host_user(tier, user) as uid:
        yield from _confined(interpreter, tier, cgroups, command, confines, uid)


@contextlib.contextmanager
def _host_user(tier: Tier, number: int) -> Iterator[int]:
    users, _ = host_users(*tier.users)
    uid = 0
    try:
        for _ in range(number + 1 if tier.users[1] else 0):  # where nobody locks: another than the others of this process
            uid = users.take()
    except DriverError as error:
        users.close()
        raise ConfinementError(str(error)) from error
    try:
        yield uid
    finally:
        users.close()


def _confined(
    interpreter: Interpreter, tier: Tier, cgroups: Cgroups | None, command: Command, confines: Confines, uid: int
) -> Iterator[tuple[Confined, Cell | None]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    read, write = os.pipe()
    program = [interpreter.executable, "-I", "-S", "-B", "-X", "utf8", str(PROGRAM), str(theirs.fileno())]
    try:
        with theirs:
            process = subprocess.Popen(
                program, cwd="/", env={}, stdin=subprocess.DEVNULL, stdout=write, stderr=write, pass_fds=[theirs.fileno()]
            )
    except OSError as error:
        for descriptor in (read, write):
            os.close(descriptor)
        ours.close()
        raise ConfinementError(f"{interpreter.executable} does not start: {error}") from error
    running = Confined(confines, process, ours, read)
    cell: Cell | None = None
    try:
        if cgroups is not None and cgroups.usable:
            with _groups:
                cgroups.adopt(process.pid, uid)
                cell = cgroups.take(confines.memory_mb, uid)
        setup = Setup(
            arguments=command.arguments,
            environment=command.environment,
            files=command.files,
            uid=uid,
            binds=interpreter.binds,
            links=interpreter.links,
            masks=interpreter.masks,
            port=PORT,
            disk_mb=confines.disk_mb,
            address_space_mb=0 if cell is not None and cell.memory_bytes() is not None else address_space_mb(confines.memory_mb),
            into_cgroup=cell is not None and cell.into_cgroup,
        )
        running.start(setup, [write, *(cell.join if cell is not None else [])])
        os.close(write)
        write = -1
        yield running, cell
    except OSError as error:
        raise ConfinementError(f"the sandbox: {error}") from error
    finally:
        if write >= 0:
            os.close(write)
        running.close()
        if cgroups is not None and cgroups.usable:
            with _groups:
                if cell is not None:
                    cgroups.give_back(cell)
                cgroups.abandon(process.pid, uid)
