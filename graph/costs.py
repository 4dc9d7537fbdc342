"""What a function's starts and its idling have come to, in seconds and at prices. Running totals. Pure."""

import msgspec

from graph.plans import Outcome, Prices


class Costs(msgspec.Struct, array_like=True):
    """One function's, since it was first counted.

    `waited_s`: what invocations waited for an instance. `saved_s`: preparing they did not wait for. `idle_s`, `idle_gb_s`:
    instances prepared ahead and unused, those never used included; of it `wasted_s` by these. Then the decisions by outcome,
    and the invocations that found nothing prepared.
    """

    waited_s: float = 0.0
    saved_s: float = 0.0
    idle_s: float = 0.0
    idle_gb_s: float = 0.0
    wasted_s: float = 0.0
    hits: int = 0
    late: int = 0
    wasted: int = 0
    cancelled: int = 0
    unprepared: int = 0

    def ended(self, outcome: Outcome, memory_mb: int, idle_s: float, saved_s: float = 0.0, waited_s: float = 0.0) -> None:
        """A decision ended. `idle_s`: from ready to its use or its end, 0 when it never got ready.

        Raises ValueError for an outcome that is not final.
        """
        if outcome is Outcome.HIT:
            self.hits += 1
        elif outcome is Outcome.LATE:
            self.late += 1
        elif outcome is Outcome.WASTED:
            self.wasted += 1
            self.wasted_s += idle_s
        elif outcome is Outcome.CANCELLED:
            self.cancelled += 1
        else:
            raise ValueError(f"outcome: {outcome.value!r} is not the end of a decision")
        self.idle_s += idle_s
        self.idle_gb_s += idle_s * memory_mb / 1024
        self.saved_s += saved_s
        self.waited_s += waited_s

    def waited(self, seconds: float) -> None:
        """An invocation waited for an instance nobody had prepared."""
        self.unprepared += 1
        self.waited_s += seconds

    def at(self, prices: Prices) -> tuple[float, float]:
        """The price of all waiting and of all idling."""
        return self.waited_s * prices.late_s, self.idle_gb_s * prices.idle_gb_s
