"""What the API hands through from planner and nodes: real RPC connections to doubles that answer like them."""

import asyncio
import json
import shutil
import socket
import tempfile
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from graph.calls import Call, Trace
from graph.ids import FunctionId, TenantId
from orchestrator.control import peers
from orchestrator.control.app import server
from orchestrator.control.importing import BATCH_BYTES, batches
from orchestrator.settings import Settings, rpc_secret
from workers.rpc.connection import Connection, RpcError, listen
from workers.sealing import load_key

HEADER = "TraceID,SpanID,ParentID,PodName,OperationName,StartTimeUnixNano,EndTimeUnixNano,Duration\n"
TRACES = HEADER + (
    "aa,1,root,ts-order-service-7f-abc,/order,1000000000,1200000000,200000\n"
    "aa,2,1,ts-order-service-7f-abc,HTTP GET,1010000000,1100000000,90000\n"
    "aa,3,2,ts-price-service-7f-abc,/price,1020000000,1090000000,70000\n"
)


class Double:
    """A process that answers questions on a socket, in an event loop of its own."""

    def __init__(self, settings: Settings, name: str) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.answers: dict[str, Callable[[Mapping[str, Any]], object]] = {}
        self.connections = 0
        self._path = settings.socket(name)
        self._secret = rpc_secret(load_key(settings.key_file))
        self._name = name
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._server: asyncio.AbstractServer | None = None
        self._open: list[Connection] = []
        self.start()

    def start(self) -> None:
        self._call(self._start())

    def stop(self) -> None:
        self._call(self._stop())

    def close(self) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def _call(self, coroutine: Any) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)

    async def _start(self) -> None:
        names = (
            "graph plan decisions decision calibration runs run workflows warm cool prewarm observe names name intake state logs"
        )
        table = {what: self._answerer(what) for what in names.split()}
        self._server = await listen(self._path, self, self._secret, self._name, table)

    async def _stop(self) -> None:
        if self._server is not None:
            self._server.close()
            for connection in self._open:
                connection.close()
            self._open.clear()
            self._path.unlink(missing_ok=True)
            self._server = None
            await asyncio.sleep(0)

    def _answerer(self, what: str) -> Callable[[Mapping[str, Any]], Awaitable[object]]:
        async def answer(args: Mapping[str, Any]) -> object:
            self.asked.append((what, dict(args)))
            found = self.answers[what](args)
            return await found if isinstance(found, Awaitable) else found

        return answer

    def on_message(self, connection: Connection, kind: int, ident: int, message: Any, body: bytes) -> None: ...

    def on_lost(self, connection: Connection, why: str) -> None: ...

    def on_open(self, connection: Connection) -> None:
        self.connections += 1
        self._open.append(connection)


class Scene:
    def __init__(self, settings: Settings, address: str) -> None:
        self.planner = Double(settings, "planner")
        self.node = Double(settings, "node")
        key = settings.admin_key_file.read_text().strip()
        self.client = httpx.Client(base_url=address, headers={"Authorization": f"Bearer {key}"}, trust_env=False, timeout=60)


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "DIAL_TIMEOUT_S", 30.0)  # a busy machine is no process that is away


@pytest.fixture
def scene() -> Iterator[Scene]:
    folder = Path(tempfile.mkdtemp(prefix="fg-insight-"))
    settings = Settings(state=folder, redis_url=f"unix://{folder}/none.sock")
    settings.runtime_folder.mkdir(mode=0o700)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        made = server(settings)
        thread = threading.Thread(target=made.run, args=([listener],))
        thread.start()
        listener.listen()  # who connects before the server does waits for it
        playing = Scene(settings, f"http://127.0.0.1:{listener.getsockname()[1]}")
        try:
            yield playing
        finally:
            playing.client.close()
            made.should_exit = True
            thread.join(60)
            playing.planner.close()
            playing.node.close()
            shutil.rmtree(settings.runtime_folder)
            shutil.rmtree(folder)
    assert not thread.is_alive()


