"""A path prewarmed with its entry: its first request against warm ones.

A round asks once for each of three kinds, in an order drawn anew: `first` (cooled and prewarmed), `warm` and `again` (both served
before). All have the same requests to control ahead of them and the same pauses, so only the instances differ.
"""

import random
import time
from collections import Counter
from typing import Any

from benchmarks.paths import Side, names
from benchmarks.platform import Platform

SETTLE_S = 0.1
PREPARED_S = 0.25  # at least this long from asking for the path to the request, whatever was to be prepared
READY_TIMEOUT_S = 10.0
KINDS = ("first", "warm", "again")


def measure_predicted(platform: Platform, length: int, rounds: int) -> dict[str, list[float]]:
    """ms by kind. Raises RuntimeError when a stage was not found as its kind says."""
    side = Side.of(platform)
    path, other = names("wait", length), names("wait", 1)[0]
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    order = random.Random(2)
    side.ask("wait", length)
    for _ in range(rounds):
        for kind in order.sample(KINDS, len(KINDS)):
            platform.cool("" if kind == "first" else other)
            time.sleep(SETTLE_S)
            asked = time.monotonic()
            _wait_until_ready(platform, platform.warm(path[0]), len(path) if kind == "first" else 0)
            time.sleep(max(0.0, asked + PREPARED_S - time.monotonic()))
            answer = side.ask("wait", length)
            found[kind].append(answer.ms)
            starts = Counter(platform.run_tree(answer.trace_id)["starts"])
            if starts != {"prewarmed" if kind == "first" else "warm": length}:
                raise RuntimeError(f"a request that was to be {kind} of a path of {length} found {dict(starts)}")
    return found


def _wait_until_ready(platform: Platform, plan: Any, expected: int) -> None:
    wanted = {one["decision_id"] for one in plan["decisions"]}
    if len(wanted) != expected:
        raise RuntimeError(f"warming {plan['entry']} decided {len(wanted)} of {expected} functions, ready {plan['ready']}")
    until = time.monotonic() + READY_TIMEOUT_S
    while True:
        decisions = platform.get("/v1/decisions?limit=100")["decisions"]
        outcomes = {one["decision_id"]: one["outcome"] for one in decisions if one["decision_id"] in wanted}
        if len(outcomes) == len(wanted) and set(outcomes.values()) <= {"ready"}:
            return
        if time.monotonic() > until or set(outcomes.values()) & {"cancelled", "wasted"}:
            raise RuntimeError(f"the path of {plan['entry']} did not get ready: {outcomes}")
        time.sleep(0.02)
