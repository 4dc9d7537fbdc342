"""The nouns of scaling: what was observed in a tick, what a version is allowed, and what each policy contributes."""

from enum import StrEnum
from typing import Protocol

import msgspec


class Source(StrEnum):
    """Who contributes a term. Where two ask for the same count, the one that stands first here is named."""

    MINIMUM = "min"
    PROVISIONED = "provisioned"
    REACTIVE = "reactive"
    FEED_FORWARD = "feed-forward"
    RELEASE = "release"
    PLANS = "plans"


# Of the structs here there are tens of thousands, made anew each tick: gc=False, none can be in a cycle, and the collector would
# take as long over them as the tick takes.

RANK = {source: number for number, source in enumerate(Source)}


class Term(msgspec.Struct, frozen=True, gc=False):
    """So many instances one policy asks for, and why, as a sentence for people."""

    source: Source
    count: int
    reason: str


class Bounds(msgspec.Struct, frozen=True, gc=False):
    """What the owner set for one version. `minimum`: so many stay, with or without traffic; `maximum`: never more are wanted.

    `provisioned`: stay as well, and no budget of the tenant takes them. `reserved`: so many of the tenant's budget are nobody
    else's. `target`: invocations in one instance at once, on average; 0: the policy's own. `concurrency`: at most so many.
    """

    minimum: int = 0
    maximum: int = 1000
    provisioned: int = 0
    reserved: int = 0
    target: float = 0.0
    concurrency: int = 1


class Observed(msgspec.Struct, frozen=True, gc=False):
    """A version between two ticks, summed over gateways and nodes.

    `concurrency`: invocations waiting and running, averaged over the time; `peak`: the most at once. `arrivals`: invocations
    that began, `roots` of them from outside. `ready`: instances idle or busy at the end of it. `tick_s`: how long it was.
    """

    concurrency: float = 0.0
    peak: int = 0
    arrivals: int = 0
    roots: int = 0
    ready: int = 0
    tick_s: float = 1.0


NOTHING = Observed()


class Reactive(Protocol):
    """Decides from a version's own traffic. One object for each version; it remembers what its windows need and no more.

    `tick_s`: how often it decides; asked in between, it says again what it said. `releases`: what is idle above the wanted
    count goes at once (else idle time decides).
    """

    name: str
    tick_s: float
    releases: bool

    def decide(self, now: float, observed: Observed, bounds: Bounds) -> Term:
        """What traffic asks for; the reconciler says what of it is allowed."""

    def rests(self) -> bool:
        """Nothing is remembered that a new one would not know."""

    def roots_per_s(self) -> float:
        """Invocations from outside, a second, as this policy looks at bursts."""


class Wanted(msgspec.Struct, frozen=True, gc=False):
    """How many instances of a version there should be at least: `by` whom, and why. `limit`: what kept it from being more."""

    version: str
    count: int
    by: Source
    reason: str
    limit: str = ""
    terms: tuple[Term, ...] = ()
