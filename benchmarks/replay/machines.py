"""Published workflows as runs: SeBS's state machines, FaaSFlow's in the same form, and trees drawn from published quantiles.

What the sources do not give is drawn, and said in ASSUMED.
"""

import itertools
import json
import math
import os
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.replay.load import LoadMissing
from graph.calls import Call, Trace
from graph.ids import FunctionId, TenantId, function_id

FOLDER = "workflows-sebs"
SOURCE = (
    "SeBS's workflows (github.com/spcl/serverless-benchmarks, branch feature/workflows, "
    "benchmarks/600.workflows/*/definition.json; BSD-3-Clause)"
)
FAASFLOW = Path(__file__).parent / "faasflow.json"

LIKELIER = 0.8
FAILS = 0.05
ITEMS = (3, 7)
BETWEEN_S = 0.005
CV = 0.5
ASSUMED = (
    f"of a switch the default has {LIKELIER:g}, a task with a way out for failure takes it in {FAILS:g} of the runs, a map has "
    f"{ITEMS[0]} to {ITEMS[1]} items; the work of a function is lognormal with CV {CV:g} around the median of one of Azure's "
    "functions, drawn, where the source has no runtime; the workflow itself is the entry, and calls its states"
)

DEPTH = ((0.0, 1), (0.5, 2), (0.9, 4), (0.99, 7), (0.999, 12), (1.0, 12))
NODES = ((0.0, 1), (0.5, 2), (0.99, 18), (1.0, 18))
SHAPES_ASSUMED = (
    "trees by the published quantiles of depth (50 % 2, 90 % 4, 99 % 7, 99.9 % 12) and functions (50 % 2, 99 % 18), each given "
    "at least one callee; six edges in ten are certain, the others uniform from 0.05 to 0.95; callees of one caller come one "
    "after the other or, three in ten, side by side; work as for the state machines, a third of it before the first call"
)


class _Recorder:
    """A run as it is written down."""

    def __init__(self, entry: FunctionId) -> None:
        self.names = [entry]
        self.calls: list[tuple[int, float, float, bool]] = []

    def call(self, caller: int, callee: FunctionId, at: float, took: float, failed: bool = False) -> int:
        self.names.append(callee)
        self.calls.append((caller, at, took, failed))
        return len(self.calls) - 1

    def trace(self, tenant: TenantId, trace_id: str, duration_s: float) -> Trace:
        return Trace(
            tenant,
            trace_id,
            self.names[0],
            duration_s,
            tuple(
                Call(self.names[caller + 1], self.names[place + 1], caller, at, took, failed=failed)
                for place, (caller, at, took, failed) in enumerate(self.calls)
            ),
        )


class Machine:
    """One workflow. `work_s`: the median of each of its functions."""

    def __init__(self, name: str, definition: Mapping[str, Any], medians_s: Sequence[float], dice: random.Random) -> None:
        self.tenant = TenantId("workflows")
        self.name = name
        self._definition = definition
        self._work_s: dict[str, float] = {}
        for function, runtime_s in _functions(definition):
            self._work_s.setdefault(function, runtime_s or dice.choice(medians_s))

    def run(self, trace_id: str, dice: random.Random) -> Trace:
        recorder = _Recorder(function_id(self.tenant, self.name))
        ended = self._states(self._definition, BETWEEN_S, recorder, dice)
        return recorder.trace(self.tenant, trace_id, ended + BETWEEN_S)

    def _states(self, machine: Mapping[str, Any], at: float, recorder: _Recorder, dice: random.Random) -> float:
        name: str | None = machine["root"]
        while name is not None:
            state = machine["states"][name]
            name = state.get("next")
            match state["type"]:
                case "task":
                    failed = "failure" in state and dice.random() < FAILS
                    at = self._task(state["func_name"], at, recorder, dice, failed)
                    name = state["failure"] if failed else name
                case "switch":
                    others = [case["next"] for case in state["cases"] if case["next"] != state["default"]]
                    name = state["default"] if dice.random() < LIKELIER or not others else dice.choice(others)
                    continue
                case "map":
                    at = max(self._states(state, at, recorder, dice) for _ in range(dice.randint(*ITEMS)))
                case "parallel":
                    at = max(self._states(part, at, recorder, dice) for part in state["parallel_functions"])
                case "repeat" | "loop":
                    for _ in range(state.get("count") or dice.randint(*ITEMS)):
                        at = self._task(state["func_name"], at, recorder, dice, False)
                case other:
                    raise ValueError(f"states.{name}.type: {other!r} is not known")
            at += BETWEEN_S
        return at

    def _task(self, function: str, at: float, recorder: _Recorder, dice: random.Random, failed: bool) -> float:
        took = lognormal(self._work_s[function], dice)
        recorder.call(-1, function_id(self.tenant, f"{self.name}_{function}"), at, took, failed)
        return at + took


