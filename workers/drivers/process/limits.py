"""Memory, process and CPU limits by cgroups: v1 per controller or v2, always below this process's own group.

A `Cell` is the set of groups one sandbox lives in. Cells are used again when their sandbox is gone, because making and
removing memory groups costs more than the rest of a clone.
"""

import contextlib
import os
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

CONTROLLERS = ("memory", "pids", "cpu")
PROCESSES = 128
NORMAL_SHARES, YIELDING_SHARES = 1024, 16  # v1
NORMAL_WEIGHT, YIELDING_WEIGHT = 100, 2  # v2
MAX_SPARE = 8  # cells of a shape kept for the next sandbox
REMOVE_TRIES, REMOVE_PAUSE_S = 200, 0.01


@dataclass(frozen=True)
class Layout:
    """Where this process may make groups: controller -> folder of its own group. `v2` empty: none."""

    v1: dict[str, str]
    v2: str
    v2_controllers: tuple[str, ...]

    def kind(self, controller: str) -> str:
        """cgroup-v1 | cgroup-v2 | none"""
        if controller in self.v1:
            return "cgroup-v1"
        return "cgroup-v2" if controller in self.v2_controllers else "none"


def detect(mountinfo: str, own_groups: str) -> Layout:
    """Reads /proc/self/mountinfo and /proc/self/cgroup (given as text). Says where groups are, not whether one may write."""
    own: dict[str, str] = {}
    for line in own_groups.splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            own[controller] = path
    v1: dict[str, str] = {}
    v2 = ""
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        fields, kinds = before.split(), after.split()
        if len(fields) < 5 or len(kinds) < 3:
            continue
        root, point, options = fields[3], fields[4], kinds[2].split(",")
        if kinds[0] == "cgroup2" and not v2:
            v2 = _below(point, root, own.get("", "/"))
        elif kinds[0] == "cgroup":
            for controller in CONTROLLERS:
                if controller in options and controller in own and controller not in v1:
                    v1[controller] = _below(point, root, own[controller])
    return Layout(v1, v2, ())


def _below(point: str, root: str, own: str) -> str:
    """The folder of group `own` in a hierarchy whose part `root` is mounted at `point`."""
    if root != "/" and (own == root or own.startswith(root + "/")):
        own = own[len(root) :]
    return (point + own).rstrip("/")


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def _read(path: str) -> str:
    with open(path, encoding="ascii") as file:
        return file.read()


