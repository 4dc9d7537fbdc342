"""What an init left behind that cannot be cloned, read from outside: the keeper looks, the original is not asked.

A clone has one thread and shares what it inherits with every other clone: so nothing may be left that runs, or that is
shared and can be written. Standard library only; runs in the keeper.
"""

import contextlib
import os
import signal
import time
from collections.abc import Callable

ACCESS_MODE = os.O_ACCMODE
STRAY_ROUNDS = 200
STRAYS_END_S = 10.0
STRAYS_LOOK_S = 0.001
CHARACTER_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random")


Found = tuple[str, str] | None
"""(kind, why in words for the author of the function)"""


def found(pid: int, own_descriptors: int) -> Found:
    """Why process `pid` must not be cloned; None: it may. The first `own_descriptors` are ours. Raises OSError: it is gone."""
    for look in (_processes, _threads, _shared_memory, _files):
        reason = look(pid)
        if reason is not None:
            return reason
    return _descriptors(pid, own_descriptors)


def strays() -> list[int]:
    """Processes that live in the process namespace of the caller, its first process, beside that: none of an instance's, which
    has a namespace of its own. The dead are left out."""
    left: list[int] = []
    for name in os.listdir("/proc"):
        if name.isdigit() and name != "1":
            with contextlib.suppress(OSError):
                told = dict(line.split(":", 1) for line in _read(f"/proc/{name}/status").splitlines())
                if len(told["NSpid"].split()) == 1 and told["State"].split()[0] not in ("Z", "X"):
                    left.append(int(name))
    return left


def end_strays(look: Callable[[], list[int]] = strays) -> bool:
    """Kills whatever `look` finds until that is nothing. False: they multiply, new ones in each of many rounds, or do not die.

    One that was killed is there until it had its turn at the CPU, however often one looks: that is no new round."""
    killed: set[int] = set()
    rounds, end = 0, time.monotonic() + STRAYS_END_S
    while left := look():
        fresh = not killed.issuperset(left)
        rounds += fresh
        if rounds > STRAY_ROUNDS or time.monotonic() > end:
            return False
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        killed.update(left)
        if not fresh:
            time.sleep(STRAYS_LOOK_S)
    return True


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()


def _processes(pid: int) -> Found:
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) not in (1, pid):
            with contextlib.suppress(OSError):
                return "process", f"a process it started is still there ({_read(f'/proc/{name}/comm').strip()})"
    return None


def _threads(pid: int) -> Found:
    tasks = [task for task in os.listdir(f"/proc/{pid}/task") if int(task) != pid]
    if not tasks:
        return None
    names = sorted({_read(f"/proc/{pid}/task/{task}/comm").strip() for task in tasks})
    return "thread", f"threads it started still run: {len(tasks)} ({', '.join(names[:4])})"


def _shared_memory(pid: int) -> Found:
    for line in _read(f"/proc/{pid}/maps").splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) > 1 and fields[1][3] == "s" and "w" in fields[1]:
            return "shared-memory", f"it shares memory that can be written ({fields[5] if len(fields) > 5 else 'anonymous'})"
    return None


def _files(pid: int) -> Found:
    left = os.listdir(f"/proc/{pid}/root/tmp")
    return ("files", f"it left files in /tmp ({left[0]}), which each instance has for itself") if left else None


def _descriptors(pid: int, own: int) -> Found:
    for name in sorted(os.listdir(f"/proc/{pid}/fd"), key=int):
        if int(name) < own:
            continue
        target = os.readlink(f"/proc/{pid}/fd/{name}")
        flags = next(line for line in _read(f"/proc/{pid}/fdinfo/{name}").splitlines() if line.startswith("flags:"))
        if target.startswith("socket:"):
            return "socket", "it keeps a socket open"
        if not target.startswith("/") or target.startswith("/memfd:"):
            return "descriptor", f"it keeps something open that cannot be cloned ({target.removesuffix(' (deleted)')})"
        if target not in CHARACTER_DEVICES and int(flags.split()[1], 8) & ACCESS_MODE:
            return "descriptor", f"it keeps a file open for writing ({target})"
    return None
