"""Two tenants on a platform that really runs: alpha, who has everything, and beta, who must never see any of it."""

import contextlib
import io
import json
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

WAIT_S = 60.0
SECRET, OTHER = "ALPHA-7f3a91", "BETA-c05e22"
ONLY = "alpha-only"
"""A function that beta has not. `shared`, `front` and `doomed` both have."""

HANDLERS = """
import time

SEEN = set()

def shared(event, context):
    SEEN.add(event["from"])
    print("log of {mark}")
    time.sleep(event.get("sleep", 0))
    return {{"mark": "{mark}", "seen": sorted(SEEN)}}

def front(event, context):
    answers = []
    for name in ["shared", *event.get("also", [])]:
        try:
            answers.append(context.invoke(name, event))
        except Exception as error:
            answers.append(str(error))
    return answers
"""


def eventually(true: Callable[[], Any], what: str = "") -> Any:
    deadline = time.monotonic() + WAIT_S
    while not (value := true()):
        assert time.monotonic() < deadline, f"did not come true in time: {what}"
        time.sleep(0.05)
    return value


class Side:
    """One tenant's way in: `control` and `functions` are clients with its key."""

    def __init__(self, addresses: dict[str, str], name: str, token: str, mark: str) -> None:
        self.name, self.token, self.mark = name, token, mark
        headers = {"Authorization": f"Bearer {token}"}
        self.control = httpx.Client(base_url=addresses["control"], headers=headers, trust_env=False, timeout=WAIT_S)
        self.functions = httpx.Client(base_url=addresses["functions"], headers=headers, trust_env=False, timeout=5 * WAIT_S)
        self._otlp = addresses["otlp"]
        self.package = ""

    def get(self, path: str) -> Any:
        answer = self.control.get(path)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def upload(self, mark: str) -> str:
        body = io.BytesIO()
        with zipfile.ZipFile(body, "w") as archive:
            archive.writestr("app.py", HANDLERS.format(mark=mark))
        answer = self.control.post("/v1/packages", content=body.getvalue(), headers={"Content-Type": "application/zip"})
        assert answer.status_code == 201, answer.text
        return str(answer.json()["digest"])

    def deploy(self, name: str, handler: str = "shared", calls: tuple[str, ...] = ()) -> None:
        self.package = self.package or self.upload(self.mark)
        wanted = {"package": self.package, "handler": f"app:{handler}", "calls": list(calls)}
        answer = self.control.put(f"/v1/functions/{name}", json=wanted)
        assert answer.status_code == 202, answer.text
        eventually(lambda: self.get(f"/v1/functions/{name}")["versions"][0]["state"] == "ready", f"{name} is ready")
        eventually(lambda: self.functions.post(f"/function/{name}", json={"from": self.name}).status_code == 200, f"{name} runs")

    def invoke(self, name: str, headers: dict[str, str] | None = None, **event: Any) -> httpx.Response:
        return self.functions.post(f"/function/{name}", json={"from": self.name, **event}, headers=headers)

    def spans(self, trace_id: str, parent_id: str, *names: str) -> httpx.Response:
        """Spans of calls, each the caller of the next, told over OTLP with this tenant's key."""
        request = ExportTraceServiceRequest()
        above = bytes.fromhex(parent_id)
        for number, name in enumerate(names):
            resource = request.resource_spans.add()
            attribute = resource.resource.attributes.add()
            attribute.key, attribute.value.string_value = "service.name", name
            span = resource.scope_spans.add().spans.add()
            span.trace_id, span.span_id = bytes.fromhex(trace_id), (0xF00D0000 + number).to_bytes(8, "big")
            span.parent_span_id, span.name, span.kind = above, "work", 2
            attribute = span.attributes.add()
            attribute.key, attribute.value.string_value = "faas.name", name
            span.start_time_unix_nano = time.time_ns() + number * 1_000_000
            span.end_time_unix_nano = span.start_time_unix_nano + 1_000_000
            above = span.span_id
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/x-protobuf"}
        return httpx.post(
            f"{self._otlp}/v1/traces", content=request.SerializeToString(), headers=headers, trust_env=False, timeout=WAIT_S
        )

    def close(self) -> None:
        self.control.close()
        self.functions.close()


