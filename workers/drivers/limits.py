"""Finds the control groups this process may use, v1 per controller or v2, and hands out cells below its own group."""

import contextlib
import hashlib
import itertools
import os
import re
import signal
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from workers.drivers.cells import Cell, limit_v1, limit_v2, read, remove, write

CONTROLLERS = ("memory", "pids", "cpu")
CORES = os.cpu_count() or 1
GROUP_SHARES, GROUP_WEIGHT = 2048 * CORES, 200 * CORES
"""All sandboxes together weigh as two busy processes a core (v1: 1024 each) or as two groups (v2: 100 each). With the default
weight they would get what one process gets; with that of as many processes as there are sandboxes, guests that compute starve
the node and the gateway that serve them all: those need little, and need it at once."""
NODE_SHARES, NODE_WEIGHT = 8 * GROUP_SHARES, 8 * GROUP_WEIGHT
"""Of the node's own group, beside that one. It computes little, and all sandboxes wait while it does not run; what it does not
use is everybody's (`python -m benchmarks.standstill`)."""
HOST_PIDS = "pid:[4026531836]"  # the first process namespace of a host has this number
START_SLACK_S = 0.1  # when a process started is known to a hundredth of a second
STEPS_BACK = 100  # looks for processes that were started while others were moved
MAX_SPARE = 8  # cells of a shape kept for the next sandbox: making one costs more than the rest of a clone


@dataclass(frozen=True)
class Layout:
    """Own groups: v1 controller -> folder; v2 folder (empty: none)."""

    v1: dict[str, str]
    v2: str


def detect(mountinfo: str, own_groups: str) -> Layout:
    """Reads /proc/self/mountinfo and /proc/self/cgroup, given as text. Where groups are, not whether one may write there."""
    own: dict[str, str] = {}
    for line in own_groups.splitlines():
        parts = line.split(":", 2)
        if len(parts) == 3:
            own.update(dict.fromkeys(parts[1].split(","), parts[2]))
    v1: dict[str, str] = {}
    v2 = ""
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        fields, kinds = before.split(), after.split()
        if len(fields) < 5 or len(kinds) < 3:
            continue
        root, point = fields[3], fields[4].replace("\\040", " ")
        if kinds[0] == "cgroup2" and not v2 and "" in own:
            v2 = _below(point, root, own[""])
        elif kinds[0] == "cgroup":
            for controller in CONTROLLERS:
                if controller in kinds[2].split(",") and controller in own and controller not in v1:
                    v1[controller] = _below(point, root, own[controller])
    return Layout(v1, v2)


_NODE_GROUP = re.compile(r"/foreglow-[0-9a-f]{10}-[0-9]+-node$")


def _below(point: str, root: str, own: str) -> str:
    """The folder of group `own` in a hierarchy of which the part below `root` is mounted at `point`. A node's own group is one
    of ours, made in the one it was found in."""
    own = _NODE_GROUP.sub("", own)
    if root != "/" and (own == root or own.startswith(root + "/")):
        own = own[len(root) :]
    return (point + own).rstrip("/")


