"""One process under the supervisor: started, its output kept in a bounded log, started again when it ends, stopped.

It dies with the supervisor (PDEATHSIG), even when that is killed, and sits in a process group of its own, so that Ctrl-C on
the terminal reaches the supervisor only.
"""

import asyncio
import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

PR_SET_PDEATHSIG = 1
LOG_BYTES = 4 << 20  # a log and the one before it: at most twice this on disk
FIRST_DELAY_S = 0.2
MAX_DELAY_S = 10.0
STEADY_S = 30.0  # after this long a process counts as well again
TAIL_LINES = 20

_libc = ctypes.CDLL(None, use_errno=True)


def restart_delay(crashes: int) -> float:
    """Seconds to wait before the next start after `crashes` ends in a row (1 or more)."""
    return float(min(MAX_DELAY_S, FIRST_DELAY_S * 2 ** min(crashes - 1, 16)))


class BoundedLog:
    """Appends to `path`; when it is full it becomes `path`.1. A full disk loses lines, never a process."""

    def __init__(self, path: Path, limit: int = LOG_BYTES) -> None:
        self.path = path
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._limit = limit
        self._partial = b""

    def write(self, chunk: bytes) -> None:
        *lines, self._partial = (self._partial + chunk).split(b"\n")
        self._partial = self._partial[-4096:]
        self.tail.extend(line.decode(errors="replace") for line in lines if line.strip())
        with contextlib.suppress(OSError):
            if self.path.exists() and self.path.stat().st_size + len(chunk) > self._limit:
                self.path.replace(self.path.with_name(self.path.name + ".1"))
            with os.fdopen(os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600), "ab") as file:
                file.write(chunk)


class Supervised:
    """`on_end(self, code, delay)` is called each time the process ended unasked and will start again in `delay` seconds."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        log: BoundedLog,
        on_end: Callable[["Supervised", int, float], None] = lambda one, code, delay: None,
    ) -> None:
        self.name = name
        self.log = log
        self.crashes = 0
        self.restarts = 0
        self._command = list(command)
        self._environment = dict(environment)
        self._on_end = on_end
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0
        self._stopping = False
        self._ended = asyncio.Event()
        self._ended.set()
        self._restart: asyncio.TimerHandle | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    def start(self) -> None:
        """Starts the process. Raises OSError when the program cannot be executed."""
        parent = os.getpid()

        def die_with_parent() -> None:  # between fork and exec: async-signal-safe calls only
            _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != parent:
                os._exit(1)

        self._process = subprocess.Popen(
            self._command,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            process_group=0,
            preexec_fn=die_with_parent,  # noqa: PLW1509 - the supervisor has one thread
        )
        assert self._process.stdout is not None
        self._started_at = time.monotonic()
        self._ended.clear()
        output = self._process.stdout.fileno()
        os.set_blocking(output, False)
        loop = asyncio.get_running_loop()
        loop.add_reader(output, self._read, output)
        pidfd = os.pidfd_open(self._process.pid)
        loop.add_reader(pidfd, self._on_exit, pidfd)

    def _read(self, output: int) -> None:
        try:
            chunk = os.read(output, 65536)
        except BlockingIOError:
            return
        if chunk:
            self.log.write(chunk)
        else:
            asyncio.get_running_loop().remove_reader(output)

    def _on_exit(self, pidfd: int) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(pidfd)
        os.close(pidfd)
        process, self._process = self._process, None
        assert process is not None
        assert process.stdout is not None
        self._kill_group(process.pid)
        code = process.wait()
        with contextlib.suppress(BlockingIOError, ValueError):
            while chunk := os.read(process.stdout.fileno(), 65536):
                self.log.write(chunk)
        loop.remove_reader(process.stdout.fileno())
        process.stdout.close()
        self._ended.set()
        if self._stopping:
            return
        self.crashes = 1 if time.monotonic() - self._started_at > STEADY_S else self.crashes + 1
        delay = restart_delay(self.crashes)
        self._restart = loop.call_later(delay, self._again)
        self._on_end(self, code, delay)

    def _again(self) -> None:
        if self._stopping:
            return
        self.restarts += 1
        try:
            self.start()
        except OSError as error:  # no memory or processes now: try later
            self.crashes += 1
            self.log.write(f"cannot start: {error.strerror}\n".encode())
            self._restart = asyncio.get_running_loop().call_later(restart_delay(self.crashes), self._again)

    def _kill_group(self, pid: int) -> None:
        """Nothing the process started in its group outlives it. The pid cannot be reused: the leader is not reaped yet."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)

    async def stop(self, timeout_s: float) -> bool:
        """SIGTERM, then after `timeout_s` SIGKILL. Returns False when it had to be killed. Idempotent."""
        self._stopping = True
        if self._restart is not None:
            self._restart.cancel()
        self._signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(self._ended.wait(), timeout_s)
        except TimeoutError:
            self.kill()
            await asyncio.wait_for(self._ended.wait(), 5.0)
            return False
        return True

    def kill(self) -> None:
        """Ends it at once and for good."""
        self._stopping = True
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)
