"""The policy `headroom`: what traffic needs on average and a margin that grows with its root, at once what a burst needs, and
back down slowly. Pure.

Demand that comes at random varies by its root: R busy on average are rarely more than R + b sqrt(R) (square-root staffing, Halfin
and Whitt, Operations Research 29, 1981). A fixed utilisation keeps too much for large R and too little for small.
"""

import math
from collections import deque

import msgspec

from orchestrator.scaling.terms import Bounds, Observed, Source, Term
from orchestrator.scaling.windows import Windows


class HeadroomSettings(msgspec.Struct, frozen=True):
    """`headroom`: the b above. `stable_s`, `panic_s`: the windows of the average and of the burst. `cooldown_s`: so long a count
    that was needed stays wanted; `shrink`: then this part of it goes in one tick, one instance at least."""

    stable_s: float = 60.0
    panic_s: float = 6.0
    cooldown_s: float = 60.0
    headroom: float = 1.0
    shrink: float = 0.1


DEFAULT = HeadroomSettings()
LEAST = 0.05
"""Concurrency under which the average needs nothing: calls now and then are for keep-alive, which knows when they return."""


def staffed(demand: float, per_instance: float, headroom: float) -> int:
    """Instances for that much concurrency on average."""
    if demand < LEAST:
        return 0
    needed = demand / per_instance
    return math.ceil(needed + headroom * math.sqrt(needed) - 1e-9)


def per_instance(bounds: Bounds) -> float:
    """Invocations that are to share an instance; all it takes, unless the owner says less."""
    return min(bounds.target, bounds.concurrency) if bounds.target > 0.0 else float(bounds.concurrency)


class Headroom:
    """One version's. The last instance is not its to keep: it wants one only while there is demand for one.

    What is younger than the stable window counts as preceded by silence: until there is an average, the burst speaks.
    """

    name = "headroom"
    tick_s = 1.0
    releases = False

    def __init__(self, settings: HeadroomSettings = DEFAULT) -> None:
        self._settings = settings
        self._windows = Windows(settings.stable_s, settings.panic_s)
        self._needs: deque[tuple[float, int]] = deque()  # falling counts, each with when it was needed last
        self._wanted = 0
        self._said: tuple[tuple[int, ...], Term] | None = None  # of a burst, with what its sentence says

    def decide(self, now: float, observed: Observed, bounds: Bounds) -> Term:
        settings = self._settings
        self._windows.add(now, observed)
        each = per_instance(bounds)
        mean, peak = self._windows.mean_over(settings.stable_s), self._windows.peak_recent()
        steady = staffed(mean, each, settings.headroom)
        burst = math.ceil(peak / each - 1e-9)
        need = max(steady, burst)
        cooling = self._cooled(now, need)
        if need >= self._wanted:
            self._wanted = need
            if burst > steady:
                return self._burst(peak, burst, observed.ready)
            return self._term(f"{mean:.2f} at once on average need {steady} with headroom")
        if cooling >= self._wanted:
            return self._term(f"{need} are needed, {self._wanted} were in the last {settings.cooldown_s:g} s")
        step = max(1, math.ceil(self._wanted * settings.shrink))
        self._wanted = max(cooling, self._wanted - step)
        return self._term(f"{need} are needed, and no more than {cooling} were in the last {settings.cooldown_s:g} s: by steps")

    def rests(self) -> bool:
        return not self._wanted and self._windows.silent()

    def roots_per_s(self) -> float:
        """Invocations from outside: of the last second, or of the burst's window where that is more."""
        return max(self._windows.roots_per_s(self.tick_s), self._windows.roots_per_s(self._settings.panic_s))

    def _cooled(self, now: float, need: int) -> int:
        """The most that was needed in the last `cooldown_s`, this tick included. One instance is no reason to hold one."""
        needs = self._needs
        while needs and needs[-1][1] <= need:
            needs.pop()
        needs.append((now, need))
        while needs[0][0] <= now - self._settings.cooldown_s:
            needs.popleft()
        most = needs[0][1]
        return most if most > 1 else need

    def _burst(self, peak: int, burst: int, ready: int) -> Term:
        """Most ticks say again what the one before has said: the sentence is made once."""
        says = (peak, burst, min(ready, burst))
        if self._said is None or self._said[0] != says:
            more = f", {ready} are ready" if burst > ready else ""
            self._said = says, self._term(f"{peak} at once in the last {self._settings.panic_s:g} s need {burst}{more}")
        return self._said[1]

    def _term(self, reason: str) -> Term:
        return Term(Source.REACTIVE, self._wanted, reason)