class Cgroups:
    """Makes, reuses and removes cells in a group `name` of its own. Methods block for as long as the kernel does."""

    def __init__(self, layout: Layout, name: str) -> None:
        self._layout = layout
        self._name = name
        self._spare: dict[tuple[int, int], list[Cell]] = defaultdict(list)
        self._numbers = itertools.count(1)  # cells are made in several threads
        self._v1: dict[str, str] = {}
        self._v2 = ""
        self._v2_controllers: tuple[str, ...] = ()
        self._owners: dict[int, str] = {}
        self._node = ""  # v1: our own group for the CPU

    def open(self) -> list[str]:
        """Makes our own group in each hierarchy that lets us; what was refused, one line each."""
        refused: list[str] = []
        without: dict[str, list[str]] = {}  # why -> controllers
        for controller, own in self._layout.v1.items():
            root = f"{own}/{self._name}"
            try:
                os.makedirs(root, exist_ok=True)
                probe = f"{root}/c0"
                os.makedirs(probe, exist_ok=True)
                try:
                    limit_v1(controller, probe, 128)
                finally:
                    os.rmdir(probe)
            except OSError as error:
                remove(root)
                without.setdefault(error.strerror or str(error), []).append(controller)
            else:
                self._v1[controller] = root
                if controller == "cpu":
                    write(f"{root}/cpu.shares", str(GROUP_SHARES))
        refused += [f"cgroup v1: no group of our own for {', '.join(names)} ({why})" for why, names in without.items()]
        if self._layout.v2:
            try:
                offered = tuple(c for c in read(f"{self._layout.v2}/cgroup.controllers").split() if c in CONTROLLERS)
                if offered:
                    self.open_v2(offered)
            except OSError as error:
                refused.append(f"cgroup v2: no group of our own ({error.strerror}); a delegated group would do")
        return refused

    def open_v2(self, controllers: tuple[str, ...]) -> None:
        """Hands `controllers` on to groups of our own. Raises OSError: v2 hands none on from a group with processes in it,
        so this process steps into a leaf when it is alone there."""
        own = self._layout.v2
        wanted = " ".join(f"+{c}" for c in controllers)
        if not set(controllers) <= set(read(f"{own}/cgroup.subtree_control").split()):
            if read(f"{own}/cgroup.procs").split() == [str(os.getpid())]:
                os.makedirs(f"{own}/{self._name}-node", exist_ok=True)
                write(f"{own}/{self._name}-node/cgroup.procs", "0")
            write(f"{own}/cgroup.subtree_control", wanted)
        os.makedirs(f"{own}/{self._name}", exist_ok=True)
        if controllers:
            write(f"{own}/{self._name}/cgroup.subtree_control", wanted)
        if "cpu" in controllers:
            write(f"{own}/{self._name}/cpu.weight", str(GROUP_WEIGHT))
            with contextlib.suppress(OSError):  # no leaf of its own, or not ours to write
                write(f"{own}/{self._name}-node/cpu.weight", str(NODE_WEIGHT))
        self._v2, self._v2_controllers = f"{own}/{self._name}", controllers

    def own_weight(self) -> None:
        """Gives this process, all its threads, a CPU group of its own with more weight than all sandboxes. v2: `open` did.
        Where it is in one already, or may not have one, it stays where it is."""
        if "cpu" not in self._v1:
            return
        own = self._layout.v1["cpu"]
        folder = f"{own}/{self._name}-node"
        try:
            if str(os.getpid()) not in read(f"{own}/cgroup.procs").split():
                return
            os.makedirs(folder, exist_ok=True)
            write(f"{folder}/cpu.shares", str(NODE_SHARES))
            write(f"{folder}/cgroup.procs", "0")
        except OSError:
            remove(folder)
        else:
            self._node = folder

    def _step_back(self) -> None:
        """What is in the node's group was put there by its start: this process and what it has started."""
        for _ in range(STEPS_BACK):
            members: list[str] = []
            with contextlib.suppress(OSError):
                members = read(f"{self._node}/cgroup.procs").split()
            for pid in members:
                with contextlib.suppress(OSError):  # one that ends meanwhile
                    write(f"{self._layout.v1['cpu']}/cgroup.procs", pid)
            if not members:
                break
        remove(self._node)
        self._node = ""

    def kind(self, controller: str) -> str:
        """cgroup-v1 | cgroup-v2 | none"""
        if controller in self._v1:
            return "cgroup-v1"
        return "cgroup-v2" if controller in self._v2_controllers else "none"

    @property
    def usable(self) -> bool:
        return bool(self._v1 or self._v2)

    @property
    def shared_doors(self) -> list[str]:
        """As Cell.doors, of the group of all sandboxes: v1 only, a v2 group has cells in it and no processes."""
        return [f"{self._v1['cpu']}/tasks"] if "cpu" in self._v1 else []

    @property
    def roots(self) -> list[str]:
        return [*self._v1.values(), *([self._v2] if self._v2 else [])]

    def adopt(self, pid: int, owner: int) -> None:
        """A template process of host user `owner` (0: ours): with v2 it must live beside the cells it clones into.
        Raises OSError."""
        if self._v2:
            folder = f"{self._owner_folder(owner)}/template-{pid}"
            os.makedirs(folder, exist_ok=True)
            write(f"{folder}/cgroup.procs", str(pid))

    def abandon(self, pid: int, owner: int) -> None:
        """The template process has gone."""
        if self._v2:
            remove(f"{self._owner_folder(owner)}/template-{pid}")

    def _owner_folder(self, owner: int) -> str:
        """v2: a subtree the user may move its own clones in, and nobody else's."""
        folder = self._owners.get(owner)
        if folder is None:
            folder = f"{self._v2}/u{owner}"
            os.makedirs(folder, exist_ok=True)
            if self._v2_controllers:
                write(f"{folder}/cgroup.subtree_control", " ".join(f"+{c}" for c in self._v2_controllers))
            if owner:
                os.chown(f"{folder}/cgroup.procs", owner, -1)
            self._owners[owner] = folder
        return folder

    def take(self, memory_mb: int, owner: int) -> Cell:
        """A cell with the limits of a shape in force. Raises OSError."""
        spare = self._spare[memory_mb, owner if self._v2 else 0]
        return spare.pop() if spare else self._make(memory_mb, owner)

    def _make(self, memory_mb: int, owner: int) -> Cell:
        number = next(self._numbers)
        made: list[str] = []
        try:
            v1: dict[str, str] = {}
            for controller, root in self._v1.items():
                v1[controller] = f"{root}/c{number}"
                os.mkdir(v1[controller])
                made.append(v1[controller])
                limit_v1(controller, v1[controller], memory_mb)
            v2 = ""
            if self._v2:
                v2 = f"{self._owner_folder(owner)}/c{number}"
                os.mkdir(v2)
                made.append(v2)
                limit_v2(self._v2_controllers, v2, memory_mb)
                if owner:
                    os.chown(v2 + "/cgroup.procs", owner, -1)
            return Cell(v1, v2, memory_mb, owner)
        except OSError:
            for folder in made:
                with contextlib.suppress(OSError):
                    os.rmdir(folder)
            raise

    def give_back(self, cell: Cell) -> bool:
        """Its sandbox is gone: keeps the cell for the next one, or makes another and removes it. False: it is in use."""
        spare = self._spare[cell.memory_mb, cell.owner if self._v2 else 0]
        if len(spare) < MAX_SPARE and cell.renew():
            spare.append(cell)
            return True
        if len(spare) < MAX_SPARE:
            with contextlib.suppress(OSError):
                spare.append(self._make(cell.memory_mb, cell.owner))
        return cell.remove()

    def close(self) -> None:
        """Removes every spare cell and our own groups; empty ones only."""
        if self._node:
            self._step_back()
        for spare in self._spare.values():
            while spare:
                spare.pop().remove()
        for folder in [*self._owners.values(), *self.roots]:
            remove(folder)


