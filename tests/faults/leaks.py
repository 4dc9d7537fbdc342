"""What a platform could leave behind on a machine: processes, namespaces, mounts, control groups, files, descriptors."""

import contextlib
import os
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from doubles.neighbours import below, processes, run_of_tests
from faults.running import Running, wait_for

from workers.drivers import limits

NAMESPACES = ("mnt", "pid", "net", "user", "ipc", "uts", "cgroup")
GONE_S = 20.0
CGROUPS = Path("/sys/fs/cgroup")
DATABASE = "/foreglow.db"


def _namespaces(pid: int) -> set[str]:
    names = set()
    for kind in NAMESPACES:
        with contextlib.suppress(OSError):
            names.add(os.readlink(f"/proc/{pid}/ns/{kind}"))
    return names


def descriptors(pid: int) -> Counter[str]:
    """Open descriptors by kind: `socket`, `pipe`, `anon_inode`, `file`. Without those kept for the next use, as many as
    were ever used at once: a node's control groups, and three of each thread's connection to SQLite."""
    found: Counter[str] = Counter()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            target = os.readlink(entry)
            if target.startswith(str(CGROUPS)) or DATABASE in target:
                continue
            found["file" if target.startswith("/") else target.partition(":")[0]] += 1
    return found


def _mounts(words: tuple[str, ...]) -> list[str]:
    return [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if any(word in line for word in words)]


@dataclass
class Traces:
    """Looks at a platform while it runs (`look`, as often as wanted) and says at the end what is still there (`left`)."""

    platform: Running
    processes: dict[int, int] = field(default_factory=dict)
    namespaces: dict[str, int] = field(default_factory=dict)
    """When each was last seen in use by the platform, as the kernel says when a process started."""

    def look(self) -> None:
        ours = _namespaces(os.getpid())
        found = below(self.platform.process.pid)
        now = int(time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK"))
        self.processes |= found
        for pid in found:
            self.namespaces |= dict.fromkeys(_namespaces(pid) - ours, now)

    def left(self) -> list[str]:
        """After the platform was stopped. Waits a moment for what ends by itself."""
        with contextlib.suppress(AssertionError):
            wait_for(lambda: not self._found(), "nothing is left", GONE_S)
        return self._found()

    def alive(self) -> list[int]:
        """Processes seen before that are still there after a moment."""
        with contextlib.suppress(AssertionError):
            wait_for(lambda: not self._alive(), "every process has ended", GONE_S)
        return self._alive()

    def _alive(self) -> list[int]:
        everything = processes()
        return [pid for pid, started in self.processes.items() if everything.get(pid, (0, -1))[1] == started]

    def _found(self) -> list[str]:
        alive = processes()
        for pid in below(run_of_tests()):  # the kernel gives a namespace's number again, perhaps to a test beside this one
            alive.pop(pid, None)
        left = [f"process {pid}" for pid in self._alive()]
        for pid, (_, started) in alive.items():
            # who started later has a number that was given again; so may one match, and a sandbox that was left has several
            held = {name for name in _namespaces(pid) if self.namespaces.get(name, -1) >= started}
            if len(held) > 1:
                left.append(f"namespaces {held} of process {pid}")
        settings = self.platform.settings
        left += _mounts((str(self.platform.state), str(settings.runtime_folder)))
        for driver in ("process", "microvm"):
            group = limits.name_of(settings.node_folder / driver, 0).rpartition("-")[0]
            for folder, names, _ in os.walk(CGROUPS):  # others' groups go while we look
                left += [f"control group {folder}/{name}" for name in names if name.startswith(group)]
        left += [f"file {path}" for path in self._files()]
        return left

    def _files(self) -> list[Path]:
        """What only a running platform has: sockets and addresses, folders of a build or an instance under way."""
        state, settings = self.platform.state, self.platform.settings
        running = [settings.runtime_folder, settings.addresses_file, state / "processes.json", state / "planner" / "state.new"]
        under_way = [*state.glob("flow/build-*"), *state.rglob("*.new"), *state.rglob("resolve-*"), *state.rglob(".tmp*")]
        return [path for path in [*running, *under_way] if path.exists()]
