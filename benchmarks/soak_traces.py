"""python -m benchmarks.soak_traces: spans at a steady rate into a running platform, a third of the traces never complete.

Each trace is ten spans of five services, a caller's and a callee's half for each call. Each service sends its own spans, as
exporters do, up to 4 seconds after the others. Of every third trace the root is never sent. Prints one JSON object a line:
the rate that was sustained, how memory grew, what was left out by reason, and how long the planner took to answer others.
"""

import argparse
import heapq
import http.client
import json
import os
import queue
import random
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse

from benchmarks import processes
from benchmarks.estimates import slope_of
from benchmarks.platform import Platform

SERVICES = 5
PER_TRACE = 2 * SERVICES - 1  # the outermost has no caller's half
TRACES = 240  # in a group: five requests of about 480 spans, what exporters send at once
LATE_S = 4.0
SENDERS = 4
PAGE = os.sysconf("SC_PAGE_SIZE")


class Requests:
    """Bodies of requests, one for each service of a group of traces. Made once; the ids in them are written anew each time."""

    def __init__(self) -> None:
        marks = [bytes([0xEE, index >> 8, index & 0xFF]) + b"\x5a" * 13 for index in range(TRACES)]
        self._bodies = [bytearray(self._body(service, marks)) for service in range(SERVICES)]
        self._places = [[self._all(body, mark) for mark in marks] for body in self._bodies]
        self.spans = [sum(map(len, places)) for places in self._places]

    def group(self, number: int) -> list[bytes]:
        for index in range(TRACES):
            identity = (number * TRACES + index + 1).to_bytes(16, "big")
            for body, places in zip(self._bodies, self._places, strict=True):
                for place in places[index]:
                    body[place : place + 16] = identity
        return [bytes(body) for body in self._bodies]

    @staticmethod
    def _all(body: bytearray, mark: bytes) -> list[int]:
        found, at = [], body.find(mark)
        while at >= 0:
            found.append(at)
            at = body.find(mark, at + 1)
        return found

    @staticmethod
    def _body(service: int, marks: list[bytes]) -> bytes:
        request = ExportTraceServiceRequest()
        resource = request.resource_spans.add()
        for key, value in (("service.name", f"soak-{service}"), ("host.name", f"host-{service}"), ("process.pid", "17")):
            attribute = resource.resource.attributes.add(key=key)
            attribute.value.string_value = value
        spans = resource.scope_spans.add().spans
        now = time.time_ns()
        for index, mark in enumerate(marks):
            for half in ("callee", "caller"):
                if half == "callee" and service == 0 and index % 3 == 0:
                    continue  # the root of this one never comes
                if half == "caller" and service == SERVICES - 1:
                    continue
                depth = 2 * service + (half == "caller")
                span = spans.add(
                    trace_id=mark, span_id=bytes([depth + 1]) * 8, name=f"/operation/{service}", kind=2 + (half == "caller")
                )
                if depth:
                    span.parent_span_id = bytes([depth]) * 8
                span.start_time_unix_nano, span.end_time_unix_nano = now + depth * 1_000_000, now + (60 - depth) * 1_000_000
                for key in ("http.request.method", "url.path", "server.address", "http.response.status_code"):
                    span.attributes.add(key=key).value.string_value = "about as long as these are"
        return request.SerializeToString()


