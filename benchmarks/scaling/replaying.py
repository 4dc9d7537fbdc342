"""Azure's load under policies that decide how many instances stand ready: each function by itself, under a virtual clock. What is
cold starts on demand under every one of them; only the policy differs."""

import heapq
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.replay.load import MINUTE_S, Loaded
from graph.arrivals import Arrivals
from graph.keepalive import window
from graph.keeping import worth_keeping_s
from graph.levels import Levels, worths_keeping_s
from graph.plans import Prices
from orchestrator.planner.keeping import LOOK_S
from orchestrator.planner.scaling import UNUSED_S
from orchestrator.scaling.headroom import Headroom, HeadroomSettings
from orchestrator.scaling.kpa import Kpa, KpaSettings
from orchestrator.scaling.terms import Bounds, Observed, Reactive

MEMORY_MB = 256
START_S = 0.0062 + 0.15
LONGEST_S = 600.0
BOUNDS = Bounds(maximum=10_000)
SEED = 20261127

Keep = Callable[[Arrivals], tuple[float, float]]
"""What was learned of a function -> seconds from when and until when an instance is held after its use."""

Weigh = Callable[[Levels], list[float | None]]


@dataclass(frozen=True)
class Case:
    """`make`: a policy that ticks, or None; `keep`: how long idle ones above its floor stay, None: they go at its next tick.
    `weigh`: how long each further instance is worth keeping, weighed anew every LOOK_S as a planner does; None: `keep`, of the
    function as a whole."""

    policy: str
    setting: str
    make: Callable[[], Reactive] | None
    keep: Keep | None
    weigh: Weigh | None = None


@dataclass
class Came:
    """`wasted_s`: instance-seconds ready and not busy."""

    calls: int = 0
    cold: int = 0
    wasted_s: float = 0.0
    busy_s: float = 0.0
    decisions: int = 0


def calls_of(function: Loaded, minutes: int, source: random.Random) -> list[float]:
    """A minute's calls, spread over it uniformly at random."""
    return sorted(
        (minute + source.random()) * MINUTE_S for minute, count in enumerate(function.minutes[:minutes]) for _ in range(count)
    )


def fixed(seconds: float) -> Case:
    return Case("fixed", f"{seconds:g} s", None, lambda known: (0.0, seconds))


def histogram() -> Case:
    def keep(known: Arrivals) -> tuple[float, float]:
        held = window(known)
        return held.from_s, held.until_s

    return Case("hybrid histogram", "as published", None, keep)


def kpa(settings: KpaSettings, told: str) -> Case:
    return Case("kpa", told, lambda: Kpa(settings), None)


def ours(idle_gb_s: float, cooldown_s: float, levels: bool = True) -> Case:
    """What nothing is known of is kept as long as a node keeps any."""
    prices = Prices(idle_gb_s=idle_gb_s)

    def keep(known: Arrivals) -> tuple[float, float]:
        worth = worth_keeping_s(known, prices, MEMORY_MB, START_S, LONGEST_S)
        return 0.0, LONGEST_S if worth is None else worth

    def weigh(known: Levels) -> list[float | None]:
        return worths_keeping_s(known, prices, MEMORY_MB, START_S, LONGEST_S)

    settings = HeadroomSettings(cooldown_s=cooldown_s)
    name = "headroom" if levels else "headroom, of the function as a whole"
    told = f"c_w {idle_gb_s:g}, cool-down {cooldown_s:g} s"
    return Case(name, told, lambda: Headroom(settings), keep, weigh if levels else None)


class _Instance:
    __slots__ = ("gone", "since", "until")

    def __init__(self) -> None:
        self.since = 0.0
        self.until = math.inf
        self.gone = False


CALL, READY, DONE, TICK, EXPIRE, AHEAD = range(6)


