"""When the n-th instance of a function is called again: idle times by how many are busy. Pure state, no clock.

The instance used last is used next, so the n-th is called when n - 1 are busy already: its idle times are those between the
moment when no more than n - 1 were, and the next when one more is needed. Those of the first are the function's own.
"""

import msgspec

from graph.arrivals import Arrivals
from graph.keeping import worth_keeping_s
from graph.plans import Prices

LEVELS = 32
"""So many are told apart; what is above counts as the last."""


class Levels(msgspec.Struct, array_like=True):
    """One function's. `of`: idle times of the first, second, ... instance. `busy`: invocations now."""

    of: list[Arrivals] = []
    busy: int = 0

    def started(self, now: float, per: int = 1) -> None:
        """An invocation. `per`: how many one instance takes at once."""
        level, first = divmod(self.busy, per)
        self.busy += 1
        if first == 0 and level < LEVELS:
            while len(self.of) <= level:
                self.of.append(Arrivals())
            self.of[level].started(now)

    def ended(self, now: float, per: int = 1) -> None:
        if not self.busy:
            return
        self.busy -= 1
        level, first = divmod(self.busy, per)
        if first == 0 and level < len(self.of):
            self.of[level].ended(now)

    def ran(self, sent: float, ended: float) -> None:
        """An invocation whose start was not heard of. Beside others it is of the level above them; one that began while another
        ran that has ended meanwhile has found no idle time."""
        if self.busy:
            self.started(sent)
            self.ended(ended)
            return
        if not self.of:
            self.of.append(Arrivals())
        first = self.of[0]
        since = first.idle_since
        if since is None or sent >= since:
            first.started(sent)
        first.ended(max(ended, since or 0.0))

    def lost_count(self) -> None:
        """Ends were not heard of: counting begins anew, and no idle time is under way."""
        self.busy = 0
        for one in self.of:
            one.running, one.idle_since = 0, None


def worths_keeping_s(levels: Levels, prices: Prices, memory_mb: int, start_s: float, longest_s: float) -> list[float | None]:
    """Of each level as graph.keeping has it, seconds. Of one that too little is known of as the one below it, which is called
    sooner; None: of none below is anything known."""
    found: list[float | None] = []
    for one in levels.of:
        worth_s = worth_keeping_s(one, prices, memory_mb, start_s, longest_s)
        found.append(found[-1] if worth_s is None and found else worth_s)
    return found
