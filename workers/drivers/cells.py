"""A cell: the control groups one sandbox lives in, with the limits of a memory shape in force."""

import contextlib
import errno
import os
import signal
import time

PROCESSES = 128
NORMAL_SHARES, YIELDING_SHARES = 1024, 128  # v1
NORMAL_WEIGHT, YIELDING_WEIGHT = 100, 12  # v2
IN_USE = (errno.EBUSY, errno.ENOTEMPTY)
REMOVE_TRIES, REMOVE_PAUSE_S = 200, 0.01
REUSABLE_SHARE = 0.25  # of the limit may still be charged when a cell is used again


def write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def read(path: str) -> str:
    with open(path, encoding="ascii") as file:
        return file.read()


def remove(folder: str) -> bool:
    """Removes an empty group, waiting up to two seconds for the kernel to let go of the dead. False: still in use, or not ours
    to remove, as what another user's node has left."""
    for _ in range(REMOVE_TRIES):
        try:
            os.rmdir(folder)
        except FileNotFoundError:
            return True
        except OSError as error:
            if error.errno not in IN_USE:
                return False
            time.sleep(REMOVE_PAUSE_S)
        else:
            return True
    return False


class Cell:
    """`v1`: controller -> folder; `v2`: one folder or empty. Holds one sandbox at a time.

    `join` are descriptors for the clone: with v1 it writes itself into each (a task that moves itself alone takes no
    global lock; moving another may wait many milliseconds), with v2 clone3 makes it there.
    """

    def __init__(self, v1: dict[str, str], v2: str, memory_mb: int, owner: int) -> None:
        self.memory_mb = memory_mb
        self.owner = owner
        self.into_cgroup = bool(v2)
        self._v1 = dict(v1)
        self._v2 = v2
        self._yielding = False
        self._spent = False
        self.join: list[int] = []
        try:
            for folder in v1.values():
                self.join.append(os.open(f"{folder}/tasks", os.O_WRONLY | os.O_CLOEXEC))
            if v2:
                self.join.append(os.open(v2, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
            self._ooms = self._out_of_memory_count()
        except OSError:
            self.close()
            raise

    @property
    def folders(self) -> list[str]:
        return [*self._v1.values(), *([self._v2] if self._v2 else [])]

    @property
    def doors(self) -> list[str]:
        """Files into which a process of the node's own user writes 0 to step in."""
        return [f"{folder}/tasks" for folder in self._v1.values()] + ([f"{self._v2}/cgroup.procs"] if self._v2 else [])

    def speculative(self, on: bool) -> None:
        """A small share of the CPU, or the usual one again. Raises OSError."""
        if on == self._yielding:
            return
        if "cpu" in self._v1:
            write(self._v1["cpu"] + "/cpu.shares", str(YIELDING_SHARES if on else NORMAL_SHARES))
        elif self._has("cpu.weight"):
            write(self._v2 + "/cpu.weight", str(YIELDING_WEIGHT if on else NORMAL_WEIGHT))
        self._yielding = on

    def _has(self, name: str) -> bool:
        return bool(self._v2) and os.path.exists(f"{self._v2}/{name}")

    def tighten(self, memory_mb: int) -> None:
        """A lower limit than its shape's, for good: it is not used again. Raises OSError."""
        self._spent = True
        if "memory" in self._v1:
            limit_v1("memory", self._v1["memory"], memory_mb)
        elif self._has("memory.max"):
            write(self._v2 + "/memory.max", str(memory_mb << 20))

    def lend(self) -> None:
        """Its descriptors go to where a tenant's code has run, which may keep them and put its processes in for as long as the
        groups exist: it is not used again."""
        self._spent = True

    def memory_bytes(self) -> int | None:
        """Charged now; None where no memory controller is. Raises OSError."""
        if "memory" in self._v1:
            return int(read(self._v1["memory"] + "/memory.usage_in_bytes"))
        return int(read(self._v2 + "/memory.current")) if self._has("memory.current") else None

    def processes(self) -> int | None:
        if "pids" in self._v1:
            return int(read(self._v1["pids"] + "/pids.current"))
        return int(read(self._v2 + "/pids.current")) if self._has("pids.current") else None

    def _out_of_memory_count(self) -> int:
        if "memory" in self._v1:
            text = read(self._v1["memory"] + "/memory.oom_control")
        elif self._has("memory.events"):
            text = read(self._v2 + "/memory.events")
        else:
            return 0
        return next((int(line.split()[1]) for line in text.splitlines() if line.startswith("oom_kill ")), 0)

    def ran_out_of_memory(self) -> bool:
        """True when the kernel has killed for memory since the cell was taken."""
        with contextlib.suppress(OSError):
            return self._out_of_memory_count() > self._ooms
        return False

    def members(self) -> list[int]:
        """Processes in any of its groups. Raises OSError."""
        return list({int(pid) for folder in self.folders for pid in read(folder + "/cgroup.procs").split()})

    def kill(self) -> None:
        """Ends what is in it: what may have left its parent, or have come in from elsewhere."""
        with contextlib.suppress(OSError):
            if self._has("cgroup.kill"):
                write(self._v2 + "/cgroup.kill", "1")
                return
            for pid in self.members():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def renew(self) -> bool:
        """Makes it ready for another sandbox of its shape; False when it is not fit for one."""
        try:
            if self._spent or self.members():
                return False
            self.speculative(False)
            if "memory" in self._v1:
                write(self._v1["memory"] + "/memory.force_empty", "0")
            self._ooms = self._out_of_memory_count()
            return (self.memory_bytes() or 0) < (self.memory_mb << 20) * REUSABLE_SHARE
        except OSError:
            return False

    def close(self) -> None:
        while self.join:
            os.close(self.join.pop())

    def remove(self) -> bool:
        """Blocks for up to two seconds a group. False: somebody keeps it in use."""
        self.close()
        self.kill()
        removed = [remove(folder) for folder in self.folders]  # each one, even after a failure
        return all(removed)


def limit_v1(controller: str, folder: str, memory_mb: int) -> None:
    if controller == "memory":
        write(folder + "/memory.limit_in_bytes", str(memory_mb << 20))
        with contextlib.suppress(OSError):  # kernels without swap accounting
            write(folder + "/memory.memsw.limit_in_bytes", str(memory_mb << 20))
    elif controller == "pids":
        write(folder + "/pids.max", str(PROCESSES))


def limit_v2(controllers: tuple[str, ...], folder: str, memory_mb: int) -> None:
    if "memory" in controllers:
        write(folder + "/memory.max", str(memory_mb << 20))
        with contextlib.suppress(OSError):
            write(folder + "/memory.swap.max", "0")
    if "pids" in controllers:
        write(folder + "/pids.max", str(PROCESSES))