def test_questions_carry_the_callers_tenant_and_the_answer_comes_through_as_it_is(scene: Scene) -> None:
    said = {"anything": [1, 2, {"ü": None}]}
    for path, what, args in (
        ("/v1/plans/checkout", "plan", {"name": "checkout"}),
        ("/v1/plans/observed/with%2Fslash", "plan", {"name": "observed/with/slash"}),
        ("/v1/decisions?function=f&run=r&limit=7", "decisions", {"function": "f", "run": "r", "limit": 7}),
        ("/v1/decisions/p1-2-3", "decision", {"decision_id": "p1-2-3"}),
        ("/v1/decisions/deploy/acme/f:1/128/1/2", "decision", {"decision_id": "deploy/acme/f:1/128/1/2"}),
        ("/v1/calibration", "calibration", {}),
        ("/v1/runs?limit=3", "runs", {"limit": 3}),
        ("/v1/runs/abc", "run", {"trace_id": "abc"}),
        ("/v1/workflows", "workflows", {}),
        ("/v1/prewarm", "prewarm", {}),
        ("/v1/graph", "graph", {"format": "json"}),
    ):
        scene.planner.answers[what] = lambda args: said
        assert scene.client.get(path).json() == said
        assert scene.planner.asked[-1] == (what, {"tenant": "default"} | args)


def test_orders_are_passed_on_and_checked(scene: Scene) -> None:
    for what in ("warm", "cool", "prewarm"):
        scene.planner.answers[what] = lambda args: {"done": True}
    assert scene.client.post("/v1/functions/f/warm", json={"count": 3}).json() == {"done": True}
    assert scene.planner.asked[-1] == ("warm", {"tenant": "default", "name": "f", "count": 3})
    assert scene.client.post("/v1/cool", json={"function": "f"}).status_code == 200
    assert scene.planner.asked[-1] == ("cool", {"tenant": "default", "name": "f"})
    assert scene.client.put("/v1/prewarm", json={"policy": "off"}).status_code == 200
    assert scene.planner.asked[-1] == ("prewarm", {"tenant": "default", "policy": "off"})
    asked = len(scene.planner.asked)
    for method, path, body, field in (
        ("POST", "/v1/functions/f/warm", {"count": 0}, "count"),
        ("PUT", "/v1/prewarm", {"policy": "maybe"}, "policy"),
        ("POST", "/v1/cool", {"function": "a/b"}, "function"),
        ("GET", "/v1/graph?format=png", None, "format"),
    ):
        answer = scene.client.request(method, path, json=body)
        assert (answer.status_code, answer.json()["field"]) == (400, field)
    assert len(scene.planner.asked) == asked


def test_pictures_are_text_of_their_own_type(scene: Scene) -> None:
    scene.planner.answers["graph"] = lambda args: {"text": f"a {args['format']}"}
    dot, mermaid = scene.client.get("/v1/graph?format=dot"), scene.client.get("/v1/graph?format=mermaid")
    assert (dot.text, dot.headers["content-type"]) == ("a dot", "text/vnd.graphviz; charset=utf-8")
    assert (mermaid.text, mermaid.headers["content-type"]) == ("a mermaid", "text/plain; charset=utf-8")


def test_a_refusal_keeps_its_status(scene: Scene) -> None:
    def refuse(args: Mapping[str, Any]) -> object:
        raise RpcError("no function 'x'", 404)

    scene.planner.answers["plan"] = refuse
    answer = scene.client.get("/v1/plans/x")
    assert (answer.status_code, answer.json()["detail"]) == (404, "no function 'x'")


def test_one_connection_is_kept_and_made_anew_when_the_planner_comes_back(scene: Scene) -> None:
    scene.planner.answers["runs"] = lambda args: {"runs": []}
    for _ in range(3):
        assert scene.client.get("/v1/runs").status_code == 200
    assert scene.planner.connections == 1
    scene.planner.stop()
    answer = scene.client.get("/v1/runs")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    scene.planner.start()
    assert scene.client.get("/v1/runs").status_code == 200
    assert scene.planner.connections == 2


def test_status_says_what_runs_and_what_is_away(scene: Scene) -> None:
    scene.planner.answers["state"] = lambda args: {"learned": {}}
    scene.node.answers["state"] = lambda args: {"isolation": {"tier": "root"}}
    status = scene.client.get("/v1/status").json()
    assert status["planner"] == {"learned": {}}
    assert status["node"] == {"isolation": {"tier": "root"}}
    scene.node.stop()
    assert scene.client.get("/v1/status").json()["node"] == "away"