class Crossing:
    """The platform with both sides. `marks`: what only alpha may ever be shown."""

    def __init__(self, state: Path, addresses: dict[str, str]) -> None:
        self.state, self.addresses = state, addresses
        self.operator = Side(addresses, "default", (state / "key").read_text().strip(), "")
        self.alpha, self.beta = (self._side(name, mark) for name, mark in (("alpha", SECRET), ("beta", OTHER)))
        for side in (self.alpha, self.beta):
            for name in ("shared", "doomed"):
                side.deploy(name)
        self.alpha.deploy(ONLY)
        self.beta.deploy("front", "front", ("shared",))
        self.alpha.deploy("front", "front", ("shared", ONLY))
        for side, also in ((self.alpha, [ONLY]), (self.beta, [])):
            for _ in range(3):
                assert side.invoke("front", also=also).status_code == 200
            side.control.post("/v1/functions/front/warm", json={"count": 2})
            eventually(lambda side=side: len(side.get("/v1/runs")["runs"]) >= 3, "runs")  # type: ignore[misc]
            eventually(lambda side=side: side.get("/v1/decisions")["decisions"], "decisions")  # type: ignore[misc]
            eventually(
                lambda side=side: any(edge["traces"] for edge in side.get("/v1/graph")["edges"]),  # type: ignore[misc]
                "a learned graph",
            )
        self.run = next(one for one in self.alpha.get("/v1/runs")["runs"] if one["entry"] == "front")["trace_id"]
        self.tree = self.alpha.get(f"/v1/runs/{self.run}")["root"]
        decisions = self.alpha.get("/v1/decisions?limit=1000")["decisions"]
        keys = self.alpha.get("/v1/keys")["keys"]
        self.key_id = keys[0]["key_id"]
        (log, *_) = eventually(lambda: self.alpha.get("/v1/functions/shared/logs")["logs"], "logs")
        self.invocation = log["invocation_id"]
        self.marks = {SECRET, ONLY, "alpha", self.alpha.package, self.invocation, self.tree["invocation_id"]}
        self.marks |= {one["trace_id"] for one in self.alpha.get("/v1/runs?limit=1000")["runs"]}
        self.marks |= {one[name] for one in decisions for name in ("decision_id", "plan_id")}
        self.marks |= {one["key_id"] for one in keys}

    def _side(self, name: str, mark: str) -> Side:
        made = self.operator.control.post("/v1/tenants", json={"name": name})
        assert made.status_code == 201, made.text
        key = self.operator.control.post(f"/v1/keys?tenant={name}", json={"name": f"key of {name}"})
        assert key.status_code == 201, key.text
        side = Side(self.addresses, name, key.json()["token"], mark)
        # nothing is deployed yet: a key that the gateway knows is told from one that it does not
        eventually(lambda: side.functions.post("/function/nothing").status_code == 404, f"the gateway knows the key of {name}")
        return side

    def clean(self, answer: httpx.Response, *expected: int) -> Any:
        """The answer beta got, after a look that nothing of alpha's is in it."""
        assert answer.status_code in (expected or (200,)), answer.text
        found = [mark for mark in self.marks if mark in self.without_what_was_asked(answer)]
        assert found == [], f"{answer.request.method} {answer.request.url} shows {found}: {answer.text[:2000]}"
        return answer.json() if answer.headers.get("content-type", "").endswith("json") else answer.text

    @staticmethod
    def without_what_was_asked(answer: httpx.Response) -> str:
        """Errors repeat what was asked for; that tells nothing."""
        if answer.status_code < 400:
            return answer.text
        asked = [*str(answer.request.url).replace("?", "/").replace("=", "/").replace("&", "/").split("/")]
        text = answer.text
        for part in filter(None, asked):
            text = text.replace(part, "")
        return text

    def close(self) -> None:
        for side in (self.operator, self.alpha, self.beta):
            side.close()


@contextlib.contextmanager
def running_crossing(folder: Path) -> Iterator[Crossing]:
    state = folder / "state"
    ports = ("--functions-port", "0", "--control-port", "0", "--otlp-port", "0")
    command = [sys.executable, "-P", "-m", "orchestrator.cli.main", "up", "--state", str(state), *ports]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, process_group=0) as process:
        assert process.stdout is not None
        try:
            assert any(line.startswith("ready") for line in process.stdout)
            made = Crossing(state, json.loads((state / "addresses.json").read_text()))
            try:
                yield made
            finally:
                made.close()
        finally:
            process.terminate()
            process.communicate(timeout=WAIT_S)
