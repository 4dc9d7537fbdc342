"""Processes of this machine, and which of them belong to tests that run beside this one."""

import contextlib
import os
from pathlib import Path


def _stat(pid: int) -> tuple[int, int] | None:
    """Parent, and when it started; None for a process that is gone or a zombie of somebody else's."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        if fields[0] not in "ZX":
            return int(fields[1]), int(fields[19])
    return None


def processes() -> dict[int, tuple[int, int]]:
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return {pid: found for pid in pids if (found := _stat(pid)) is not None}


def below(root: int) -> dict[int, int]:
    """Every descendant -> when it started."""
    everything = processes()
    found: dict[int, int] = {}
    newest = {root}
    while newest:
        newest = {pid for pid, (parent, _) in everything.items() if parent in newest} - found.keys()
        found |= {pid: everything[pid][1] for pid in newest}
    return found


def run_of_tests() -> int:
    """The process whose children run the tests: what a platform leaves behind is not below it, but below the first process."""
    return os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()


def neighbours() -> set[int]:
    """What runs below the run of tests and not below this process: the kernel gives a namespace's number again, perhaps to one
    of these."""
    return below(run_of_tests()).keys() - below(os.getpid()).keys() - {os.getpid()}
