"""Runs a program under limits; whatever it started is gone when the call returns."""

import contextlib
import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

POLL_S = (0.002, 0.05)


class TimedOut(Exception):
    """The program was ended at its time limit."""


class Bounds(msgspec.Struct, frozen=True):
    """`file_bytes` also bounds what it prints. 0: no bound."""

    seconds: float
    file_bytes: int
    memory_bytes: int = 0


def run_bounded(
    command: Sequence[str],
    environment: Mapping[str, str],
    output: Path,
    bounds: Bounds,
    watch: Callable[[], None] = lambda: None,
) -> int:
    """The exit code (negative: the signal). What it prints goes to the file `output`, in whose folder it runs.

    `watch` is called about once a second and ends the program by raising. Raises TimedOut, OSError.
    """
    with output.open("wb") as sink:
        process = subprocess.Popen(
            list(command),
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            cwd=output.parent,
            start_new_session=True,
        )
    try:
        # set from outside right after the start: a hook between fork and exec is not safe in a process with threads
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (bounds.file_bytes, bounds.file_bytes))
            if bounds.memory_bytes:
                resource.prlimit(process.pid, resource.RLIMIT_AS, (bounds.memory_bytes, bounds.memory_bytes))
        _wait(process.pid, bounds.seconds, watch)
    finally:
        # not reaped yet, so the number of the group cannot be another's
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        code = process.wait()
    return code


def _wait(pid: int, seconds: float, watch: Callable[[], None]) -> None:
    deadline = time.monotonic() + seconds
    watch_at = time.monotonic() + 1.0
    pause = POLL_S[0]
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
        now = time.monotonic()
        if now > deadline:
            raise TimedOut(f"not done within {seconds:.0f} s")
        if now > watch_at:
            watch()
            watch_at = now + 1.0
        time.sleep(pause)
        pause = min(pause * 1.5, POLL_S[1])
