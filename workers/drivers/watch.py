"""Memory and processes of a sandbox read from /proc, where no control group counts them."""

import contextlib
import os
from collections.abc import Sequence

PAGE = os.sysconf("SC_PAGE_SIZE")
MAX_PROCESSES = 4096


def members(*pids: int) -> list[int]:
    """`pids` and everything below them. Orphans in a process namespace become children of its first process."""
    found = [*pids]
    for one in found:
        with contextlib.suppress(OSError, ValueError):
            for task in os.listdir(f"/proc/{one}/task"):
                with open(f"/proc/{one}/task/{task}/children", encoding="ascii") as file:
                    found += [int(child) for child in file.read().split()]
        if len(found) > MAX_PROCESSES:
            break
    return found


def resident(pid: int) -> int:
    """Bytes resident that are not file pages, shared ones counted in full; 0 when the process is gone."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        with open(f"/proc/{pid}/statm", encoding="ascii") as file:
            fields = file.read().split()
        return (int(fields[1]) - int(fields[2])) * PAGE
    return 0


def cpu(pid: int) -> tuple[float, bool] | None:
    """(seconds process `pid` has run or stood in a run queue, whether it runs or stands there now); None when it is gone or
    the kernel does not count. The first alone misses one that waits long for its turn: its time is added when it gets it."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        with open(f"/proc/{pid}/schedstat", encoding="ascii") as file:
            fields = file.read().split()
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            state = file.read().rpartition(")")[2].split()[0]
        return (int(fields[0]) + int(fields[1])) / 1e9, state == "R"
    return None


def own_share(pid: int) -> int:
    """Bytes of anonymous memory, shared ones divided by their sharers (dear: walks every page)."""
    with contextlib.suppress(OSError, ValueError), open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
        return sum(int(line.split()[1]) << 10 for line in file if line.startswith(("Pss_Anon:", "Pss_Shmem:")))
    return 0


def temporary_files(pid: int) -> int:
    """Bytes in the sandbox's /tmp."""
    with contextlib.suppress(OSError):
        state = os.statvfs(f"/proc/{pid}/root/tmp")
        return (state.f_blocks - state.f_bfree) * state.f_frsize
    return 0


def pid_of(pidfd: int) -> int:
    """The process a pidfd stands for, as this process counts them; 0 when it is gone."""
    with contextlib.suppress(OSError, ValueError), open(f"/proc/self/fdinfo/{pidfd}", encoding="ascii") as file:
        return next((max(0, int(line.split()[1])) for line in file if line.startswith("Pid:")), 0)
    return 0


def used(pid: int, pids: Sequence[int], sandboxed: bool, limit: int) -> tuple[int, int]:
    """(bytes, processes) of a sandbox of `pids`, `pid` among them. Exact only when the cheap count is over `limit`."""
    files = temporary_files(pid) if sandboxed else 0
    total = sum(map(resident, pids)) + files
    if total > limit:
        total = sum(map(own_share, pids)) + files
    return total, len(pids)