def name_of(folder: Path, pid: int) -> str:
    """Of the group of the driver that owns `folder` and runs as `pid`."""
    return f"foreglow-{hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:10]}-{pid}"


def sweep(layout: Layout, name: str) -> int:
    """Removes what killed predecessors left: groups named like `name` whose process is gone; how many.

    Where every process of the host is visible, those of other folders too: nobody may ever start there again. What outlived
    its node in such a group (it was killed between a sandbox's start and its asking to die with it) is ended there.
    """
    digest = name.rpartition("-")[0].rpartition("-")[2]
    every = os.readlink("/proc/self/ns/pid") == HOST_PIDS
    swept = 0
    for own in {*layout.v1.values(), *([layout.v2] if layout.v2 else [])}:
        for root in Path(own).glob("foreglow-*-*" if every else f"foreglow-{digest}-*"):
            pid = root.name.split("-")[2]
            if pid.isdigit() and int(pid) != os.getpid() and not _made_by(pid, root):
                for folder, _, _ in os.walk(root, topdown=False):
                    if every:
                        _end_members(folder)
                    swept += remove(folder)
    return swept


def _end_members(folder: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        for pid in read(f"{folder}/cgroup.procs").split():
            with contextlib.suppress(OSError):
                os.kill(int(pid), signal.SIGKILL)


def _made_by(pid: str, group: Path) -> bool:
    """Whether the process that has this number now made `group`: one that has ended and that nobody has asked for yet did
    not (any more), nor did one that started after the group was last changed: it got the number later."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        changed = group.stat().st_mtime
    except OSError:
        return False
    age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return fields[0] not in ("Z", "X") and time.time() - age_s <= changed + START_SLACK_S
