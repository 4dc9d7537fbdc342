"""How the versions of steps in force do: requests, errors and latency, from the records of their invocations. Bounded; no I/O."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from orchestrator.releases import Seen
from tracing.records import InvocationRecord

KEPT = 2000
"""Of a version's newest requests the times are kept."""

FAILED = ("error", "timeout", "killed")
NOT_ITS_FAULT = ("", "Overload")
"""Of what was refused: there was no room. A module that cannot be imported is its fault."""


@dataclass(slots=True)
class _Watched:
    since: float  # what was sent before does not count
    requests: int = 0
    errors: int = 0
    took_s: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT))


class Watching:
    """By release, then version. `begin` starts anew; what is not `keep`t is forgotten."""

    def __init__(self) -> None:
        self._releases: dict[int, dict[str, _Watched]] = {}
        self._by_version: dict[str, list[_Watched]] = {}

    def begin(self, release: int, versions: Iterable[str], now: float) -> None:
        """`now` is of the clock that records have."""
        self._releases[release] = {version: _Watched(now) for version in versions}
        self._index()

    def keep(self, releases: Iterable[int]) -> None:
        """Only these are watched any more."""
        kept = set(releases)
        if self._releases.keys() - kept:
            self._releases = {one: watched for one, watched in self._releases.items() if one in kept}
            self._index()

    def observe(self, records: Iterable[InvocationRecord]) -> None:
        if not self._by_version:
            return
        for record in records:
            for watched in self._by_version.get(f"{record.function}:{record.version}", ()):
                if record.sent_at < watched.since or record.status == "cancelled":
                    continue
                refused = record.status == "refused"
                if refused and record.error_type in NOT_ITS_FAULT:
                    continue
                watched.requests += 1
                watched.errors += refused or record.status in FAILED
                watched.took_s.append(record.ended_at - record.sent_at)

    def seen(self, release: int, version: str) -> Seen:
        watched = self._releases.get(release, {}).get(version)
        if watched is None or not watched.requests:
            return Seen()
        took = sorted(watched.took_s)
        return Seen(watched.requests, watched.errors, took[min(len(took) - 1, int(len(took) * 0.95))])

    def _index(self) -> None:
        self._by_version = {}
        for versions in self._releases.values():
            for version, watched in versions.items():
                self._by_version.setdefault(version, []).append(watched)