@dataclass
class Soak:
    """What came of one run. `steady`: spans sent while all services sent, and for how many seconds; `memory`: (seconds, MB) of
    the planner; `answers`: seconds it took to answer a question of control."""

    sent: int = 0
    steady: tuple[int, float] = (0, 0.0)
    refused: int = 0
    failed: int = 0
    behind_s: float = 0.0
    seconds: float = 0.0
    memory: list[tuple[float, float]] = field(default_factory=list)
    answers: list[float] = field(default_factory=list)
    unanswered: int = 0
    cpu_share: float = 0.0
    waiting: int = 0
    intake: dict[str, Any] = field(default_factory=dict)
    began: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)
    _first: tuple[int, float] | None = None

    def count(self, at: float, spans: int, rejected: int, failed: bool, until: float) -> None:
        """One request was answered that was due at `at`."""
        self.sent += spans
        self.refused += rejected
        self.failed += failed
        passed = time.monotonic() - self.began
        if self._first is None:
            if at >= LATE_S:
                self._first = (self.sent, passed)
        elif at < until:
            self.steady = (self.sent - self._first[0], passed - self._first[1])

    def slope_mb_per_min(self) -> float:
        """Of the second half: the first fills what is bounded."""
        half = self.memory[len(self.memory) // 2 :]
        return slope_of([at / 60 for at, _ in half], [mb for _, mb in half]) if len(half) > 2 else 0.0

    def lines(self, rate: int) -> Iterator[dict[str, Any]]:
        def line(metric: str, value: float, unit: str, **more: Any) -> dict[str, Any]:
            return {"metric": f"soak.traces.{metric}", "value": round(value, 3), "unit": unit, "n": self.sent, **more}

        spans, seconds = self.steady
        yield line("rate", spans / seconds, "spans/s", wanted=rate, seconds=round(seconds, 1))
        yield line("behind", self.behind_s, "s", meaning="how late the last request was sent: 0 when the receiver keeps up")
        yield line("planner_cpu", self.cpu_share * 100, "% of a core")
        yield line("memory_peak", max(mb for _, mb in self.memory), "MB")
        yield line("memory_slope", self.slope_mb_per_min(), "MB/min", over="the second half")
        yield line("waiting_peak", self.waiting, "spans")
        for name, q in (("answer_p50", 50), ("answer_p99", 99)):
            yield line(name, float(np.percentile(self.answers, q)) * 1000, "ms", meaning="a question to the planner meanwhile")
        yield line("unanswered", self.unanswered, "questions", meaning="no answer within 5 s")
        yield line("failed", self.failed, "requests")
        yield line("refused", self.refused, "spans", meaning="said to the sender: partial success")
        yield line("traces", self.intake["traces"], "traces", early=self.intake["early"])
        for reason, count in sorted(self.intake["left_out"].items()):
            yield line("left_out", count, "spans", reason=reason, share=round(count / self.sent, 5))


def soak(platform: Platform, seconds: float, rate: int) -> Soak:
    """Sends from this process; two more threads look at memory and ask questions meanwhile."""
    found, requests = Soak(), Requests()
    (planner, *_) = platform.pids()["planner"]
    stopped = threading.Event()
    watching = [
        threading.Thread(target=_watch, args=(found, planner, stopped), daemon=True),
        threading.Thread(target=_ask, args=(found, platform, stopped), daemon=True),
    ]
    cpu = processes.cpu_seconds([planner])
    for thread in watching:
        thread.start()
    try:
        _send(found, platform, requests, seconds, rate)
    finally:
        stopped.set()
        for thread in watching:
            thread.join()
    found.cpu_share = (processes.cpu_seconds([planner]) - cpu) / found.seconds
    found.intake = platform.get("/v1/traces")
    return found


def _send(found: Soak, platform: Platform, requests: Requests, seconds: float, rate: int) -> None:
    """Requests when they are due, over as many connections as there are exporters."""
    chance = random.Random(6)
    each_s = sum(requests.spans) / rate
    due: list[tuple[float, int, bytes, int]] = []
    waiting: queue.Queue[tuple[float, bytes, int] | None] = queue.Queue(SENDERS)
    senders = [threading.Thread(target=_post, args=(found, platform, waiting, seconds), daemon=True) for _ in range(SENDERS)]
    began = found.began = time.monotonic()
    for sender in senders:
        sender.start()
    number = 0
    while number * each_s < seconds or due:
        if number * each_s < seconds and (not due or number * each_s <= due[0][0]):
            for service, (body, spans) in enumerate(zip(requests.group(number), requests.spans, strict=True)):
                at = number * each_s + chance.uniform(0.0, LATE_S)
                heapq.heappush(due, (at, number * SERVICES + service, body, spans))
            number += 1
            continue
        at, _, body, spans = heapq.heappop(due)
        ahead = began + at - time.monotonic()
        if ahead > 0:
            time.sleep(ahead)
        found.behind_s = max(0.0, -ahead)
        waiting.put((at, body, spans))
    for _ in senders:
        waiting.put(None)
    for sender in senders:
        sender.join()
    found.seconds = time.monotonic() - began


def _post(found: Soak, platform: Platform, waiting: "queue.Queue[tuple[float, bytes, int] | None]", seconds: float) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", platform.otlp_port, timeout=60)
    headers = {"Authorization": platform.authorization, "Content-Type": "application/x-protobuf"}
    while (one := waiting.get()) is not None:
        at, body, spans = one
        connection.request("POST", "/v1/traces", body, headers)
        answer = connection.getresponse()
        content = answer.read()
        rejected = 0
        if answer.status == 200 and content:
            rejected = ExportTraceServiceResponse.FromString(content).partial_success.rejected_spans
        with found.lock:
            found.count(at, spans, rejected, answer.status != 200, seconds)
    connection.close()


def _watch(found: Soak, planner: int, stopped: threading.Event) -> None:
    began = time.monotonic()
    while not stopped.wait(1.0):
        with open(f"/proc/{planner}/statm") as file:
            found.memory.append((time.monotonic() - began, int(file.read().split()[1]) * PAGE / 2**20))


def _ask(found: Soak, platform: Platform, stopped: threading.Event) -> None:
    while not stopped.wait(0.25):
        began = time.monotonic()
        try:
            intake = platform.get("/v1/traces")
        except RuntimeError:
            found.unanswered += 1  # it gave up after 5 s
            continue
        found.answers.append(time.monotonic() - began)
        found.waiting = max(found.waiting, intake["waiting_spans"])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak_traces", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--rate", type=int, default=10_000, help="spans a second")
    options = parser.parse_args()
    with Platform(standbys=0) as platform:
        for line in soak(platform, options.seconds, options.rate).lines(options.rate):
            print(json.dumps(line), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
