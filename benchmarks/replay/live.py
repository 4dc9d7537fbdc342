"""The same runs on real sandboxes and in a replay: two small workflows, each run cold, the policies in turns."""

import json
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.platform import Deployed, Platform
from graph.calls import Call, StartKind, Trace
from graph.ids import FunctionId, TenantId, function_id
from graph.plans import PrewarmPlan
from orchestrator.whatif.engine import Settings, Simulation
from orchestrator.whatif.instances import Instance
from orchestrator.whatif.measures import WAITED_S
from orchestrator.whatif.orders import Order
from orchestrator.whatif.planned import Planned
from orchestrator.whatif.policy import Policy, Run
from orchestrator.whatif.programs import program_of
from orchestrator.whatif.starts import DRIVERS, Driver, Spread, Starts

INIT_S = 0.15
MEMORY_MB = 128
SETTLE_S = 0.4
APART_S = 3600.0
CV = 0.3
LIKELY = 0.8
TENANT = TenantId("default")
UNREADY = ("cold", "standby", "almost-warm")

Steps = list[list[Any]]


def pipeline(dice: random.Random) -> Steps:
    """Four stages, each after the one before."""
    return [["work", _drawn(0.3, dice)], *(["call", f"pipe_{at}", [["work", _drawn(0.4, dice)]]] for at in range(4))]


def branches(dice: random.Random) -> Steps:
    """A check, then one of two ways, one of them with three calls at once."""
    check = ["call", "shop_check", [["work", _drawn(0.4, dice)]]]
    if dice.random() < LIKELY:
        parts = [["shop_price", [["work", _drawn(0.3, dice)]]], ["shop_stock", [["work", _drawn(0.3, dice)]]]]
        way = ["call", "shop_order", [["work", _drawn(0.3, dice)], ["all", parts]]]
    else:
        way = ["call", "shop_refuse", [["work", _drawn(0.3, dice)], ["call", "shop_tell", [["work", 0.1]]]]]
    return [["work", _drawn(0.2, dice)], check, way, ["work", 0.05]]


def _drawn(median_s: float, dice: random.Random) -> float:
    return round(median_s * math.exp(dice.gauss(0.0, CV)), 4)


WORKFLOWS: Mapping[str, tuple[Callable[[random.Random], Steps], Sequence[str]]] = {
    "pipe": (pipeline, [f"pipe_{at}" for at in range(4)]),
    "shop": (branches, ["shop_check", "shop_order", "shop_price", "shop_stock", "shop_refuse", "shop_tell"]),
}


@dataclass
class Measured:
    """One policy on one workflow, a value a run. `idle_s`: instances ready for it and unused, until their use or its end."""

    added_ms: list[float] = field(default_factory=list)
    idle_s: list[float] = field(default_factory=list)
    calls: int = 0
    waited: int = 0


@dataclass
class Live:
    """`taught` and `warm`: per workflow the runs that taught, and those measured, as traces of when nothing waited."""

    by_policy: dict[tuple[str, str], Measured] = field(default_factory=dict)
    taught: dict[str, list[Trace]] = field(default_factory=dict)
    warm: dict[tuple[str, str], list[Trace]] = field(default_factory=dict)
    starts_s: list[float] = field(default_factory=list)


def deployed() -> list[Deployed]:
    settings = {"memory_mb": MEMORY_MB, "environment": {"INIT_S": str(INIT_S)}}
    return [
        Deployed(name, "steps", "main:handler", settings) for entry, (_, below) in WORKFLOWS.items() for name in (entry, *below)
    ]


def measure(
    platform: Platform, policies: Sequence[str], rounds: int, teach: int, seed: int, progress: Callable[[str], None]
) -> Live:
    """Every run twice: cold, then warm. The policies take turns."""
    found = Live()
    dice = random.Random(seed)
    platform.prewarm("off")
    progress(f"teaching {teach} runs of each workflow")
    for entry, (make, _) in WORKFLOWS.items():
        found.taught[entry] = [_trace(_run(platform, entry, make(dice))) for _ in range(teach)]
    for number in range(rounds):
        progress(f"round {number + 1} of {rounds}")
        for entry, (make, _) in WORKFLOWS.items():
            for policy in dice.sample(list(policies), len(policies)):
                steps = make(dice)
                platform.prewarm(policy)
                platform.cool()
                time.sleep(SETTLE_S)
                cold = _run(platform, entry, steps)
                decisions = _decisions(platform, cold)
                platform.prewarm("off")
                warm = _warm(platform, entry, steps)
                measured = found.by_policy.setdefault((policy, entry), Measured())
                measured.added_ms.append(cold["duration_ms"] - warm["duration_ms"])
                measured.idle_s.append(_idle_s(decisions, cold["started_at"] + cold["duration_ms"] / 1000))
                stages = list(_stages(cold["root"]))[1:]
                measured.calls += len(stages)
                measured.waited += sum(one["start"] in UNREADY and one["wait_ms"] > WAITED_S * 1000 for one in stages)
                found.warm.setdefault((policy, entry), []).append(_trace(warm))
                if policy == "off":
                    found.starts_s += [one["wait_ms"] / 1000 for one in stages if one["start"] in UNREADY]
    return found


