"""The tiers of isolation a host may allow, from the strongest: which to try, and what to say about the one that worked."""

import os
from dataclasses import dataclass
from pathlib import Path

from workers.drivers import syscalls
from workers.drivers.limits import CONTROLLERS, Cgroups
from workers.drivers.users import free_users
from workers.ports import IsolationReport

ADDRESS_SPACE_FACTOR, ADDRESS_SPACE_EXTRA_MB = 4, 2048


@dataclass(frozen=True)
class Tier:
    """`users`: (first, count) of host users for templates; count 0: they stay the node's user."""

    name: str  # root | userns | none
    users: tuple[int, int] = (0, 0)

    @property
    def sandboxed(self) -> bool:
        return self.name != "none"


def candidates() -> list[Tier]:
    """What to try here, in order."""
    tiers = [Tier("userns"), Tier("none")]
    if os.geteuid() == 0:
        users = free_users(Path("/proc/self/uid_map").read_text())
        if users[1]:
            return [Tier("root", users), Tier("userns"), Tier("none", users)]
    return tiers


def address_space_mb(memory_mb: int) -> int:
    """RLIMIT_AS where no control group holds the memory. Generous: numerical libraries reserve far more than they touch,
    so the watchdog holds the memory and this only stops what runs away faster than it looks."""
    return memory_mb * ADDRESS_SPACE_FACTOR + ADDRESS_SPACE_EXTRA_MB


def report(tier: Tier, cgroups: Cgroups, notes: list[str]) -> IsolationReport:
    """`notes`: stronger tiers that failed, and refused control groups."""
    limits = {controller: cgroups.kind(controller) for controller in CONTROLLERS}
    missing = list(notes)
    if limits["memory"] == "none":
        limits["memory"] = "rlimit"
        missing.append("memory: no control group; a watchdog ends a sandbox within about half a second of passing its limit")
    if limits["pids"] == "none" and tier.sandboxed:
        limits["pids"] = "rlimit"
    elif limits["pids"] == "none":
        missing.append("processes: not limited")
    if limits["cpu"] == "none":
        missing.append("cpu: no control group; speculative work does not yield")
    if not tier.sandboxed:
        missing.append("namespaces: functions see the files, processes and network of the user they run as")
    elif not tier.users[1]:
        missing.append("host user: every sandbox runs as the node's own user, within its namespaces")
    if syscalls.landlock_version() == 0:
        missing.append("landlock: this kernel has none; the read-only root stands alone")
    name = "root+cgroups" if tier.name == "root" and limits["memory"] != "rlimit" else tier.name
    return IsolationReport("process", name, limits, tuple(missing))
