"""A fair share of the processor for each worker of a run (control groups v1, root).

A node takes a CPU group of its own with the weight of many programs (`Cgroups.own_weight`). Beside the nodes of two other workers
the gateway, planner or CLI of a third one would get a few per cent of a core, and would stand still for seconds.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from workers.drivers.limits import detect

STEPS_BACK = 100  # looks for processes that were started while others were moved


@contextlib.contextmanager
def own_share() -> Iterator[None]:
    """This process, and all that it starts, in a CPU group beside those of the other workers, with the default weight. Where
    there is none to be had, everything stays where it is."""
    found = detect(Path("/proc/self/mountinfo").read_text(), Path("/proc/self/cgroup").read_text()).v1.get("cpu")
    if os.geteuid() != 0 or found is None:
        yield
        return
    parent = Path(found)
    group = parent / f"tests.{os.getpid()}"  # no `-PID`, by which the groups of drivers are known
    try:
        group.mkdir()
        (group / "cgroup.procs").write_text("0")
    except OSError:
        with contextlib.suppress(OSError):
            group.rmdir()
        yield
        return
    try:
        yield
    finally:
        for _ in range(STEPS_BACK):
            members = (group / "cgroup.procs").read_text().split()
            for pid in members:
                with contextlib.suppress(OSError):  # one that ends meanwhile
                    (parent / "cgroup.procs").write_text(pid)
            if not members:
                break
        for folder, _, _ in os.walk(group, topdown=False):  # nodes that were killed have left theirs
            with contextlib.suppress(OSError):
                os.rmdir(folder)
