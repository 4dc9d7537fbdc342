"""Versions whose preparing keeps failing: they are left out for a while, longer each time. No I/O; `now` is passed in.

One failure may be chance (a node's, a mirror's). From the second in a row on a version rests, twice as long each time; what
prepares it without being asked by a plan, and any success, ends that.
"""

from collections import OrderedDict
from dataclasses import dataclass

TOLERATED = 1
REST_S = (10.0, 600.0)
KNOWN = 10_000

INIT_FAILED = "init-failed:"
"""How nodes begin to say why a decision was cancelled when user code is why."""


@dataclass(slots=True)
class _Setback:
    times: int = 0
    until: float = 0.0
    why: str = ""


class Setbacks:
    """By version: a new one starts with a clean sheet."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, _Setback] = OrderedDict()

    def failed(self, version: str, why: str, now: float) -> None:
        one = self._known.setdefault(version, _Setback())
        self._known.move_to_end(version)
        if len(self._known) > KNOWN:
            self._known.popitem(last=False)
        if now < one.until:
            return  # of a batch that was ordered before the first of them failed
        one.times += 1
        one.why = why
        if one.times > TOLERATED:
            one.until = now + min(REST_S[1], REST_S[0] * 2 ** min(one.times - TOLERATED - 1, 16))

    def worked(self, version: str) -> None:
        self._known.pop(version, None)

    def resting(self, version: str, now: float) -> str:
        """Why it is not prepared now; empty when it may be."""
        one = self._known.get(version)
        if one is None or one.until <= now:
            return ""
        return f"its init failed {one.times} times in a row ({one.why}); not prepared for {one.until - now:.0f} s more"
