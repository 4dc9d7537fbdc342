"""predict(graph, entry, seen): what a run of `entry` is still going to call, from traces and from declarations."""

from collections import Counter
from collections.abc import Mapping, Sequence

import msgspec

from graph.callgraph import CallGraph
from graph.decay import cautious
from graph.ids import FunctionId
from graph.plans import EdgeSource, ExpectedCall
from graph.reach import EntryReach
from graph.timing import quantile

LEARNED_RUNS = 3
"""Runs of the entry before what they taught counts."""

NEGLIGIBLE = 0.001
"""Functions less likely than this are not mentioned."""


class _Learned(msgspec.Struct, frozen=True):
    """What traces say: the share per function, the runs behind it, and the weight of these runs."""

    shares: Mapping[FunctionId, float]
    runs: int = 0
    weight: float = 0.0
    in_runs: Mapping[FunctionId, bytes] = {}


def predict(
    graph: CallGraph,
    entry: FunctionId,
    seen: Sequence[FunctionId] = (),
    *,
    seen_at_s: Sequence[float] = (),
    tiers: Mapping[FunctionId, str] | None = None,
) -> list[ExpectedCall]:
    """The functions `entry` reaches, the earliest needed first, without the entry itself.

    `seen` are the stages of this run that have started, in order (the entry may be among them). Each start of a function
    takes one expected instance of it away: it has found its own, and what was called once more is only expected
    as far as more calls of it were busy at once before. Learned shares count from the third run of the entry on, and
    are cautious (see graph.decay.cautious) up to the 20th. A declared call counts as certain, given its caller, until
    runs of that caller outweigh the declaration; declared calls are followed transitively, cycles end.

    `seen_at_s`: when each stage in `seen` started, seconds from the run's start, as this run went (waits included). With it
    the offsets are those of this run: measured from its last stages, where enough runs tell. `tiers`: per function from where an
    instance would start now, in the words of CallGraph.set_start_time; start times are then those measured from there.
    Raises ValueError for `seen_at_s` of another length than `seen`.
    """
    if seen_at_s and len(seen_at_s) != len(seen):
        raise ValueError(f"seen_at_s: one time for each of the {len(seen)} stages in seen, not {len(seen_at_s)}")
    stages = [function for function in seen if function != entry]
    reach = graph.reach(entry) or EntryReach()
    started = Counter(stages)
    learned = _learned(reach, stages)
    likely, declared = _blend(graph, entry, learned, started)
    given = stages[-1] if stages else None
    moved: Mapping[FunctionId, tuple[float, ...]] = {}
    if seen_at_s and learned.runs:
        moved = reach.offsets_after({one: at for one, at in zip(seen, seen_at_s, strict=True) if one != entry})
    tiers = tiers or {}
    expected = []
    for function, share in likely.items():
        held = reach.reached.get(function) if learned.runs else None
        tail = held.at_least() if held else (1.0,)
        times = started.get(function, 0)
        # Of a function that has started n times, j more at once are as likely as n + j are where n are.
        concurrent = tuple(part / tail[times - 1] for part in tail[times:]) if times else tuple(share * part for part in tail)
        if not concurrent or concurrent[0] < NEGLIGIBLE:
            continue
        source = EdgeSource.LEARNED
        if function in declared:
            source = EdgeSource.BOTH if held else EdgeSource.DECLARED
        offsets = moved.get(function) or (held.offsets.samples() if held else ())
        starts, tier = graph.starts(function), tiers.get(function, "")
        starts_s = starts.samples(tier)
        expected.append(
            ExpectedCall(
                function=function,
                reach=concurrent[0],
                concurrent=concurrent,
                offsets_s=offsets,
                samples=learned.runs if held else 0,
                weight=learned.weight,
                source=source,
                memory_mb=graph.memory_mb(function),
                start_s=sum(starts_s) / len(starts_s) if tier and tier in starts.of_tier else starts.expected_s(),
                trace_ids=held.trace_ids if held else (),
                given=given,
                starts_s=starts_s,
                standby_s=starts.from_standby_s(),
                in_runs=b"" if times else learned.in_runs.get(function, b""),
                started=times,
            )
        )
    expected.sort(key=_needed)
    return expected


def _needed(expected: ExpectedCall) -> float:
    """Median seconds to the call; what was never observed comes last, in the order of the declarations."""
    return quantile(expected.offsets_s, 0.5) if expected.offsets_s else float("inf")


def _learned(reach: EntryReach, stages: Sequence[FunctionId]) -> _Learned:
    runs = reach.clock.runs
    if runs < LEARNED_RUNS:
        return _Learned({})
    known = reach.given(stages)
    if known is None:
        shares = {function: cautious(held.value(reach.clock), runs) for function, held in reach.reached.items()}
        return _Learned(shares, runs, reach.clock.total, reach.in_runs())
    shares = {function: cautious(share, known.runs) for function, share in known.shares.items()}
    return _Learned(shares, known.runs, min(float(known.runs), reach.clock.total), known.in_runs)


def _blend(
    graph: CallGraph, entry: FunctionId, learned: _Learned, started: Mapping[FunctionId, int]
) -> tuple[dict[FunctionId, float], set[FunctionId]]:
    """The probability of each function, and which of them are declared on a way from the entry.

    Breadth first along declared calls: a function's prior is the probability of its likeliest caller one step nearer to the
    entry. Then on from the functions that only traces know.
    """
    likely: dict[FunctionId, float] = {}
    declared: set[FunctionId] = set()

    def follow(callers: list[FunctionId]) -> None:
        while callers:
            priors: dict[FunctionId, tuple[float, float]] = {}
            for caller in callers:
                certainty = likely.get(caller, 1.0)
                for callee, weight in graph.declared_calls(caller):
                    if callee != entry and callee not in likely:
                        priors[callee] = max(priors.get(callee, (0.0, 0.0)), (certainty, weight))
            for callee, (certainty, weight) in priors.items():
                shown = learned.weight * learned.shares.get(callee, 0.0) + weight * certainty
                likely[callee] = 1.0 if callee in started else shown / (learned.weight + weight)
            declared.update(priors)
            callers = [callee for callee in priors if likely[callee] >= NEGLIGIBLE]

    follow([entry])
    rest = {function: share for function, share in learned.shares.items() if function not in likely}
    rest |= {function: 1.0 for function in started if function not in likely}
    likely |= rest
    follow(sorted(rest, key=lambda function: -rest[function]))
    return likely, declared
