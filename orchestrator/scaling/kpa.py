"""The policy `kpa`: Knative's pod autoscaler as published, to choose or to compare with. Pure.

After knative.dev/docs/serving/autoscaling (kpa-specific) and the defaults of its config-autoscaler. What has no meaning here is
left out: the burst capacity that decides where requests wait, and rates in place of concurrency.
"""

import math

import msgspec

from orchestrator.scaling.terms import Bounds, Observed, Source, Term
from orchestrator.scaling.windows import Windows


class KpaSettings(msgspec.Struct, frozen=True):
    """Under the names of config-autoscaler: stable-window, panic-window-percentage (of it), panic-threshold-percentage,
    max-scale-up-rate, max-scale-down-rate, container-concurrency-target-percentage, scale-to-zero-grace-period, tick-interval."""

    stable_s: float = 60.0
    panic_share: float = 0.10
    panic_threshold: float = 2.0
    max_up: float = 1000.0
    max_down: float = 2.0
    utilisation: float = 0.70
    grace_s: float = 30.0
    tick_s: float = 2.0


DEFAULT = KpaSettings()


class Kpa:
    """One version's. What is above the wanted count goes at once, as the excess pods of a Deployment do."""

    name = "kpa"
    releases = True

    def __init__(self, settings: KpaSettings = DEFAULT) -> None:
        self.tick_s = settings.tick_s
        self._settings = settings
        self._panic_s = max(1.0, round(settings.stable_s * settings.panic_share))
        self._windows = Windows(settings.stable_s, self._panic_s)
        self._panics_since: float | None = None
        self._most = 0  # wanted in this panic
        self._decided: tuple[float, Term] | None = None
        self._zero_since: float | None = None

    def decide(self, now: float, observed: Observed, bounds: Bounds) -> Term:
        self._windows.add(now, observed)
        before = self._decided
        if before is not None and now - before[0] < self.tick_s - 1e-6 and before[1].count:
            return before[1]
        term = self._scale(now, observed.ready, bounds)
        self._decided = (now, term)
        return term

    def _scale(self, now: float, ready: int, bounds: Bounds) -> Term:
        settings = self._settings
        pods = max(1, ready)
        target = (min(bounds.target, bounds.concurrency) if bounds.target > 0.0 else bounds.concurrency) * settings.utilisation
        stable, panic = self._windows.mean(), self._windows.mean_recent()
        most, least = math.ceil(settings.max_up * pods), math.floor(pods / settings.max_down)
        stable_raw, panic_raw = _ceil(stable / target), _ceil(panic / target)
        wanted, wanted_panic = min(max(stable_raw, least), most), min(max(panic_raw, least), most)
        if panic_raw / pods >= settings.panic_threshold:
            self._panics_since = now
        elif self._panics_since is not None and self._panics_since + settings.stable_s < now:
            self._panics_since, self._most = None, 0
        if self._panics_since is not None:
            self._most = max(self._most, wanted, wanted_panic)
            wanted, why = self._most, f"panic: {panic:.3g} at once over {self._panic_s:g} s, target {target:.3g}"
        else:
            why = f"stable: {stable:.3g} at once over {settings.stable_s:g} s, target {target:.3g}"
        if wanted == 0 and stable_raw == 0:
            return self._to_zero(now, why)
        self._zero_since = None
        return Term(Source.REACTIVE, wanted, why)

    def _to_zero(self, now: float, why: str) -> Term:
        """The last one goes when it was not needed for the grace period."""
        if self._decided is None or (self._zero_since is None and not self._decided[1].count):
            return Term(Source.REACTIVE, 0, why)
        if self._zero_since is None:
            self._zero_since = now
        if now - self._zero_since < self._settings.grace_s:
            return Term(Source.REACTIVE, 1, f"{why}; to zero after {self._settings.grace_s:g} s of grace")
        self._zero_since = None
        return Term(Source.REACTIVE, 0, why)

    def rests(self) -> bool:
        nothing = self._decided is None or not self._decided[1].count
        return nothing and self._panics_since is None and self._windows.silent()

    def roots_per_s(self) -> float:
        return self._windows.roots_per_s(self._panic_s)


def _ceil(count: float) -> int:
    return math.ceil(count - 1e-9)
