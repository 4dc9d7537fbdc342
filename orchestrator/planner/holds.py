"""What releases ask the scaler to have ready, until they say otherwise. No I/O; `now` is monotonic and passed in."""

from collections.abc import Collection
from dataclasses import dataclass

from graph.ids import VersionId, tenant_of
from orchestrator.scaling.terms import Source, Term
from workers.versions import VersionSpec


@dataclass(slots=True)
class Hold:
    """`count` instances of a version for one release. `ordered`: the decisions that were made while it held, the newest last."""

    spec: VersionSpec
    count: int
    reason: str
    until: float
    ordered: list[str]


class Holds:
    """By version and release: one that is not in force yet is in no route, so what it is comes with its hold."""

    def __init__(self) -> None:
        self._of: dict[str, dict[int, Hold]] = {}

    def __contains__(self, version: str) -> bool:
        return version in self._of

    @property
    def versions(self) -> Collection[str]:
        return self._of.keys()

    def put(self, release: int, hold: Hold) -> None:
        """In the place of what the release said of the version before. A count of 0 takes it back."""
        if hold.count > 0:
            self._of.setdefault(hold.spec.version, {})[release] = hold
        else:
            self._drop(hold.spec.version, release)

    def drop(self, release: int) -> None:
        """All that it holds."""
        for version in [one for one, held in self._of.items() if release in held]:
            self._drop(version, release)

    def lapse(self, now: float) -> None:
        """Whoever does not say it anew is gone."""
        for version, held in list(self._of.items()):
            for release in [one for one, hold in held.items() if hold.until < now]:
                self._drop(version, release)

    def terms(self, tenant: str = "") -> dict[str, list[Term]]:
        """Of one tenant, or of all."""
        return {
            version: [Term(Source.RELEASE, hold.count, hold.reason) for hold in held.values()]
            for version, held in self._of.items()
            if not tenant or tenant_of(VersionId(version)) == tenant
        }

    def spec(self, version: str) -> VersionSpec | None:
        held = self._of.get(version)
        return next(iter(held.values())).spec if held else None

    def ordered(self, version: str, decisions: Collection[str]) -> None:
        """They were made for it."""
        for hold in self._of.get(version, {}).values():
            hold.ordered.extend(decisions)

    def forget_tenant(self, tenant: str) -> None:
        for version in [one for one in self._of if tenant_of(VersionId(one)) == tenant]:
            del self._of[version]

    def _drop(self, version: str, release: int) -> None:
        held = self._of.get(version, {})
        held.pop(release, None)
        if not held:
            self._of.pop(version, None)