def _functions(machine: Mapping[str, Any]) -> list[tuple[str, float]]:
    found = []
    for state in machine["states"].values():
        if "func_name" in state:
            found.append((state["func_name"], float(state.get("runtime_s", 0.0))))
        for part in [state] if "states" in state else state.get("parallel_functions", ()):
            found += _functions(part)
    return found


def lognormal(median_s: float, dice: random.Random) -> float:
    return median_s * math.exp(dice.gauss(0.0, math.sqrt(math.log(1 + CV * CV))))


def machines(medians_s: Sequence[float], seed: int) -> list[Machine]:
    """SeBS's (from the folder FOREGLOW_DATA names) and FaaSFlow's, but for those of a single function. Raises LoadMissing."""
    folder = Path(os.environ.get("FOREGLOW_DATA", "")) / FOLDER
    definitions = {file.parent.name.partition(".")[2]: json.loads(file.read_text()) for file in folder.glob("*/definition.json")}
    if not definitions:
        raise LoadMissing(f"{folder}/*/definition.json: not there; it is {SOURCE}")
    definitions |= {name: one for name, one in json.loads(FAASFLOW.read_text()).items() if name != "source"}
    dice = random.Random(seed)
    return [
        Machine(name.replace(".", "-"), definition, medians_s, dice)
        for name, definition in sorted(definitions.items())
        if len(_functions(definition)) > 1
    ]


class Shape:
    """One drawn tree of functions; each of its runs takes some of the edges."""

    def __init__(self, number: int, medians_s: Sequence[float], dice: random.Random) -> None:
        self.tenant = TenantId("shapes")
        self.name = f"shape{number}"
        depth = max(2, _quantile(DEPTH, dice.random()))
        nodes = max(depth, _quantile(NODES, dice.random()))
        self._level = [0]
        self._parent = [-1]
        for _ in range(1, depth):
            self._add(len(self._parent) - 1)
        for _ in range(depth, nodes):
            self._add(dice.choice([node for node, level in enumerate(self._level) if level < depth - 1]))
        self._certain = [1.0 if dice.random() < 0.6 else dice.uniform(0.05, 0.95) for _ in self._parent]
        self._beside = [dice.random() < 0.3 for _ in self._parent]
        self._work_s = [dice.choice(medians_s) for _ in self._parent]

    def _add(self, parent: int) -> None:
        self._parent.append(parent)
        self._level.append(self._level[parent] + 1)

    def run(self, trace_id: str, dice: random.Random) -> Trace:
        recorder = _Recorder(function_id(self.tenant, self.name))
        took = self._node(0, -1, 0.0, recorder, dice)
        return recorder.trace(self.tenant, trace_id, took)

    def _node(self, node: int, place: int, began: float, recorder: _Recorder, dice: random.Random) -> float:
        """Runs `node`, whose call is at `place`, from `began`; returns when it ends."""
        work_s = lognormal(self._work_s[node], dice)
        at = began + work_s / 3
        ended = at
        for child in [child for child, parent in enumerate(self._parent) if parent == node]:
            if dice.random() >= self._certain[child]:
                continue
            called = recorder.call(place, function_id(self.tenant, f"{self.name}_{child}"), at, 0.0)
            answered = self._node(child, called, at, recorder, dice)
            recorder.calls[called] = (place, at, answered - at, False)
            ended = max(ended, answered)
            at = at if self._beside[child] else ended
        return ended + work_s * 2 / 3


def _quantile(table: Sequence[tuple[float, int]], share: float) -> int:
    for (low, below), (high, above) in itertools.pairwise(table):
        if share <= high:
            return round(below + (above - below) * (share - low) / (high - low))
    return table[-1][1]


def shapes(count: int, medians_s: Sequence[float], seed: int) -> list[Shape]:
    dice = random.Random(seed)
    return [Shape(number, medians_s, dice) for number in range(count)]
