"""Calls into starts: which of them find no idle instance, and from when to when a function's code is in use."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from benchmarks.replay.load import MINUTE_S, Loaded

KEEP_S = 600.0
"""How long an instance waits for its next call; the node's default."""


@dataclass(frozen=True, order=True)
class Use:
    """One instance of function number `function`: its start needs the code at `begins`, it is gone at `ends`."""

    begins: float
    ends: float
    function: int


def uses(functions: Sequence[Loaded], seed: int, keep_s: float = KEEP_S) -> list[Use]:
    """Every instance there would be on one node without prewarming, in the order of their starts. The calls of a minute are
    spread over it uniformly at random, from `seed`."""
    source = random.Random(seed)
    found: list[Use] = []
    for number, function in enumerate(functions):
        found += (Use(begins, ends, number) for begins, ends in instances(_calls(function, source), function.duration_s, keep_s))
    return sorted(found)


def _calls(function: Loaded, source: random.Random) -> list[float]:
    return sorted((minute + source.random()) * MINUTE_S for minute, count in enumerate(function.minutes) for _ in range(count))


def instances(calls: Iterable[float], duration_s: float, keep_s: float) -> list[tuple[float, float]]:
    """From when to when each instance lives. A call takes the idle one that was used last; without one it starts another."""
    began: list[float] = []
    free_at: list[float] = []
    ended: list[tuple[float, float]] = []
    for now in calls:
        best = -1
        for at, free in enumerate(free_at):
            if free <= now < free + keep_s and (best < 0 or free > free_at[best]):
                best = at
        if best >= 0:
            free_at[best] = now + duration_s
            continue
        gone = [at for at, free in enumerate(free_at) if free + keep_s <= now]
        ended += ((began.pop(at), free_at.pop(at) + keep_s) for at in reversed(gone))
        began.append(now)
        free_at.append(now + duration_s)
    return sorted(ended + [(begins, free + keep_s) for begins, free in zip(began, free_at, strict=True)])
