"""What ends a clone's power for good: Landlock, capabilities, descriptors, seccomp. Standard library only; in the template."""

import fcntl
import os
import struct

from workers.drivers import syscalls


class Lockdown:
    """What ends a clone's power for good. The filter and the Landlock rules are made ahead, `apply` is short."""

    _READ = 1 | 4 | 8  # execute, read file, read folder
    _WRITE_FILE = 2

    def __init__(self, program: bytes) -> None:
        self._program = program
        self._ruleset = -1
        self._attributes = b""
        self._handled = 0
        self._rules: list[tuple[int, int]] = []  # (access, folder), the same for every clone

    def open_folders(self, version: int) -> None:
        """In the template, inside its root: what the rules of Landlock ABI `version` (0: none) have in common."""
        if version == 0:
            return
        self._handled = (1 << 13) - 1
        for since, bit in ((2, 13), (3, 14), (5, 15)):
            if version >= since:
                self._handled |= 1 << bit
        scoped = 3 if version >= 6 else 0  # abstract sockets and signals stay inside
        self._attributes = struct.pack("QQQ", self._handled, 0, scoped)[: 24 if version >= 6 else 16 if version >= 4 else 8]
        devices = self._handled & (self._READ | self._WRITE_FILE | 1 << 15)
        self._rules = [
            (access, os.open(path, os.O_PATH | os.O_CLOEXEC)) for access, path in ((self._READ, "/"), (devices, "/dev"))
        ]

    def allow_all(self) -> None:
        """In the original of a function template: its clones have a /tmp that no rule of its own could name, so the rules hold
        nothing back but what Landlock always does: no mounts, signals and abstract sockets only among its own."""
        if self._handled:
            self._rules = [(self._handled, os.open("/", os.O_PATH | os.O_CLOEXEC))]
            self._ruleset = syscalls.landlock_create(self._attributes)
            syscalls.landlock_allow(self._ruleset, *self._rules[0])

    def prepare(self, sandboxed: bool) -> None:
        """In the clone, before code comes: the bounding set, and the Landlock rules."""
        if not sandboxed:
            return
        syscalls.drop_bounding_set()
        if not self._handled:
            return
        self._ruleset = syscalls.landlock_create(self._attributes)
        temporary = os.open("/tmp", os.O_PATH | os.O_CLOEXEC)  # noqa: S108
        for access, folder in (*self._rules, (self._handled, temporary)):
            syscalls.landlock_allow(self._ruleset, access, folder)
        os.close(temporary)

    def keep_at(self, target: int, safe: int) -> int:
        """Moves the ruleset's descriptor to `target` (by way of one above `safe`); how many descriptors that takes."""
        if self._ruleset < 0:
            return 0
        os.dup2(fcntl.fcntl(self._ruleset, fcntl.F_DUPFD_CLOEXEC, safe), target, inheritable=False)
        self._ruleset = target
        return 1

    def apply(self, first_closed: int, sandboxed: bool, capability: int = -1) -> None:
        """No capability (but one), no new privilege, no other descriptor, no way back. `first_closed` 0: descriptors stay."""
        syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
        if self._ruleset >= 0:
            syscalls.landlock_restrict(self._ruleset)
        if first_closed:
            syscalls.close_range(first_closed, 0xFFFF_FFFF)
        else:
            self._close()
        if sandboxed:
            syscalls.drop_capabilities(capability)
        syscalls.seccomp(self._program)

    def _close(self) -> None:
        for descriptor in [self._ruleset, *(folder for _, folder in self._rules)]:
            if descriptor >= 0:
                os.close(descriptor)
        self._ruleset, self._rules = -1, []
