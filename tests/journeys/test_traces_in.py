"""Traces of other systems into a running platform: files of each form, an OpenTelemetry SDK, JSON by hand; names; counts."""

import gzip
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace import SpanKind, set_span_in_context

from benchmarks.platform import Platform

pytestmark = pytest.mark.system

DATA = Path(__file__).parents[1] / "data"
WAIT_S = 30.0


@pytest.fixture(scope="module")
def platform() -> Iterator[Platform]:
    with Platform(standbys=0) as made:
        yield made


def foreglow(platform: Platform, *arguments: str) -> Any:
    command = [sys.executable, "-P", "-m", "orchestrator.cli.main", *arguments, "--state", str(platform.state), "--json"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout)


def edges(platform: Platform) -> set[tuple[str, str]]:
    return {(edge["caller"], edge["callee"]) for edge in platform.get("/v1/graph")["edges"] if edge["traces"]}


def eventually(holds: Callable[[], object]) -> None:
    until = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.2)


def test_files_of_every_form_are_imported_in_one_go(platform: Platform) -> None:
    files = [
        DATA / "trainticket" / "traces.csv.gz",
        DATA / "hotel-jaeger" / "traces.jsonl.gz",
        DATA / "node-jaeger" / "traces.jsonl.gz",
        DATA / "zipkin" / "yelp.json",
        DATA / "zipkin" / "smartthings-mobile-web-install.json.gz",
        DATA / "xray" / "matrix_app.json",
    ]
    told = foreglow(platform, "traces", "import", *map(str, files), "--no-decay")
    assert [one["spans"] for one in told["files"]] == [1286, 440, 120, 16, 1041, 61]
    assert (told["traces"], told["spans"], told["reasons"]) == (25 + 40 + 20 + 3, 2964, {"duplicate": 84})
    found = edges(platform)
    assert ("frontend/HTTP GET /hotels", "search/search.Search/Nearby") in found
    assert ("service1/span-service1", "service2/span-service2") in found
    intake = foreglow(platform, "traces", "status")
    assert (intake["spans"], intake["left_out"]) == (2964, {"duplicate": 84})

    def counted() -> bool:
        lines = platform.control.get("/metrics").text.splitlines()
        dropped = [line for line in lines if line.startswith("foreglow_dropped_total{")]
        return any('reason="duplicate"' in line and 'what="spans"' in line and line.endswith(" 84.0") for line in dropped)

    eventually(counted)  # a process that does not answer in time is not in the metrics


def test_spans_that_are_sent_become_calls_of_the_functions_they_were_said_to_be(platform: Platform) -> None:
    named = platform.control.put("/v1/traces/names", json={"map": {"till/pay": "payment", "cellar/gone": None}})
    assert named.json()["map"] == {"till/pay": "payment"}
    exporter = OTLPSpanExporter(
        f"http://127.0.0.1:{platform.otlp_port}/v1/traces", headers={"Authorization": platform.authorization}
    )

    def tracer(service: str) -> Any:
        provider = TracerProvider(resource=Resource({"service.name": service}), shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        return provider.get_tracer("test")

    shop = tracer("shop")
    with (
        shop.start_as_current_span("/buy", kind=SpanKind.SERVER),
        shop.start_as_current_span("POST", kind=SpanKind.CLIENT) as half,
    ):
        tracer("till").start_span("/pay", set_span_in_context(half), SpanKind.SERVER).end()
    trace, now = "ab" * 16, time.time_ns()
    halves = [
        ("1", "", "door", "/in", 2),
        ("2", "1", "door", "GET", 3),
        ("3", "2", "till", "/pay", 2),
        ("3", "2", "till", "/pay", 2),
    ]
    document = {
        "resourceSpans": [
            {
                "resource": {"attributes": [{"key": "service.name", "value": {"stringValue": service}}]},
                "scopeSpans": [
                    {
                        "spans": [
                            {
                                "traceId": trace,
                                "spanId": span.zfill(16),
                                "parentSpanId": parent.zfill(16) if parent else "",
                                "name": name,
                                "kind": kind,
                                "startTimeUnixNano": str(now),
                                "endTimeUnixNano": str(now + 1000),
                            }
                        ]
                    }
                ],
            }
            for span, parent, service, name, kind in halves
        ]
    }
    answer = httpx.post(
        f"http://127.0.0.1:{platform.otlp_port}/v1/traces",
        content=gzip.compress(json.dumps(document).encode()),
        headers={"Authorization": platform.authorization, "Content-Type": "application/json", "Content-Encoding": "gzip"},
        timeout=60,
    )
    assert (answer.status_code, answer.json()) == (200, {})
    eventually(lambda: {("shop/buy", "payment"), ("door/in", "payment")} <= edges(platform))
    assert foreglow(platform, "traces", "status")["left_out"]["duplicate"] >= 1
    listed = {one["observed"]: one for one in foreglow(platform, "traces", "names")}
    assert listed["till/pay"] == {"observed": "till/pay", "function": "payment", "deployed": False, "learned": False}
    assert listed["shop/buy"]["function"] is None
