"""What a run prints: lines a program can read, budgets judged for ours only, and nothing without a definition."""

import io
import json

import pytest

from benchmarks.estimates import Estimate
from benchmarks.report import Report


@pytest.fixture
def report():
    return Report("warm", out=io.StringIO(), driver="process", tier="root")


def lines(report):
    return [json.loads(line) for line in report.out.getvalue().splitlines() if line.startswith("{")]


def test_a_line_says_what_where_and_whether_it_is_met(report):
    report.emit("warm.p50_ms", Estimate(0.5, 0.4, 0.6, 12))
    report.emit("warm.rps", Estimate(3999, 3900, 4100, 12))
    first, second = lines(report)
    assert first == {
        "metric": "warm.p50_ms",
        "value": 0.5,
        "unit": "ms",
        "n": 12,
        "low": 0.4,
        "high": 0.6,
        "system": "foreglow",
        "driver": "process",
        "tier": "root",
        "budget": 1.0,
        "met": True,
    }
    assert second["met"] is False


def test_peers_have_no_budget_and_no_driver(report):
    report.emit("warm.p50_ms", Estimate(9, 9, 9, 1), "uvicorn")
    (line,) = lines(report)
    assert line["driver"] is None
    assert "met" not in line


def test_a_ratio_is_ours_over_the_peers(report):
    report.emit_ratio("warm.p50_ms", Estimate(2.5, 2.1, 2.9, 4), "uvicorn")
    (line,) = lines(report)
    assert (line["metric"], line["unit"], line["driver"]) == ("warm.p50_ms.ratio", "foreglow/uvicorn", "process")
    assert "met" not in line


def test_what_is_not_defined_cannot_be_printed(report):
    with pytest.raises(KeyError):
        report.emit("warm.made_up", Estimate(1, 1, 1, 1))
    assert lines(report) == []


def test_the_end_tells_of_the_machine_and_shows_a_table(report):
    report.emit("warm.p99_ms", Estimate(6.125, 5.5, 7, 4))
    report.emit("process.cold.step_ms", Estimate(2.5, 2, 3, 4), step="clone")
    report.note("something to know")
    report.close()
    machine = lines(report)[-1]
    assert machine["metric"] == "run.machine"
    assert machine["cores"] >= 1
    assert {"memory_gb", "kernel", "date", "stolen_percent", "load_1min", "seconds", "driver", "tier"} <= machine.keys()
    table = report.out.getvalue()
    assert "NOT MET" in table
    assert "step clone" in table
    assert "note: something to know" in table