def test_the_stream_tells_each_change_once_and_ends_with_the_server(scene: Scene) -> None:
    log = [{"revision": 5, "n": 1}]

    def decisions(args: Mapping[str, Any]) -> object:
        after = args.get("after")
        found = [one for one in log if after is None or one["revision"] > after]
        return {"decisions": found, "revision": max(one["revision"] for one in log)}

    scene.planner.answers["decisions"] = decisions
    with scene.client.stream("GET", "/v1/decisions/stream?function=f") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = answer.iter_lines()
        assert next(lines).startswith(":")
        log += [{"revision": 6, "n": 2}, {"revision": 7, "n": 3}]
        changes = (json.loads(line[5:]) for line in lines if line.startswith("data:"))
        told = [next(changes), next(changes)]
        assert [one["n"] for one in told] == [2, 3]
        log.append({"revision": 8, "n": 4})
        assert next(changes)["n"] == 4
        assert scene.planner.asked[-1][1]["function"] == "f"
    with scene.client.stream("GET", "/v1/decisions/stream", headers={"Last-Event-ID": "5"}) as answer:
        first = next(line for line in answer.iter_lines() if line.startswith("id:"))
        assert first == "id: 6"


def test_logs_come_from_the_node_for_functions_that_exist(scene: Scene) -> None:
    scene.node.answers["logs"] = lambda args: [{"at": 2.0, "invocation_id": "b"}, {"at": 1.0, "invocation_id": "a"}]
    assert scene.client.get("/v1/functions/f/logs").status_code == 404
    assert scene.node.asked == []


def test_imported_traces_are_taught_with_the_names_given(scene: Scene) -> None:
    scene.planner.answers["observe"] = lambda args: {"observed": 1}
    scene.planner.answers["names"] = lambda args: {"names": [], "map": {"ts-price-service/price": "other", "x/y": "z"}}
    body = {"format": "csv", "text": TRACES, "map": {"ts-price-service/price": "price"}, "decay": False}
    answer = scene.client.post("/v1/traces/import", json=body)
    assert answer.status_code == 200, answer.text
    assert {key: answer.json()[key] for key in ("traces", "calls", "spans", "left_out")} == {
        "traces": 1, "calls": 1, "spans": 3, "left_out": 0,
    }  # fmt: skip
    (_, _), (what, args) = scene.planner.asked
    assert (what, args["tenant"], args["decay"]) == ("observe", "default", False)
    assert (args["spans"], args["left_out"]) == (3, {})
    (trace,) = msgspec.msgpack.decode(args["traces"], type=list[Trace])
    assert trace.entry.startswith("default/")
    assert [call.callee for call in trace.calls] == ["default/price"]


def test_what_the_planner_could_not_use_is_counted(scene: Scene) -> None:
    scene.planner.answers["observe"] = lambda args: {"observed": 0}
    scene.planner.answers["names"] = lambda args: {"names": [], "map": {}}
    answer = scene.client.post("/v1/traces/import", json={"text": TRACES}).json()
    assert (answer["traces"], answer["left_out"], answer["reasons"]) == (0, 1, {"nothing to learn from": 1})


def test_traces_that_are_not_that_form_name_the_line(scene: Scene) -> None:
    for text in ("", "nonsense\n1,2\n", HEADER + "zz,1,root,p,/x,1,2,3\n", HEADER + "aa,1\n"):
        answer = scene.client.post("/v1/traces/import", json={"text": text})
        assert (answer.status_code, answer.json()["field"]) == (400, "text")
        assert "line" in answer.json()["detail"]
    assert scene.client.post("/v1/traces/import", json={"text": TRACES, "format": "xml"}).json()["field"] == "format"
    assert scene.planner.asked == []


def test_batches_keep_the_order_and_fit_a_message() -> None:
    tenant = TenantId("default")

    def trace(number: int, calls: int) -> Trace:
        one = Call(FunctionId("default/a"), FunctionId("default/b"), -1, 0.1, 0.2)
        return Trace(tenant, f"{number}", FunctionId("default/a"), 1.0, (one,) * calls)

    traces = [trace(number, calls) for number, calls in enumerate([1, 3000, 60_000, 3000, 2, 8000, 1])]
    left_out: Counter[str] = Counter()
    made = list(batches(traces, left_out))
    assert [int(one.trace_id) for batch in made for one in batch] == [0, 1, 3, 4, 5, 6]
    assert left_out == {"trace too long": 1}
    assert all(len(msgspec.msgpack.encode(batch)) <= BATCH_BYTES + 100 or len(batch) == 1 for batch in made)
    assert list(batches([], left_out)) == []
