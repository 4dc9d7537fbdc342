"""Health and readiness: what a process needs, whether it is there, and the reason when it is not."""

from collections.abc import Callable, Sequence

import msgspec


class Check(msgspec.Struct, frozen=True):
    """One thing a process needs. One that is not `needed` only makes it worse off: the process stays ready without it."""

    name: str
    ok: bool
    reason: str = ""
    needed: bool = True


class Readiness(msgspec.Struct, frozen=True):
    """The answer of /readyz."""

    process: str
    ready: bool
    checks: Sequence[Check]


Checks = Callable[[], Sequence[Check]]


def judge(process: str, checks: Sequence[Check]) -> Readiness:
    """Ready when all that is needed holds. A check that is ok has no reason to tell."""
    told = [msgspec.structs.replace(one, reason="") if one.ok else one for one in checks]
    return Readiness(process, all(one.ok or not one.needed for one in told), told)
