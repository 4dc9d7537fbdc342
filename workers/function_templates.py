"""Which versions get a function template on this node, and which lose theirs. Pure: `now` (seconds) is passed in.

A template spares each of its instances the init, and costs memory for as long as it is held. So it is made for a version
whose init was measured over a threshold, within a cap, the most worth first; it goes when a newer version has taken over,
when something worth more needs its place, or when it was not used for long.
"""

import math
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from graph.ids import VersionId, function_of, number_of, tenant_of

HALF_LIFE_S = 600.0  # of a use
UNUSED_S = 3600.0
SUPERSEDED_S = 60.0  # an older version unused for so long while there is a newer one
CLONES = 500  # then a fresh one takes its place: clones share an address layout and a hash seed
MAX_AGE_S = 6 * 3600.0  # likewise, as the driver's own templates
BETTER = 1.5  # so much more worth before one gives way to another: else two would take turns
RETRY_S = 5.0
TRIES = 4
KNOWN = 10_000  # versions
INIT_AT_LEAST_S, INIT_AT_MOST_S, INIT_FACTOR = 10.0, 60.0, 5.0  # how long a template's init may take


class Standing(StrEnum):
    NONE = "none"
    MAKING = "making"
    HELD = "held"
    REFUSED = "refused"  # for good: it would be refused again


@dataclass(slots=True, eq=False)
class Candidate:
    """What is known of one version. `memory_mb` counts while it is being made (its shape) and held (what it takes)."""

    version: str
    shape_mb: int
    init_ms: float = 0.0
    standing: Standing = Standing.NONE
    reason: str = ""
    memory_mb: int = 0
    made: int = 0  # clones of the template held
    born: float = 0.0  # when that was made
    tries: int = 0
    not_before: float = 0.0
    last_used: float = 0.0
    _uses: float = 0.0

    def used(self, now: float) -> None:
        self._uses = self.uses(now) + 1.0
        self.last_used = now

    def uses(self, now: float) -> float:
        """Recent starts, each worth half after HALF_LIFE_S."""
        return self._uses * math.exp2((self.last_used - now) / HALF_LIFE_S)


@dataclass(frozen=True, slots=True)
class Rules:
    """`cap_mb` 0: none is made."""

    threshold_ms: float
    cap_mb: int


def worth(one: Candidate, now: float) -> float:
    """Milliseconds of init spared recently, per MB."""
    return one.uses(now) * one.init_ms / max(1, one.memory_mb or one.shape_mb)


def wanted(one: Candidate, rules: Rules, now: float) -> bool:
    """It is time to make one: none is held, or the one held is used up or old."""
    worn = one.made >= CLONES or now - one.born > MAX_AGE_S
    due = one.standing is Standing.NONE or (one.standing is Standing.HELD and worn)
    return due and one.init_ms >= rules.threshold_ms > 0 and one.not_before <= now and rules.cap_mb >= one.shape_mb


def choose(
    candidates: Iterable[Candidate], rules: Rules, now: float, passed_by: Container[str] = ()
) -> tuple[Candidate, list[Candidate]] | None:
    """The next to make, and those that give way to it; None: nothing is to be done. `passed_by`: tenants whose turn it is not."""
    known = list(candidates)
    held_mb = sum(one.memory_mb for one in known)
    due = [one for one in known if wanted(one, rules, now) and tenant_of(VersionId(one.version)) not in passed_by]
    for one in sorted(due, key=lambda one: -worth(one, now)):
        gone: list[Candidate] = []
        over_mb = held_mb + one.shape_mb - rules.cap_mb
        for other in least_first(known, now):
            if over_mb <= 0:
                break
            if other is not one and worth(other, now) * BETTER < worth(one, now):
                gone.append(other)
                over_mb -= other.memory_mb
        if over_mb <= 0:
            return one, gone
    return None


def init_limit_s(one: Candidate) -> float:
    """An instance's init was measured: a template's that takes many times as long waits for what it will not get there."""
    return min(INIT_AT_MOST_S, max(INIT_AT_LEAST_S, INIT_FACTOR * one.init_ms / 1000))


def least_first(candidates: Iterable[Candidate], now: float) -> list[Candidate]:
    """Those held, the least worth first."""
    return sorted((one for one in candidates if one.standing is Standing.HELD), key=lambda one: worth(one, now))


def outlived(candidates: Mapping[str, Candidate], now: float) -> list[tuple[Candidate, str]]:
    """Templates that nobody needs any more, each with the reason."""
    newest: dict[str, int] = {}
    for version in candidates:
        function, number = function_of(VersionId(version)), number_of(VersionId(version))
        newest[function] = max(number, newest.get(function, 0))
    found: list[tuple[Candidate, str]] = []
    for one in candidates.values():
        if one.standing is not Standing.HELD:
            continue
        unused_s = now - one.last_used
        version = VersionId(one.version)
        if unused_s > SUPERSEDED_S and newest[function_of(version)] > number_of(version):
            found.append((one, "a newer version has taken over"))
        elif unused_s > UNUSED_S:
            found.append((one, f"unused for {UNUSED_S / 60:.0f} minutes"))
    return found


def failed(one: Candidate, reason: str, for_good: bool, now: float) -> None:
    """It was not made, or ended by itself: tried again later, each time after twice as long, a few times."""
    one.tries += 1
    one.memory_mb = one.made = 0
    one.not_before = now + RETRY_S * 2 ** (one.tries - 1)
    one.standing = Standing.REFUSED if for_good or one.tries >= TRIES else Standing.NONE
    one.reason = reason if for_good or one.tries < TRIES else f"{reason} ({one.tries} times: not tried any more)"