def _run(platform: Platform, entry: str, steps: Steps) -> Any:
    answer = platform.invoke(entry, json.dumps({"steps": steps}).encode())
    return platform.run_tree(answer.trace_id)


def _warm(platform: Platform, entry: str, steps: Steps) -> Any:
    """Again, until no call of it waits."""
    for _ in range(5):
        found = _run(platform, entry, steps)
        if all(one["wait_ms"] <= WAITED_S * 1000 for one in _stages(found["root"])):
            return found
    return found


def _stages(root: Any) -> Any:
    yield root
    for child in root["children"]:
        yield from _stages(child)


def _decisions(platform: Platform, run: Any) -> list[Any]:
    time.sleep(SETTLE_S)
    listed = platform.get("/v1/decisions?limit=500")["decisions"]
    return [one for one in listed if one["trace_id"] == run["trace_id"]]


def _idle_s(decisions: Sequence[Any], ended_at: float) -> float:
    total = 0.0
    for one in decisions:
        if one["ready_at"]:
            until = one["ended_at"] if one["ended_at"] and one["outcome"] == "hit" else ended_at
            total += max(0.0, min(until, ended_at) - one["ready_at"])
    return total


def _trace(run: Any) -> Trace:
    """As the platform would have learned it."""
    calls: list[Call] = []

    def below(one: Any, place: int) -> None:
        for child in one["children"]:
            calls.append(
                Call(
                    _name(one),
                    _name(child),
                    place,
                    child["offset_ms"] / 1000,
                    child["duration_ms"] / 1000,
                    child["wait_ms"] / 1000,
                    StartKind(child["start"]),
                )
            )
            below(child, len(calls) - 1)

    root = run["root"]
    below(root, -1)
    return Trace(TENANT, run["trace_id"], _name(root), root["duration_ms"] / 1000, tuple(calls), root["wait_ms"] / 1000)


def _name(one: Any) -> FunctionId:
    return function_id(TENANT, one["function"])


# -- the same under the virtual clock


class _Cooled(Planned):
    """After each run no instance is left, as in the measurement; remembers what was prepared."""

    def __init__(self, policy: str) -> None:
        super().__init__(policy, APART_S / 2)
        self.prepared: list[list[Instance]] = []
        self._used: list[Instance] = []

    def begins(self, run: Run) -> None:
        self.prepared.append([])
        super().begins(run)

    def _order(self, run: int, made: PrewarmPlan, held: Any) -> list[Order]:
        ordered = super()._order(run, made, held)
        self.prepared[-1] += [order.one for order in ordered]
        return ordered

    def keep_s(self, one: Instance) -> float:
        self._used.append(one)
        return super().keep_s(one)

    def ended(self, run: Run, trace: Trace) -> None:
        super().ended(run, trace)
        for one in (*self._used, *self.prepared[-1]):
            self.world.give_up(one)
        self._used.clear()


def starts_of(measured_s: Sequence[float]) -> Starts:
    """What starts on demand took in this very measurement, less the init."""
    before = DRIVERS["process"]
    clone = np.maximum(0.0005, np.array(measured_s) - INIT_S) if measured_s else np.array([before.clone.p50_s])
    spread = Spread(float(np.quantile(clone, 0.5)), float(np.quantile(clone, 0.99)))
    return Starts(Driver("process", spread, spread, before.standby_mb, "measured here"), Spread(INIT_S, INIT_S))


def replay(found: Live, policy: str, entry: str) -> Measured:
    """The runs of one policy and workflow again, each from cold."""
    traces = found.warm[policy, entry]
    arrivals = [(number * APART_S, program_of(trace)) for number, trace in enumerate(traces)]
    settings = Settings(starts=starts_of(found.starts_s), default_memory_mb=MEMORY_MB)
    cooled = _Cooled(policy) if policy != "off" else None
    acting = cooled or Policy()
    for taught in found.taught[entry]:
        acting.taught(taught)
    done = Simulation(arrivals, acting, settings).run()
    stages = [call for call in done.calls if call.stage]
    idle_s = [sum(one.unused_s for one in run) for run in cooled.prepared] if cooled else [0.0] * len(traces)
    return Measured(
        [(run.took_s - run.warm_s) * 1000 for run in done.runs],
        idle_s,
        len(stages),
        sum(call.wait_s > WAITED_S for call in stages),
    )
