"""The promised numbers: every budget of the design is defined, and docs/specification.md tells of each."""

from pathlib import Path

import pytest

from benchmarks.metrics import METRICS, TOPICS, Better, of_topic

SPECIFICATION = Path(__file__).parents[2] / "docs" / "specification.md"
PROMISED = {
    "warm.p50_ms": 1,
    "warm.p99_ms": 5,
    "warm.rps": 4000,
    "warm.cpu_us": 400,
    "process.cold.p50_ms": 8,
    "process.standby.p50_ms": 3,
    "process.standby.mb": 3,
    "imports400.p50_ms": 15,
    "microvm.cold.p50_ms": 180,
    "microvm.standby.p50_ms": 15,
    "microvm.standby.mb": 35,
    "chain.cse.mean": 1.1,
    "chain.cse.slope": 0.02,
    "chain.predicted.slowdown_p50": 1.03,
    "chain.predicted.slowdown_p99": 1.10,
    "page.first_picture_s": 3,
    "page.filter_ms": 300,
    "code.tier1_1mb.p50_ms": 1,
    "code.tier2_1mb.p50_ms": 5,
    "code.origin_share": 0.001,
    "code.planned_tier1_share": 0.99,
    "replay.waste_ratio": 0.35,
    "replay.stage_cold_ratio": 0.01,
    "replay.calibration_error": 0.02,
    "release.cold_requests": 0,
    "release.p99_excess": 1,
    "planner.plan100_ms": 5,
    "planner.observe_us": 50,
    "place.10k.p99_ms": 1,
    "place.rate": 50_000,
    "scale.step95_s": 2,
    "scale.downstream_lag_ticks": 0,
    "tunnel.attach.p50_ms": 0.5,
    "tunnel.attach.p99_ms": 5,
    "tunnel.kernel.rtt_added_us": 30,
    "tunnel.portable.rtt_added_us": 80,
    "tunnel.kernel.throughput_share": 0.7,
    "tunnel.failover_s": 1,
    "tunnel.crossed": 0,
}


def test_budgets_are_those_of_the_design():
    assert {name: metric.budget for name, metric in METRICS.items() if metric.budget is not None} == PROMISED


def test_every_metric_has_a_topic_a_unit_and_a_meaning():
    for name, metric in METRICS.items():
        assert metric.name == name
        assert metric.topic in TOPICS
        assert metric.unit
        assert metric.meaning
    assert sum(len(of_topic(topic)) for topic in TOPICS) == len(METRICS)


@pytest.mark.parametrize(("name", "good", "bad"), [("warm.p50_ms", 1.0, 1.01), ("warm.rps", 4000, 3999)])
def test_met_follows_the_direction(name, good, bad):
    assert METRICS[name].met(good) is True
    assert METRICS[name].met(bad) is False


def test_nothing_promised_is_neither_met_nor_missed():
    metric = METRICS["warm.cpu_client_us"]
    assert metric.met(1e9) is None
    assert metric.better is Better.LOWER


@pytest.mark.parametrize("name", PROMISED)
def test_the_specification_names_the_metric_its_budget_and_its_command(name):
    metric = METRICS[name]
    row = next((line for line in SPECIFICATION.read_text().splitlines() if line.startswith(f"| `{name}` |")), None)
    assert row is not None, f"{name} has no row"
    assert f"`make bench-{metric.topic}`" in row
    sign = "<=" if metric.better is Better.LOWER else ">="
    assert f"{sign} {metric.budget:,g}" in row
