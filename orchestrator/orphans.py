"""What a process left behind when it ended: its children become ours, are reaped, and end with us.

A program that a killed process had started (a build, a sandbox) would otherwise live on below init.
"""

import ctypes
import os
import signal
import time
from collections.abc import Collection
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36
POLL_S = 0.01

_libc = ctypes.CDLL(None, use_errno=True)


def adopt() -> None:
    """From now on processes below this one that lose their parent become its children."""
    _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def reap(known: Collection[int]) -> None:
    """Takes away ended children that are not among `known`, whose own watchers wait for them."""
    for pid in _children() - set(known):
        try:
            os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            continue


def end(timeout_s: float) -> int:
    """Kills every child, and what becomes one by that, until there is none. Returns how many there were; bounded in time."""
    ended: set[int] = set()
    deadline = time.monotonic() + timeout_s
    while (left := _children()) and time.monotonic() < deadline:
        for pid in left:
            os.kill(pid, signal.SIGKILL)  # ours and not reaped: the number cannot be another's
            ended.add(pid)
        time.sleep(POLL_S)
        reap(())
    return len(ended)


def _children() -> set[int]:
    me, found = str(os.getpid()), set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if (entry / "stat").read_text().rpartition(")")[2].split()[1] == me:
                    found.add(int(entry.name))
            except OSError:
                continue
    return found