class Cell:
    """The groups of one sandbox. `join`: descriptors to hand to the clone (v1: it writes itself into each; v2: one folder
    for clone3). Not used by two sandboxes at a time."""

    def __init__(self, folders: dict[str, str], v2: str, memory_mb: int) -> None:
        self.memory_mb = memory_mb
        self.into_cgroup = bool(v2)
        self._folders = dict(folders)
        self._v2 = v2
        self._yielding = False
        self.join: list[int] = []
        try:
            self.join += [os.open(f"{folder}/tasks", os.O_WRONLY | os.O_CLOEXEC) for folder in folders.values()]
            if v2:
                self.join.append(os.open(v2, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
            self._ooms = self._out_of_memory_count()
        except OSError:
            self.close()
            raise

    @property
    def folders(self) -> list[str]:
        return [*self._folders.values(), *([self._v2] if self._v2 else [])]

    def speculative(self, on: bool) -> None:
        if on == self._yielding:
            return
        if "cpu" in self._folders:
            _write(self._folders["cpu"] + "/cpu.shares", str(YIELDING_SHARES if on else NORMAL_SHARES))
        elif self._v2 and os.path.exists(self._v2 + "/cpu.weight"):
            _write(self._v2 + "/cpu.weight", str(YIELDING_WEIGHT if on else NORMAL_WEIGHT))
        self._yielding = on

    def memory_bytes(self) -> int | None:
        if "memory" in self._folders:
            return int(_read(self._folders["memory"] + "/memory.usage_in_bytes"))
        if self._v2 and os.path.exists(self._v2 + "/memory.current"):
            return int(_read(self._v2 + "/memory.current"))
        return None

    def processes(self) -> int | None:
        folder = self._folders.get("pids") or self._v2
        if folder and os.path.exists(folder + "/pids.current"):
            return int(_read(folder + "/pids.current"))
        return None

    def _out_of_memory_count(self) -> int:
        if "memory" in self._folders:
            text = _read(self._folders["memory"] + "/memory.oom_control")
        elif self._v2 and os.path.exists(self._v2 + "/memory.events"):
            text = _read(self._v2 + "/memory.events")
        else:
            return 0
        return next((int(line.split()[1]) for line in text.splitlines() if line.startswith("oom_kill ")), 0)

    def ran_out_of_memory(self) -> bool:
        """True when the kernel killed in this cell since it was taken."""
        with contextlib.suppress(OSError):
            return self._out_of_memory_count() > self._ooms
        return False

    def empty(self) -> bool:
        with contextlib.suppress(OSError):
            return not any(_read(folder + "/cgroup.procs").strip() for folder in self.folders)
        return False

    def reset(self) -> None:
        """Ready for another sandbox of the same shape. Raises OSError."""
        self.speculative(False)
        if "memory" in self._folders:
            _write(self._folders["memory"] + "/memory.force_empty", "0")
        self._ooms = self._out_of_memory_count()

    def close(self) -> None:
        while self.join:
            os.close(self.join.pop())


class Cgroups:
    """Makes, reuses and removes cells."""

    def __init__(self, layout: Layout, name: str) -> None:
        self.layout = layout
        self._name = name  # of our group in every hierarchy
        self._spare: dict[int, list[Cell]] = defaultdict(list)
        self._count = 0
        self._roots: dict[str, str] = {}
        self._v2_root = ""

    def open(self) -> list[str]:
        """Makes our own group in each hierarchy that lets us; what was refused, one line each."""
        refused: list[str] = []
        usable: dict[str, str] = {}
        for controller, own in self.layout.v1.items():
            root = f"{own}/{self._name}"
            try:
                os.mkdir(root)
            except OSError as error:
                refused.append(f"{controller}: no group of its own: {error.strerror}")
                continue
            self._roots[controller] = usable[controller] = root
        controllers: tuple[str, ...] = ()
        if self.layout.v2:
            try:
                controllers = self._open_v2(self.layout.v2)
            except OSError as error:
                refused.append(f"cgroup v2: no group of its own: {error.strerror}")
        self.layout = Layout({c: self.layout.v1[c] for c in usable}, self.layout.v2, controllers)
        return refused

    def _open_v2(self, own: str) -> tuple[str, ...]:
        """Controllers we can hand on to cells. A group with processes cannot hand any on, so we need none there but root's."""
        offered = [c for c in _read(f"{own}/cgroup.controllers").split() if c in CONTROLLERS]
        if not offered:
            return ()
        enabled = _read(f"{own}/cgroup.subtree_control").split()
        if not set(offered) <= set(enabled):
            leaf = f"{own}/{self._name}-node"
            if _read(f"{own}/cgroup.procs").split() == [str(os.getpid())]:
                os.mkdir(leaf)  # alone in it: step aside
                _write(f"{leaf}/cgroup.procs", "0")
            _write(f"{own}/cgroup.subtree_control", " ".join(f"+{c}" for c in offered))
        root = f"{own}/{self._name}"
        os.mkdir(root)
        self._v2_root = root
        _write(f"{root}/cgroup.subtree_control", " ".join(f"+{c}" for c in offered))
        return tuple(offered)

    @property
    def usable(self) -> bool:
        return bool(self._roots or self._v2_root)

    @property
    def roots(self) -> list[str]:
        return [*self._roots.values(), *([self._v2_root] if self._v2_root else [])]

    def take(self, memory_mb: int, owner: int) -> Cell:
        """A cell with the limits of a shape, in force. Raises OSError."""
        spare = self._spare[memory_mb]
        return spare.pop() if spare else self._make(memory_mb, owner)

    def _make(self, memory_mb: int, owner: int) -> Cell:
        self._count += 1
        made: list[str] = []
        try:
            folders: dict[str, str] = {}
            for controller, root in self._roots.items():
                folder = f"{root}/c{self._count}"
                os.mkdir(folder)
                made.append(folder)
                folders[controller] = folder
                self._limit_v1(controller, folder, memory_mb)
            v2 = ""
            if self._v2_root:
                v2 = f"{self._v2_root}/c{self._count}"
                os.mkdir(v2)
                made.append(v2)
                self._limit_v2(v2, memory_mb, owner)
            return Cell(folders, v2, memory_mb)
        except OSError:
            for folder in made:
                with contextlib.suppress(OSError):
                    os.rmdir(folder)
            raise

    def _limit_v1(self, controller: str, folder: str, memory_mb: int) -> None:
        if controller == "memory":
            limit = str(memory_mb << 20)
            _write(folder + "/memory.limit_in_bytes", limit)
            with contextlib.suppress(OSError):  # kernels without swap accounting
                _write(folder + "/memory.memsw.limit_in_bytes", limit)
        elif controller == "pids":
            _write(folder + "/pids.max", str(PROCESSES))

    def _limit_v2(self, folder: str, memory_mb: int, owner: int) -> None:
        if "memory" in self.layout.v2_controllers:
            _write(folder + "/memory.max", str(memory_mb << 20))
            with contextlib.suppress(OSError):
                _write(folder + "/memory.swap.max", "0")
        if "pids" in self.layout.v2_controllers:
            _write(folder + "/pids.max", str(PROCESSES))
        if owner:
            os.chown(folder + "/cgroup.procs", owner, -1)

    def give_back(self, cell: Cell) -> None:
        """The sandbox is gone: keeps the cell for the next one, or removes it. May block for up to two seconds."""
        spare = self._spare[cell.memory_mb]
        if len(spare) < MAX_SPARE and cell.empty():
            try:
                cell.reset()
            except OSError:
                pass
            else:
                spare.append(cell)
                return
        self._remove(cell)

    def _remove(self, cell: Cell) -> None:
        cell.close()
        for folder in cell.folders:
            remove(folder)

    def close(self) -> None:
        """Removes every spare cell and our own groups."""
        for spare in self._spare.values():
            while spare:
                self._remove(spare.pop())
        for root in self.roots:
            remove(root)


def remove(folder: str) -> bool:
    """Removes an empty group, waiting a little for the kernel to let go of dead processes. False: it is still in use."""
    for _ in range(REMOVE_TRIES):
        try:
            os.rmdir(folder)
        except FileNotFoundError:
            return True
        except OSError:
            time.sleep(REMOVE_PAUSE_S)
        else:
            return True
    return False


def sweep(layout: Layout, prefix: str) -> int:
    """Removes groups `prefix<pid>` whose process is gone; how many. For what a killed predecessor left."""
    swept = 0
    for own in {*layout.v1.values(), *([layout.v2] if layout.v2 else [])}:
        for root in Path(own).glob(prefix + "*"):
            pid = root.name[len(prefix) :].partition("-")[0]
            if not pid.isdigit() or int(pid) == os.getpid() or os.path.exists(f"/proc/{pid}"):
                continue
            for cell in [path for path in root.iterdir() if path.is_dir()]:
                remove(str(cell))
            swept += remove(str(root))
    return swept
