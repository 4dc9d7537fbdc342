"""How many requests a lazy layer's server answers: a burst for a start, then a steady rate. Pure; standard library only.

The server's time is the node's, not the sandbox's: without this a function that asks for names that are not there, as fast as it
can, would take a core from the others. What the kernel keeps (names, attributes, content) is not asked of the server again.
"""

BURST = 100_000
PER_S = 4_000
"""About a tenth of a core."""


class Allowance:
    def __init__(self, now: float, burst: int = BURST, per_s: int = PER_S) -> None:
        self._burst = burst
        self._per_s = per_s
        self._left = float(burst)
        self._at = now

    def take(self, count: int, now: float) -> float:
        """Seconds to rest after `count` requests, 0 within the allowance."""
        self._left = min(self._burst, self._left + max(0.0, now - self._at) * self._per_s) - count
        self._at = now
        return max(0.0, -self._left / self._per_s)
