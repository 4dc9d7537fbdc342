"""Releases: when a step's gate opens, and how a step that is in force does. Pure; whoever runs it gives it what was seen.

A gate opens when what the step will need is ready:

    N = ceil(share x concurrency / (target x per-instance concurrency))

instances of each version that gets more. Where runs choose between two versions, how many of those in flight chose one goes up
and down around its share (binomially): N is then at least share x concurrency + SPREAD standard deviations, and never more than
all of the traffic would need. Without traffic N is 0, and the gate stands open.
"""

import math
from collections.abc import Sequence
from enum import StrEnum

import msgspec

SPREAD = 4.0
"""So seldom, about once in 30,000 times, are more runs in flight on one side of a split."""

LEAST_SLOWER_S = 0.005
"""What is slower by less is not worth stopping for."""

PATIENCE = 5.0
"""A step with too few requests to be judged holds so many times as long, and goes on then: nothing speaks against it."""


class Rules(msgspec.Struct, frozen=True):
    """`target`: the part of an instance's concurrency that is counted on. `timeout_s`: how long a gate may stay shut.
    `error_rate`: by so much more of its requests than of the other version's may fail; `slowdown`: so many times the other's 95th
    percentile its own may be; both are judged from `requests` of its requests on."""

    target: float = 0.7
    timeout_s: float = 120.0
    error_rate: float = 0.05
    slowdown: float = 1.5
    requests: int = 100


class Need(msgspec.Struct, frozen=True):
    """What a step needs of one version, and has. `why`: what keeps it from being ready, as far as known."""

    version: str
    wanted: int
    ready: int
    why: str = ""


class Seen(msgspec.Struct, frozen=True):
    """What was seen of one version's requests since the step is in force."""

    requests: int = 0
    errors: int = 0
    p95_s: float = 0.0

    @property
    def error_rate(self) -> float:
        return self.errors / self.requests if self.requests else 0.0


class Next(StrEnum):
    WAIT = "wait"
    FLIP = "flip"
    ADVANCE = "advance"
    STOP = "stop"


class Verdict(msgspec.Struct, frozen=True):
    """`reason`: what is waited for, or why it stops."""

    next: Next
    reason: str = ""


def needed(share: float, concurrency: float, per_instance: int, target: float) -> int:
    """N of the module's formula. `concurrency`: requests in flight on all versions together, now."""
    if concurrency <= 0.0 or share <= 0.0:
        return 0
    expected = share * concurrency
    spread = SPREAD * math.sqrt(concurrency * share * (1.0 - share)) if share < 1.0 else 0.0
    all_of_it = _ceil(concurrency / (target * per_instance))
    return max(_ceil(expected / (target * per_instance)), min(_ceil((expected + spread) / per_instance), all_of_it))


def gate(needs: Sequence[Need], failure: str, shut_s: float, rules: Rules) -> Verdict:
    """Whether the step may come into force. `failure`: an instance did not start, and why; empty: none did not. `shut_s`: for how
    long the gate was looked at."""
    if failure:
        return Verdict(Next.STOP, failure)
    missing = [one for one in needs if one.ready < one.wanted]
    if not missing:
        return Verdict(Next.FLIP)
    told = "; ".join(
        f"{one.ready} of {one.wanted} instances of {one.version} ready" + (f" ({one.why})" if one.why else "") for one in missing
    )
    if shut_s >= rules.timeout_s:
        return Verdict(Next.STOP, f"not ready within {rules.timeout_s:g} s: {told}")
    return Verdict(Next.WAIT, told)


def hold(new: Seen, old: Seen, watched_s: float, hold_s: float, rules: Rules) -> Verdict:
    """Whether a step in force goes on, stops, or makes way for the next. `watched_s`: for how long it was watched."""
    judged = new.requests >= max(1, rules.requests)
    if judged:
        bound = old.error_rate + rules.error_rate
        if new.error_rate > bound:
            told = f"{new.errors} of its {new.requests} requests failed, {old.errors} of {old.requests} of the other version's"
            return Verdict(Next.STOP, f"{told}; at most {bound * 100:.3g} % may")
        slowest = max(old.p95_s * rules.slowdown, old.p95_s + LEAST_SLOWER_S)
        if old.requests >= rules.requests and new.p95_s > slowest:
            told = f"its 95th percentile is {new.p95_s * 1000:.3g} ms, the other version's {old.p95_s * 1000:.3g} ms"
            return Verdict(Next.STOP, f"{told}; at most {slowest * 1000:.3g} ms may it be")
    if watched_s < hold_s:
        return Verdict(Next.WAIT, f"is watched for {hold_s:g} s, {new.requests} requests so far")
    if not judged and watched_s < PATIENCE * hold_s:
        told = f"{new.requests} requests are too few to judge it, {rules.requests} are enough"
        return Verdict(Next.WAIT, f"{told}; goes on without after {PATIENCE * hold_s:g} s")
    return Verdict(Next.ADVANCE)


def _ceil(value: float) -> int:
    """What is whole but for the last bits of a division stays whole."""
    return math.ceil(value - 1e-9)
