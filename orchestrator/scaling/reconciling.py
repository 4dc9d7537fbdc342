"""The one reconciler: wanted = the largest term, within what the version and its tenant are allowed. Pure.

Every policy contributes a term and none acts by itself. The wanted count is a floor: nothing goes because of it.
"""

import math
from collections.abc import Mapping, Sequence

import msgspec

from orchestrator.scaling.terms import RANK, Bounds, Source, Term, Wanted


class Allowance(msgspec.Struct, frozen=True):
    """What a tenant's wanted instances may come to. `memory_mb` is the cap on cost: what is paid for is memory held. None: no
    bound."""

    instances: int | None = None
    memory_mb: int | None = None


class Asked(msgspec.Struct, frozen=True, gc=False):
    """One version: what each policy asks for."""

    version: str
    memory_mb: int
    bounds: Bounds
    terms: tuple[Term, ...] = ()


STAGES: tuple[tuple[Source, ...], ...] = (
    (Source.MINIMUM, Source.REACTIVE),
    (Source.RELEASE, Source.FEED_FORWARD),
    (Source.PLANS,),
)
"""Who is served first where the tenant's budget is short, after what is provisioned and what is reserved: what is there before
what is expected."""

UNBOUNDED = Allowance()
NONE = Term(Source.REACTIVE, 0, "nothing asks for one")


def reconcile(asked: Sequence[Asked], allowance: Allowance = UNBOUNDED) -> list[Wanted]:
    """Of one tenant, in the order given."""
    terms = [_terms(one) for one in asked]
    whole = [_largest(ones) for ones in terms]
    caps = [max(0, one.bounds.maximum) for one in asked]
    counts = [min(term.count, cap) for term, cap in zip(whole, caps, strict=True)]
    limits = [f"max is {cap}" if term.count > cap else "" for term, cap in zip(whole, caps, strict=True)]
    if not _fits(asked, counts, allowance):
        given = _shared(asked, counts, allowance)
        for at, (wanted, got) in enumerate(zip(counts, given, strict=True)):
            if got < wanted:
                limits[at] = f"{wanted} are wanted; the tenant's budget is {_told(allowance)}"
        counts = given
    return [
        Wanted(one.version, count, term.source, term.reason, limit, ones)
        for one, count, term, limit, ones in zip(asked, counts, whole, limits, terms, strict=True)
    ]


def _terms(one: Asked) -> tuple[Term, ...]:
    """With what its owner set."""
    bounds = one.bounds
    if bounds.minimum <= 0 and bounds.provisioned <= 0:
        return one.terms
    terms = list(one.terms)
    if bounds.minimum > 0:
        terms.append(Term(Source.MINIMUM, bounds.minimum, f"min_instances is {bounds.minimum}"))
    if bounds.provisioned > 0:
        terms.append(Term(Source.PROVISIONED, bounds.provisioned, f"provisioned_instances is {bounds.provisioned}"))
    return tuple(terms)


def _largest(terms: Sequence[Term]) -> Term:
    return terms[0] if len(terms) == 1 else max(terms, key=lambda term: (term.count, -RANK[term.source]), default=NONE)


def _fits(asked: Sequence[Asked], counts: Sequence[int], allowance: Allowance) -> bool:
    instances = allowance.instances is None or sum(counts) <= allowance.instances
    memory = allowance.memory_mb is None or _memory(asked, counts) <= allowance.memory_mb
    return instances and memory


def _memory(asked: Sequence[Asked], counts: Sequence[int]) -> int:
    return sum(one.memory_mb * count for one, count in zip(asked, counts, strict=True))


def _shared(asked: Sequence[Asked], counts: Sequence[int], allowance: Allowance) -> list[int]:
    """What is provisioned stays whatever it comes to. Then what is reserved, then stage by stage; where a stage does not fit,
    all its versions get the same part of what they lack."""
    given = [min(count, one.bounds.provisioned) for one, count in zip(asked, counts, strict=True)]
    reserved = [max(have, min(count, one.bounds.reserved)) for one, count, have in zip(asked, counts, given, strict=True)]
    goals = [reserved]
    so_far: tuple[Source, ...] = (Source.PROVISIONED,)
    for stage in STAGES:
        so_far = (*so_far, *stage)
        goals.append(
            [
                min(count, max((term.count for term in _terms(one) if term.source in so_far), default=0))
                for one, count in zip(asked, counts, strict=True)
            ]
        )
    for asked_for in goals:
        goal = [max(have, want) for have, want in zip(given, asked_for, strict=True)]
        if _fits(asked, goal, allowance):
            given = goal
            continue
        return _part_way(asked, given, goal, allowance)
    return given


def _part_way(asked: Sequence[Asked], given: Sequence[int], goal: Sequence[int], allowance: Allowance) -> list[int]:
    """The same part for all, and what is left one by one to those that lack most."""
    lacks = [want - have for have, want in zip(given, goal, strict=True)]
    lacking, memory = float(sum(lacks)), float(_memory(asked, lacks))
    instances_left = math.inf if allowance.instances is None else allowance.instances - sum(given)
    memory_left = math.inf if allowance.memory_mb is None else allowance.memory_mb - _memory(asked, given)
    part = min(1.0, max(0.0, instances_left) / max(1.0, lacking), max(0.0, memory_left) / max(1.0, memory))
    steps = [math.floor(lack * part) for lack in lacks]
    instances_left -= sum(steps)
    memory_left -= _memory(asked, steps)
    for at in sorted(range(len(asked)), key=lambda at: (steps[at] - lacks[at], asked[at].version)):
        if steps[at] < lacks[at] and instances_left >= 1 and memory_left >= asked[at].memory_mb:
            steps[at] += 1
            instances_left -= 1
            memory_left -= asked[at].memory_mb
    return [have + step for have, step in zip(given, steps, strict=True)]


def _told(allowance: Allowance) -> str:
    bounds = []
    if allowance.instances is not None:
        bounds.append(f"{allowance.instances} instances")
    if allowance.memory_mb is not None:
        bounds.append(f"{allowance.memory_mb} MB")
    return " and ".join(bounds)


def by_tenant(asked: Mapping[str, list[Asked]], allowances: Mapping[str, Allowance]) -> list[Wanted]:
    """All tenants', each within its own."""
    return [wanted for tenant, ones in asked.items() for wanted in reconcile(ones, allowances.get(tenant, UNBOUNDED))]
