"""Publishing and sweeping take turns, tenant by tenant: a publish relies on chunks that are there, a sweep deletes some.

Each says in the origin that it has begun, *then* looks for the other; so at least one of two sees the other. A publish that sees
a sweep waits for it; a sweep that sees a publish, or another sweep, leaves. What a dead process said counts no longer after the
longest time that it may take. Times are the origin's own: clocks of hosts do not matter.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import msgspec

from workers.code.objects import LONGEST_S, Stored
from workers.code.origin import Origin, OriginError

PUBLISH, SWEEP = "publish", "sweep"
LONGEST = {PUBLISH: 600.0, SWEEP: 60.0}
"""Seconds after which one must not begin another request."""

WAIT_S = 20.0
LOOK_S = 0.2


class Turn(msgspec.Struct, frozen=True):
    """`began`: by this host's clock since its boot; `at`: the same by the origin's clock. `free`: nothing else goes on."""

    kind: str
    began: float
    at: float
    free: bool

    @property
    def over(self) -> bool:
        """True when others may begin to think that whoever has the turn is dead."""
        return _now() > self.began + LONGEST[self.kind]

    def covers(self, written: float) -> bool:
        """Whether nobody can have thought so when something was written, by the origin's clock: that one goes on while a host, or
        a virtual machine, stands still."""
        return written < self.at + LONGEST[self.kind] + LONGEST_S


def _now() -> float:
    """Goes on while the host sleeps, as the others do."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@contextmanager
def publishing(origin: Origin, tenant: str, wait_s: float | None = None) -> Iterator[Turn]:
    """Nothing of the tenant's is swept while it lasts. Raises OriginError, also when a sweep does not end in time."""
    with _turn(origin, tenant, PUBLISH) as (turn, mark):
        while _others(origin.marks(tenant), (SWEEP,), mark, _now() - turn.began):
            if _now() > turn.began + (WAIT_S if wait_s is None else wait_s):
                raise OriginError(f"the code of tenant {tenant} is being tidied up")
            time.sleep(LOOK_S)
        yield turn


@contextmanager
def sweeping(origin: Origin, tenant: str) -> Iterator[Turn]:
    """Only a turn that is `free` and not `over` may delete anything. Raises OriginError."""
    with _turn(origin, tenant, SWEEP) as (turn, mark):
        others = _others(origin.marks(tenant), (PUBLISH, SWEEP), mark, _now() - turn.began)
        yield msgspec.structs.replace(turn, free=not others)


@contextmanager
def _turn(origin: Origin, tenant: str, kind: str) -> Iterator[tuple[Turn, Stored]]:
    began = _now()
    mark = origin.mark(tenant, kind)
    try:
        yield Turn(kind, began, mark.modified, free=False), mark
    finally:
        with suppress(OriginError):  # it is overlooked in time
            origin.unmark(mark)


def _others(marks: Sequence[tuple[str, Stored]], kinds: Sequence[str], own: Stored, elapsed: float) -> bool:
    """True when somebody else's mark of these kinds still counts, `elapsed` seconds after our own was set."""
    now = own.modified + elapsed
    return any(
        kind in kinds and mark.name != own.name and now < mark.modified + LONGEST[kind] + LONGEST_S for kind, mark in marks
    )
