"""How a QEMU process is confined, so that who breaks out of a guest into it has won little.

As root: a host user of its own, no capability, no file it can write and few it can read (jail.py), a network namespace of its
guest's alone (taps.py), control groups, resource limits, no new privileges, QEMU's own system call filter. As an ordinary user:
the last three. Always: it ends with the node's thread that started it.

It is put on as a command line before QEMU's, of programs that are on every Debian: 2 to 3 ms, without forking the node.
"""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from workers.drivers.cells import Cell
from workers.drivers.microvm.jail import DEVICES, NoJail, make_jail
from workers.drivers.users import HostUsers, free_users, host_users
from workers.ports import DriverError

SYSTEM_CALLS = ("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny")
"""Of QEMU's command line: with it a filter of system calls is in force before a guest runs."""

ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LANG": "C"}
"""All that QEMU is to have of it: the node's own holds credentials."""

OPEN_FILES = 256
THREADS = 64
OOM_SCORE = "600"  # where the machine runs out of memory: a guest goes before the node
PROGRAMS = ("sh", "setpriv", "nsenter")

# $1 ends at `--`: files to write 0 into, which puts this process into their groups. 126: not confined, so not started.
_ENTER = """
while [ "$1" != -- ]; do echo 0 >"$1" || exit 126; shift; done; shift
echo {oom} >/proc/self/oom_score_adj || exit 126
ulimit -c 0 || exit 126
ulimit -n {files} || exit 126
{threads}
exec "$@"
"""
# Who died before the parent-death signal was asked for sends none. $1: the node. `$PPID` is of the moment this shell began.
_ORPHANED = '[ "$PPID" = "$1" ] || exit 126; shift; exec "$@"'
_THREADS = "ulimit -p {threads} 2>/dev/null || ulimit -u {threads} || exit 126"  # dash's letter, other shells'; counted by user


class Confinement:
    """What can be put on here. `folders`: what QEMU is to read beside its program; all else it gets as descriptors. `kvm`: it
    needs /dev/kvm, and the group that may open it."""

    def __init__(self, folders: Sequence[Path] = (), kvm: bool = False) -> None:
        self._folders = list(dict.fromkeys(folder.resolve() for folder in folders))
        self._devices = (*DEVICES, "kvm") if kvm else DEVICES
        self._groups = ["--groups", str(os.stat("/dev/kvm").st_gid)] if kvm and os.path.exists("/dev/kvm") else ["--clear-groups"]
        self._jail = -1
        self.privileged = False  # `open` found that programs can run as users of their own
        self.users = HostUsers(0, 0)

    def open(self) -> list[str]:
        """Makes the jail and sees what there is; one line for each thing that will not be in force. Raises DriverError when a
        program it is put on with is not there. Blocks for milliseconds."""
        absent = [name for name in PROGRAMS if shutil.which(name) is None]
        if absent:
            raise DriverError(f"microVMs are started by {', '.join(absent)}, not found here (Debian: util-linux, dash)")
        if os.geteuid() != 0:
            return [
                "host user: QEMU runs as the node's own user and could read and write that user's files",
                "files: QEMU sees the machine's",
            ]
        missing = []
        first, count = free_users(Path("/proc/self/uid_map").read_text())
        first, count = first + count // 2, count - count // 2  # the first half is the process driver's
        self.privileged = count > 0
        if self.privileged:
            self.users, unlocked = host_users(first, count)
            missing += unlocked
            try:
                self._jail = make_jail(self._folders, self._devices)
            except NoJail as error:
                missing.append(f"files: QEMU sees the machine's ({error})")
        else:
            missing.append("host user: none is free in this user namespace, QEMU runs as the node's own")
        return missing

    def close(self) -> None:
        if self._jail >= 0:
            os.close(self._jail)
            self._jail = -1
        self.users.close()

    def take_user(self) -> int:
        """One for a new QEMU; 0 where it stays the node's. Raises DriverError."""
        return self.users.take() if self.privileged else 0

    def give_back_user(self, user: int) -> None:
        if user:
            self.users.give_back(user)

    def command(self, program: Sequence[str], user: int = 0, cell: Cell | None = None, namespace: int = -1) -> list[str]:
        """The command line that runs `program` (QEMU, absolute, with its arguments) as `user` (0: the node's), in `cell`, in the
        network of the descriptor `namespace` (-1: the node's). Start it with ENVIRONMENT from a thread that lives as long as it
        is to; descriptors it inherits stay what they are."""
        threads = _THREADS.format(threads=THREADS) if user else ""
        script = _ENTER.format(oom=OOM_SCORE, files=OPEN_FILES, threads=threads)
        groups = cell.doors if cell is not None else []
        entered = ["/bin/sh", "-c", script, "sh", *groups, "--"]
        node = f"/proc/{os.getpid()}/fd"
        spaces = [f"--mount={node}/{self._jail}"] if self._jail >= 0 else []
        spaces += [f"--net={node}/{namespace}"] if namespace >= 0 else []
        if spaces:
            entered += ["nsenter", *spaces]
        dropped = ["--no-new-privs", "--pdeathsig", "KILL"]
        if user:
            who = str(user)
            dropped += ["--reuid", who, "--regid", who, *self._groups, "--bounding-set", "-all", "--inh-caps", "-all"]
        alive = ["/bin/sh", "-c", _ORPHANED, "sh", str(os.getpid())]
        return [*entered, "/usr/bin/setpriv", *dropped, "--", *alive, *program]
