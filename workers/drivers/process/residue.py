"""What an init left behind that cannot be cloned, read from outside: the keeper looks, the original is not asked.

A clone has one thread and shares what it inherits with every other clone: so nothing may be left that runs, or that is
shared and can be written. Standard library only; runs in the keeper.
"""

import contextlib
import os

READ_ONLY_FLAGS = 0o3  # O_ACCMODE
CHARACTER_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random")
SYSV = ("shm", "sem", "msg")


def found(pid: int, own_descriptors: int) -> str:
    """Why process `pid` must not be cloned, in words for its author; empty: it may. Its first `own_descriptors` are ours."""
    for look in (_processes, _threads, _shared_memory, _files):
        reason = look(pid)
        if reason:
            return reason
    return _descriptors(pid, own_descriptors)


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()


def _processes(pid: int) -> str:
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) not in (1, pid):
            with contextlib.suppress(OSError):
                return f"a process it started is still there ({_read(f'/proc/{name}/comm').strip()})"
    return ""


def _threads(pid: int) -> str:
    tasks = [task for task in os.listdir(f"/proc/{pid}/task") if int(task) != pid]
    if not tasks:
        return ""
    names = sorted({_read(f"/proc/{pid}/task/{task}/comm").strip() for task in tasks})
    return f"{len(tasks)} thread{'s' if len(tasks) > 1 else ''} it started still run{'' if len(tasks) > 1 else 's'} ({', '.join(names[:4])})"


def _shared_memory(pid: int) -> str:
    for line in _read(f"/proc/{pid}/maps").splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) > 1 and fields[1][3] == "s" and "w" in fields[1]:
            return f"it shares memory that can be written ({fields[5] if len(fields) > 5 else 'anonymous'})"
    for kind in SYSV:
        with contextlib.suppress(FileNotFoundError):
            if len(_read(f"/proc/{pid}/root/proc/sysvipc/{kind}").splitlines()) > 1:
                return f"it left System V {kind} objects"
    return ""


def _files(pid: int) -> str:
    left = os.listdir(f"/proc/{pid}/root/tmp")
    return f"it left files in /tmp ({left[0]}), which each instance has for itself" if left else ""


def _descriptors(pid: int, own: int) -> str:
    for name in sorted(os.listdir(f"/proc/{pid}/fd"), key=int):
        if int(name) < own:
            continue
        target = os.readlink(f"/proc/{pid}/fd/{name}")
        flags = next(line for line in _read(f"/proc/{pid}/fdinfo/{name}").splitlines() if line.startswith("flags:"))
        if target.startswith("socket:"):
            return "it keeps a socket open"
        if not target.startswith("/") or target.startswith("/memfd:"):
            return f"it keeps something open that cannot be cloned ({target.partition(':[')[0].removesuffix(' (deleted)')})"
        if target not in CHARACTER_DEVICES and int(flags.split()[1], 8) & READ_ONLY_FLAGS:
            return f"it keeps a file open for writing ({target})"
    return ""