def replayed(calls: Sequence[float], held_s: float, case: Case, until_s: float) -> Came:
    """One function. Instances are used last in, first out; what is left idle at `until_s` has been paid for until then."""
    came = Came(calls=len(calls))
    learned, whole = Levels(), Arrivals()
    worths: list[float | None] = []
    weighed = -math.inf
    policy: Reactive | None = None
    idle: list[_Instance] = []
    starting: list[bool] = []  # of those nobody waits for: True
    events: list[tuple[float, int, int, _Instance | None]] = [(at, CALL, number, None) for number, at in enumerate(calls[:1])]
    busy, alive, floor, pushed = 0, 0, 0, len(calls)
    area, since, peak, arrived, told = 0.0, 0.0, 0, 0, 0.0
    ahead = 0

    def push(at: float, kind: int, one: _Instance | None = None) -> None:
        nonlocal pushed
        pushed += 1
        heapq.heappush(events, (at, kind, pushed, one))

    def rest(one: _Instance, now: float, keep_s: float) -> None:
        one.since, one.until = now, now + keep_s
        idle.append(one)
        if keep_s < math.inf:
            push(one.until, EXPIRE, one)

    def end(one: _Instance, now: float) -> None:
        nonlocal alive
        one.gone = True
        alive -= 1
        came.wasted_s += now - one.since

    while events:
        now, kind, number, one = heapq.heappop(events)
        if now >= until_s:
            break
        if kind == CALL:
            if number + 1 < len(calls):
                heapq.heappush(events, (calls[number + 1], CALL, number + 1, None))
            if case.weigh is not None:
                learned.started(now)
            elif not busy:
                whole.started(now)
            area += busy * (now - since)
            since, busy, arrived = now, busy + 1, arrived + 1
            peak = max(peak, busy)
            ahead += 1  # what was meant to come before this call is void
            if idle:
                found = idle.pop()
                came.wasted_s += now - found.since
                push(now + held_s, DONE, found)
            else:
                came.cold += 1
                if True in starting:
                    starting.remove(True)
                    starting.append(False)
                else:
                    alive += 1
                    starting.append(False)
                    push(now + START_S, READY, _Instance())
            if case.make is not None and policy is None:
                policy, told = case.make(), now
                area, since, peak, arrived = 0.0, now, busy, 1
                push(now + 1.0, TICK)
            came.busy_s += held_s
        elif kind == READY:
            assert one is not None
            if False in starting:
                starting.remove(False)
                push(now + held_s, DONE, one)
            else:
                starting.remove(True)
                rest(one, now, math.inf if case.keep is None else UNUSED_S)
        elif kind == DONE:
            assert one is not None
            area += busy * (now - since)
            since, busy = now, busy - 1
            if case.weigh is not None:
                learned.ended(now)
                if now - weighed >= LOOK_S:
                    worths, weighed = case.weigh(learned), now
                worth = worths[min(busy, len(worths) - 1)]
                rest(one, now, LONGEST_S if worth is None else worth)
                continue
            if not busy:
                whole.ended(now)
            if case.keep is None:
                rest(one, now, math.inf)
                continue
            from_s, to_s = case.keep(whole)
            if from_s > 0.0 and not busy:
                one.since = now
                end(one, now)
                push(now + max(0.0, from_s - START_S), AHEAD, _token(ahead, to_s - from_s))
            else:
                rest(one, now, to_s)
        elif kind == AHEAD:
            assert one is not None
            if one.since == ahead:
                alive += 1
                starting.append(True)
                push(now + START_S, READY, _Instance())
        elif kind == EXPIRE:
            assert one is not None
            if not one.gone and one in idle and one.until <= now:
                if alive > floor:
                    idle.remove(one)
                    end(one, now)
                else:
                    push(now + 1.0, EXPIRE, one)
                    one.until = now + 1.0
        else:
            assert policy is not None
            came.decisions += 1
            area += busy * (now - since)
            since = now
            tick_s = max(1e-6, now - told)
            seen = Observed(area / tick_s, peak, arrived, arrived, alive - len(starting), tick_s)
            term = policy.decide(now, seen, BOUNDS)
            told, area, peak, arrived = now, 0.0, busy, 0
            floor = term.count if case.keep is None or term.count > 1 else 0
            for _ in range(term.count - alive if not (case.keep is not None and term.count == 1) else 0):
                alive += 1
                starting.append(True)
                push(now + START_S, READY, _Instance())
            if case.keep is None:
                while idle and alive > floor:
                    end(idle.pop(0), now)
            if policy.rests() and not busy:
                policy, floor = None, 0
            else:
                push(now + 1.0, TICK)
    for one in idle:
        came.wasted_s += until_s - one.since
    return came


def _token(number: int, keep_s: float) -> _Instance:
    one = _Instance()
    one.since, one.until = float(number), keep_s
    return one


def all_of(functions: Sequence[Loaded], minutes: int, case: Case) -> Came:
    source = random.Random(SEED)
    whole = Came()
    for function in functions:
        calls = calls_of(function, minutes, source)
        found = replayed(calls, max(0.001, function.duration_s), case, minutes * MINUTE_S)
        whole.calls += found.calls
        whole.cold += found.cold
        whole.wasted_s += found.wasted_s
        whole.busy_s += found.busy_s
        whole.decisions += found.decisions
    return whole
