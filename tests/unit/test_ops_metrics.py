"""Counts, families, and the page of a whole machine."""

from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from graph.calls import StartKind
from orchestrator.gateway.tally import Tally
from orchestrator.ops.catalogue import FAMILIES, as_markdown, family, histogram, one
from orchestrator.ops.machine import merge
from tracing.records import Timings
from workers.rpc.messages import InvokeResult
from workers.tallies import Histogram, StartTimes

ROOT = Path(__file__).parents[2]


def test_a_histogram_counts_each_value_once_and_on_its_bound_below_it() -> None:
    times = Histogram((0.1, 1.0))
    for value in (0.05, 0.1, 0.5, 7.0):
        times.add(value)
    assert times.counts == [2, 1, 1]
    assert (len(times), times.total) == (4, pytest.approx(7.65))


def test_a_start_is_counted_by_kind_and_each_step_that_happened() -> None:
    times = StartTimes()
    times.add("cold", Timings(queue=1.0, clone=10.0, init=400.0, run=5000.0), place_ms=2.0)
    times.add("warm", Timings(run=3.0))
    assert {kind: part.total for kind, part in times.whole.items()} == {"cold": pytest.approx(0.413), "warm": 0.0}
    assert set(times.steps) == {("cold", "queue"), ("cold", "place"), ("cold", "clone"), ("cold", "init")}
    assert times.steps["cold", "init"].total == pytest.approx(0.4)


def test_functions_have_labels_only_when_asked_for_and_only_so_many() -> None:
    tally = Tally()
    for number in range(50):
        tally.ended(f"shop/f{number}:1", InvokeResult("ok", StartKind.WARM), 0.1, 0.2)
    assert not tally.by_function
    tally = Tally(functions=2)
    for number in (1, 2, 3, 4, 1):
        tally.ended(f"shop/f{number}:1", InvokeResult("ok", StartKind.WARM), 0.1, 0.2)
    assert tally.by_function == {("shop/f1", "ok"): 2, ("shop/f2", "ok"): 1, ("other", "ok"): 2}


def test_what_never_started_is_no_start() -> None:
    tally = Tally()
    tally.ended("shop/f:1", InvokeResult("full"), 0.1, 10.0)
    assert tally.results == {"full": 1}
    assert tally.starts.whole == {}


def test_families_know_their_labels() -> None:
    with pytest.raises(KeyError):
        one("foreglow_no_such_thing", 1)
    with pytest.raises(ValueError, match="label"):
        list(family("foreglow_connections", [((), 1)]).samples)


def test_pages_of_processes_become_one_with_who_is_away() -> None:
    gateway = '# HELP a what\n# TYPE a counter\na_total{x="1"} 3.0\n# HELP h what\n# TYPE h histogram\n' + "".join(
        f'h_bucket{{le="{bound}"}} {count}\n' for bound, count in (("0.1", 1), ("+Inf", 2))
    )
    pages = {
        "gateway": gateway + "h_count 2\nh_sum 5\n",
        "node": "# TYPE a counter\na_total 4.0\n",
        "flow": None,
        "control": "a{ 1",
    }
    merged = merge(pages).decode()
    found = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for part in text_string_to_metric_families(merged)
        for sample in part.samples
    }
    assert found["foreglow_up", ("process", "gateway")] == 1
    assert found["foreglow_up", ("process", "flow")] == 0
    assert found["foreglow_up", ("process", "control")] == 0
    assert found["a_total", ("process", "gateway"), ("x", "1")] == 3
    assert found["a_total", ("process", "node")] == 4
    assert found["h_bucket", ("le", "+Inf"), ("process", "gateway")] == 2
    assert merged.count("# TYPE a_total counter") + merged.count("# TYPE a counter") == 1


def test_a_histogram_is_told_as_prometheus_wants_it() -> None:
    times = Histogram((0.1, 1.0))
    times.add(0.5)
    samples = {(s.name, s.labels.get("le")): s.value for s in histogram("foreglow_start_seconds", [(("cold",), times)]).samples}
    assert samples["foreglow_start_seconds_bucket", "0.1"] == 0
    assert samples["foreglow_start_seconds_bucket", "+Inf"] == 1
    assert samples["foreglow_start_seconds_count", None] == 1


def test_the_document_lists_every_metric_as_it_is() -> None:
    assert as_markdown() in (ROOT / "docs" / "metrics.md").read_text(), "print it with python -m orchestrator.ops.catalogue"


def test_no_label_names_a_tenant_and_only_function_metrics_name_functions() -> None:
    assert [name for name, one in FAMILIES.items() if {"tenant", "version"} & set(one.labels)] == ["foreglow_build"]
    assert [name for name, one in FAMILIES.items() if "function" in one.labels] == [
        "foreglow_function_invocations",
        "foreglow_function_code_requests",
    ]
