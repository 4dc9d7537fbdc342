"""Spans at a steady rate, a third of the traces never complete: every span is used or counted, and memory is bounded.

30 seconds here, ten minutes with FULL=1; `make soak-traces` prints the figures.
"""

import json

import pytest
from doubles.profiles import FULL

from benchmarks.platform import Platform
from benchmarks.soak_traces import LATE_S, soak
from tracing.assembly import AssemblyBounds

pytestmark = pytest.mark.system

RATE = 10_000
SECONDS = 600.0 if FULL else 30.0
GROWTH_MB = 400.0
"""What the bound on spans that wait can take, and as much again."""


def test_a_third_of_the_traces_never_completes_and_memory_is_bounded() -> None:
    with Platform(standbys=0) as platform:
        found = soak(platform, SECONDS, RATE)
        learned = platform.get("/v1/graph")["edges"]
    for line in found.lines(RATE):
        print(json.dumps(line))
    assert (found.failed, found.intake["spans"]) == (0, found.sent)
    left_out = found.intake["left_out"]
    assert set(left_out) <= {"late", "orphan", "too many spans"}, "orphans: what was beside spans that came late"
    assert found.refused == left_out.get("late", 0) + left_out.get("too many spans", 0), "the sender is told of what it sent"
    bounds = AssemblyBounds()
    assert found.waiting <= bounds.spans_per_tenant
    assert bounds.idle_s > LATE_S, "what completes is complete before its time, or counts as late"
    assert found.intake["traces"] > 0
    assert found.memory[-1][1] - found.memory[0][1] < GROWTH_MB
    assert {(edge["caller"], edge["callee"]) for edge in learned} == {
        (f"soak-{caller}/operation/{caller}", f"soak-{caller + 1}/operation/{caller + 1}") for caller in range(4)
    }
