"""Versions whose preparing keeps failing rest, longer each time (graph.backoff). No I/O; `now` is passed in."""

from collections import OrderedDict

from graph.backoff import Backoff, allowed, failed, tried, why

KNOWN = 10_000

INIT_FAILED = "init-failed:"
"""How nodes begin to say why a decision was cancelled when user code is why."""


class Setbacks:
    """By version: a new one starts with a clean sheet."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, tuple[Backoff, str]] = OrderedDict()

    def failed(self, version: str, reason: str, now: float) -> None:
        state, _ = self._known.get(version, (Backoff(), ""))
        self._known[version] = failed(state, now), reason
        self._known.move_to_end(version)
        if len(self._known) > KNOWN:
            self._known.popitem(last=False)

    def count(self, now: float) -> int:
        """How many rest."""
        return sum(1 for state, _ in self._known.values() if not allowed(state, now))

    def worked(self, version: str) -> None:
        self._known.pop(version, None)

    def tried(self, version: str, now: float) -> None:
        """It was ordered."""
        held = self._known.get(version)
        if held is not None:
            self._known[version] = tried(held[0], now), held[1]

    def resting(self, version: str, now: float) -> str:
        """Why it is not prepared now; empty when it may be."""
        state, reason = self._known.get(version, (Backoff(), ""))
        return "" if allowed(state, now) else f"{why(state, now)} ({reason})"

    def forget_tenant(self, tenant: str) -> None:
        for version in [one for one in self._known if one.startswith(f"{tenant}/")]:
            del self._known[version]
