"""HTTP in, HTTP out: a gateway in front of a real node on its socket, with sandboxes in memory."""

import asyncio
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from doubles.gateways import OTHER_TOKEN, Gate, route, running_gateway
from doubles.loop import in_loop, until
from doubles.nodes import running_node, spec
from doubles.sandboxes import DoubleClone, silent

from tracing.records import InvocationRecord
from workers.drivers.frames import FromGuest
from workers.framing import Frame
from workers.ports import CodeUnavailable, InitFailed
from workers.versions import Kind

ECHO = spec("echo")
SITE = spec("site", kind=Kind.HTTP)
PARENT_HEADER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def records(gate: Gate) -> list[InvocationRecord]:
    return gate.reports._records


def always_there(headers: Any) -> None:
    assert re.search(r"\brun;dur=\d+\.\d\d\b", headers["server-timing"])
    assert headers["x-foreglow-start"] in {"cold", "standby", "warm", "prewarmed", "almost-warm", "unknown"}


async def asgi(gate: Gate, messages: list[dict[str, Any]], **scope: Any) -> list[dict[str, Any]]:
    """One request in ASGI's own words."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    whole = {"type": "http", "method": "POST", "path": "/function/echo", "query_string": b"", "headers": [], **scope}
    whole["headers"] = [(b"authorization", b"Bearer a-token-of-acme"), *whole["headers"]]
    await gate.app(whole, receive, send)
    return sent


# -- good answers


@in_loop
async def test_an_event_function_answers_and_says_how_it_started_and_what_it_took(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig, running_gateway(rig) as gate:
        gate.serve(ECHO)
        first = await gate.post("echo", b'{"a":1}')
        assert (first.status_code, first.content) == (200, b'{"a":1}')
        assert first.headers["x-foreglow-start"] == "cold"
        timing = first.headers["server-timing"]
        assert re.search(r"\bcode;desc=tier1;dur=[\d.]+", timing)
        steps = dict(re.findall(r"(\w+)(?:;desc=\w+)?;dur=([\d.]+)", timing))
        assert list(steps) == [name for name in ("queue", "place", "clone", "code", "init", "run") if name in steps]
        assert float(steps["init"]) == 3.0
        assert {"place", "code", "run"} <= set(steps)
        assert (await gate.post("echo")).headers["x-foreglow-start"] == "warm"
        assert re.fullmatch("[0-9a-f]{16}", first.headers["x-foreglow-invocation"])
        assert re.fullmatch("[0-9a-f]{32}", first.headers["x-foreglow-trace"])


@in_loop
async def test_a_number_or_latest_chooses_the_version(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig, running_gateway(rig) as gate:
        one, two = spec("echo", 1), spec("echo", 2)
        gate.table.put("acme/echo", route(one, two))
        targets = {"echo": 2, "echo:1": 1, "echo:2": 2, "echo:$LATEST": 2, "echo:001": 1}
        for target in targets:
            assert (await gate.post(target)).status_code == 200, target
        assert [record.version for record in records(gate)] == list(targets.values())
        for target in ("echo:3", "echo:stable", "echo:-1", "echo:²", "echo:" + "9" * 5000, "echo:1:1"):
            answer = await gate.post(target)
            assert (answer.status_code, answer.json()["title"]) == (404, "no such function"), target


@in_loop
async def test_an_http_function_gets_the_request_and_makes_the_answer(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig, running_gateway(rig) as gate:
        gate.serve(SITE)

        def mirror(clone: DoubleClone, frame: Frame) -> None:
            http = msgspec.json.decode(frame.meta)["http"]
            head = {"http": {"status": 201, "headers": [["Content-Type", "text/html"], ["Set-Cookie", "a"], ["Set-Cookie", "b"]]}}
            clone.say(FromGuest.RESULT, frame.id, head, msgspec.json.encode(http))

        rig.driver.handler = mirror
        answer = await gate.client.request(
            "DELETE", "/function/site/a/b%20c?x=1&y=%2F", headers={"x-mine": "1", "cookie": "c=1", "connection": "close"}
        )
        assert (answer.status_code, answer.headers["content-type"]) == (201, "text/html")
        assert answer.headers.get_list("set-cookie") == ["a", "b"]
        always_there(answer.headers)
        seen = answer.json()
        assert (seen["method"], seen["path"], seen["query"]) == ("DELETE", "/a/b c", "x=1&y=%2F")
        names = {name for name, _ in seen["headers"]}
        assert {"x-mine", "cookie", "host"} <= names
        assert not names & {"authorization", "connection"}, "the key is never handed to user code"
        assert (await gate.client.get("/function/site")).json()["path"] == "/"


HOSTILE_HEADERS = [
    ["Content-Length", "3"],
    ["transfer-encoding", "chunked"],
    ["Connection", "close"],
    ["Server-Timing", "run;dur=0"],
    ["X-Foreglow-Start", "warm"],
    ["x-foreglow-trace", "0"],
    ["Split\r\nX-Injected", "1"],
    ["X-Split", "1\r\nX-Injected: 1"],
    ["X-Nul", "\0"],
    ["X-Bell", "\x07"],
    ["a b", "1"],
    ["a:b", "1"],
    ["", "1"],
    ["ü", "1"],
    ["X-Far", "\u2028"],
    ["X-Kept", "yes ü"],
]


@in_loop
async def test_headers_that_are_ours_or_broken_do_not_pass(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig, running_gateway(rig) as gate:
        gate.serve(SITE)
        head = {"content_type": "text/plain\r\nX-Injected: 1", "http": {"status": 200, "headers": HOSTILE_HEADERS}}
        rig.driver.handler = lambda clone, frame: clone.say(FromGuest.RESULT, frame.id, head, b"body")
        sent = await asgi(gate, [{"type": "http.request"}], method="GET", path="/function/site/")
        headers = sent[0]["headers"]
        assert (b"x-kept", "yes ü".encode("latin-1")) in headers
        assert [value for name, value in headers if name == b"content-length"] == [b"4"]
        assert [name for name, _ in headers if name.startswith(b"x-foreglow-")] == [
            b"x-foreglow-start",
            b"x-foreglow-invocation",
            b"x-foreglow-trace",
        ]
        assert len(headers) == 7
        for name, value in headers:
            assert re.fullmatch(rb"[a-z-]+", name)
            assert b"\r" not in value
            assert b"\n" not in value


@pytest.mark.parametrize("status", [0, 1, 100, 101, 199, 600, 1000, -1, 2**40])
@in_loop
async def test_a_status_that_is_none_is_a_bad_answer(tmp_path: Path, status: int) -> None:
    async with running_node(tmp_path) as rig, running_gateway(rig) as gate:
        gate.serve(SITE)
        rig.driver.handler = lambda clone, frame: clone.say(FromGuest.RESULT, frame.id, {"http": {"status": status}}, b"x")
        answer = await gate.client.get("/function/site/")
        assert answer.status_code == (200 if status == 0 else 502)


@pytest.mark.parametrize("status", [204, 304])
@in_loop
async def test_an_answer_that_has_no_body_has_none(tmp_path: Path, status: int) -> None:
    async with running_node(tmp_path) as rig, running_gateway(rig) as gate:
        gate.serve(SITE)
        rig.driver.handler = lambda clone, frame: clone.say(FromGuest.RESULT, frame.id, {"http": {"status": status}}, b"body")
        sent = await asgi(gate, [{"type": "http.request"}], method="GET", path="/function/site/")
        assert (sent[0]["status"], sent[1]["body"]) == (status, b"")
        assert not [1 for name, _ in sent[0]["headers"] if name == b"content-length"]


@in_loop
async def test_head_has_the_headers_of_get_and_no_body(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig, running_gateway(rig) as gate:
        gate.serve(SITE)
        head = {"content_type": "text/plain", "http": {"status": 200}}
        rig.driver.handler = lambda clone, frame: clone.say(FromGuest.RESULT, frame.id, head, b"12345")
        sent = await asgi(gate, [{"type": "http.request"}], method="HEAD", path="/function/site/")
        assert (b"content-length", b"5") in sent[0]["headers"]
        assert sent[1]["body"] == b""
        assert (await gate.client.head("/function/unknown")).content == b""


# -- refused before anything runs


@pytest.mark.parametrize(
    ("authorization", "detail"),
    [
        (None, "send the key"),
        ("", "send the key"),
        ("Bearer", "send the key"),
        ("Basic YTpi", "send the key"),
        ("Bearer wrong", "not known"),
        ("Bearer \xff", "not known"),
    ],
)
@in_loop
async def test_no_key_or_a_wrong_one_is_401(tmp_path: Path, authorization: str | None, detail: str) -> None:
    async with running_node(tmp_path) as rig, running_gateway(rig) as gate:
        gate.serve(ECHO)
        headers = [] if authorization is None else [(b"authorization", authorization.encode("latin-1"))]
        sent: list[Any] = []

        async def receive() -> Any:
            raise AssertionError("the body is not even read")

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": "/function/echo", "query_string": b"", "headers": headers}
        await gate.app(scope, receive, send)
        problem = msgspec.json.decode(sent[1]["body"])
        assert (sent[0]["status"], problem["status"]) == (401, 401)
        assert detail in problem["detail"]
        assert "wrong" not in problem["detail"], "a key is not repeated"
        assert (b"www-authenticate", b"Bearer") in sent[0]["headers"]
        always_there({name.decode(): value.decode() for name, value in sent[0]["headers"]})
        assert (rig.driver.tries, records(gate)) == (0, [])


@in_loop
async def test_what_is_not_there_or_not_yours_is_404_and_looks_the_same(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig, running_gateway(rig) as gate:
        gate.serve(ECHO)
        theirs = await gate.post("echo", authorization=f"Bearer {OTHER_TOKEN}")
        nobody = await gate.post("nobody", authorization=f"Bearer {OTHER_TOKEN}")
        assert (theirs.status_code, nobody.status_code) == (404, 404)
        assert theirs.json() | {"detail": ""} == nobody.json() | {"detail": ""}
        assert theirs.json()["detail"].replace("echo", "nobody") == nobody.json()["detail"]
        always_there(nobody.headers)
        for path in ("/", "/function", "/function/", "/functions/echo", "/function/other/echo", "/function/acme/echo"):
            assert (await gate.client.post(path)).status_code == 404, path
        assert (await gate.post("echo/more")).status_code == 404
        assert rig.driver.tries == 0


@in_loop
async def test_an_event_function_is_invoked_by_post_only(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig, running_gateway(rig) as gate:
        gate.serve(ECHO)
        for method in ("GET", "PUT", "HEAD", "OPTIONS"):
            answer = await gate.client.request(method, "/function/echo")
            assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
            always_there(answer.headers)


@pytest.mark.parametrize("how", ["announced", "one message", "many messages"])
@in_loop
async def test_a_payload_over_the_limit_is_413_however_it_comes(tmp_path: Path, how: str) -> None:
    async with running_node(tmp_path) as rig, running_gateway(rig, max_payload=1000) as gate:
        gate.serve(ECHO)
        if how == "announced":
            sent = await asgi(gate, [], headers=[(b"content-length", b"1001")])
        elif how == "one message":
            sent = await asgi(gate, [{"type": "http.request", "body": bytes(1001)}])
        else:
            part = {"type": "http.request", "body": bytes(300), "more_body": True}
            sent = await asgi(gate, [part, part, part, part, part])
        assert sent[0]["status"] == 413
        assert rig.driver.tries == 0
        whole = [{"type": "http.request", "body": bytes(500), "more_body": True}, {"type": "http.request", "body": bytes(500)}]
        sent = await asgi(gate, whole)
        assert (sent[0]["status"], len(sent[1]["body"])) == (200, 1000)


@pytest.mark.parametrize("after", [0, 1])
@in_loop
async def test_a_client_that_goes_away_while_sending_invokes_nothing(tmp_path: Path, after: int) -> None:
    async with running_node(tmp_path) as rig, running_gateway(rig) as gate:
        gate.serve(ECHO)
        parts: list[dict[str, Any]] = [{"type": "http.request", "body": b"half", "more_body": True}][:after]
        await asgi(gate, [*parts, {"type": "http.disconnect"}])
        assert (rig.driver.tries, records(gate)) == (0, [])


# -- what ran and failed


@in_loop
async def test_an_exception_is_502_with_type_message_and_stack(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig, running_gateway(rig) as gate:
        gate.serve(ECHO)
        detail = {"type": "KeyError", "message": "'sku'", "stack": "Traceback ..."}
        rig.driver.handler = lambda clone, frame: clone.say(FromGuest.ERROR, frame.id, detail)
        answer = await gate.post("echo")
        assert (answer.status_code, answer.headers["content-type"]) == (502, "application/problem+json")
        problem = answer.json()
        assert (problem["status"], problem["type"], problem["error"]) == (502, "foreglow:error", detail)
        always_there(answer.headers)
        assert records(gate)[0].status == "error"
        assert records(gate)[0].error_type == "KeyError"


@in_loop
async def test_a_payload_that_is_not_what_it_says_is_the_callers_fault(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig, running_gateway(rig) as gate:
        gate.serve(ECHO)
        detail = {"type": "BadPayload", "message": "not JSON", "stack": "", "payload": True}
        rig.driver.handler = lambda clone, frame: clone.say(FromGuest.ERROR, frame.id, detail)
        answer = await gate.post("echo")
        assert (answer.status_code, answer.json()["type"], answer.json()["detail"]) == (400, "foreglow:bad-payload", "not JSON")
        always_there(answer.headers)


@in_loop
async def test_a_module_that_cannot_be_imported_is_502_and_its_code_missing_503(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig, running_gateway(rig) as gate:
        gate.serve(ECHO)
        rig.driver.init_error = InitFailed({"type": "ImportError", "message": "no numpy", "stack": "s"})
        answer = await gate.post("echo")
        assert (answer.status_code, answer.json()["error"]["type"]) == (502, "ImportError")
        rig.code.everything_held = False
        rig.code.fetched.clear()
        rig.code.error = CodeUnavailable("the origin is away")
        answer = await gate.post("echo")
        assert (answer.status_code, answer.json()["detail"]) == (503, "the origin is away")


@in_loop
async def test_a_handler_that_takes_too_long_is_504(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig, running_gateway(rig) as gate:
        gate.serve(spec("slow", timeout_s=1.0))
        rig.driver.handler = silent
        answer = await gate.post("slow")
        assert answer.status_code == 504
        assert re.search(r"within (1|0\.\d+) s", answer.json()["detail"])
        always_there(answer.headers)
        assert records(gate)[0].status == "timeout"


@in_loop
async def test_a_node_lost_in_the_middle_is_502_and_the_next_request_waits_for_it_to_come_back(tmp_path: Path) -> None:
    async with running_gateway(tmp_path / "node.sock") as gate:
        gate.serve(ECHO)
        async with running_node(tmp_path) as rig:
            await until(lambda: gate.runs.links[0].up)
            rig.driver.handler = silent
            running = asyncio.ensure_future(gate.post("echo"))
            await until(lambda: rig.driver.instances and rig.driver.instances[0].invocations())
            for connection in list(rig.node._connections):
                connection._transport.abort()  # type: ignore[union-attr]
            answer = await running
            assert (answer.status_code, answer.json()["error"]["type"]) == (502, "NodeLost")
        await until(lambda: not gate.runs.links[0].up)
        waiting = asyncio.ensure_future(gate.post("echo", b"after"))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        async with running_node(tmp_path) as rig:
            answer = await waiting
            assert (answer.status_code, answer.content) == (200, b"after")


@in_loop
async def test_a_node_that_does_not_answer_is_not_waited_for_much_beyond_the_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.gateway.links.GRACE_S", 0.02)
    async with running_node(tmp_path) as rig, running_gateway(rig) as gate:
        gate.serve(spec("slow", timeout_s=1.0))
        monkeypatch.setattr(rig.node, "on_message", lambda *_: None)
        answer = await gate.post("slow")
        assert (answer.status_code, answer.json()["error"]["type"]) == (502, "NodeLost")
        assert gate.runs.links[0]._streams == {}


# -- overload


@in_loop
async def test_no_room_to_wait_is_429_with_a_reason_at_once(tmp_path: Path) -> None:
    async with running_node(tmp_path, memory_mb=150) as rig, running_gateway(rig, max_waiting=0) as gate:
        one, two = spec("one"), spec("two")
        gate.serve(one, two)
        rig.driver.handler = silent
        running = asyncio.ensure_future(gate.post("one"))
        await until(lambda: rig.driver.instances and rig.driver.instances[0].invocations())
        answer = await gate.post("two")
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
        assert "waiting for capacity" in answer.json()["detail"]
        always_there(answer.headers)
        rig.driver.instances[0].answer(1)
        assert (await running).status_code == 200


@in_loop
async def test_capacity_that_does_not_come_in_time_is_429_with_the_time_it_waited(tmp_path: Path) -> None:
    async with running_node(tmp_path, memory_mb=150) as rig, running_gateway(rig, max_wait_s=0.06) as gate:
        gate.serve(spec("one"), spec("two"))
        rig.driver.handler = silent
        running = asyncio.ensure_future(gate.post("one"))
        await until(lambda: rig.driver.instances and rig.driver.instances[0].invocations())
        answer = await gate.post("two")
        assert answer.status_code == 429
        assert "0.06 s" in answer.json()["detail"]
        queued = re.search(r"queue;dur=([\d.]+)", answer.headers["server-timing"])
        assert queued is not None
        assert float(queued[1]) >= 55
        rig.driver.instances[0].answer(1)
        await running


@in_loop
async def test_who_waits_is_served_when_an_invocation_ends(tmp_path: Path) -> None:
    async with running_node(tmp_path, memory_mb=150) as rig, running_gateway(rig) as gate:
        gate.serve(spec("one"), spec("two"))
        rig.driver.handler = silent
        running = asyncio.ensure_future(gate.post("one"))
        await until(lambda: rig.driver.instances and rig.driver.instances[0].invocations())
        waiting = asyncio.ensure_future(gate.post("two", b"now me"))
        await until(lambda: len(gate.runs._waiting))
        rig.driver.handler = lambda clone, frame: clone.answer(frame.id, frame.body)
        rig.driver.instances[0].answer(1)
        assert ((await running).status_code, (await waiting).content) == (200, b"now me")
        assert len(gate.runs._waiting) == 0


@in_loop
async def test_the_deadline_passes_while_it_waits(tmp_path: Path) -> None:
    async with running_node(tmp_path, memory_mb=150) as rig, running_gateway(rig) as gate:
        gate.serve(spec("one"), spec("two", timeout_s=0.05))
        rig.driver.handler = silent
        running = asyncio.ensure_future(gate.post("one"))
        await until(lambda: rig.driver.instances and rig.driver.instances[0].invocations())
        assert (await gate.post("two")).status_code == 504
        rig.driver.instances[0].answer(1)
        await running


# -- traces


@in_loop
async def test_a_traceparent_from_outside_is_only_a_link(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig, running_gateway(rig) as gate:
        gate.serve(ECHO)
        answer = await gate.post("echo", traceparent=PARENT_HEADER)
        assert answer.headers["x-foreglow-trace"] not in PARENT_HEADER
        broken = await gate.post("echo", traceparent="00-zz")
        assert broken.status_code == 200
        first, second = records(gate)
        assert (first.link, first.parent_id, first.trace_id) == (PARENT_HEADER, "", answer.headers["x-foreglow-trace"])
        assert (second.link, second.tenant, second.function) == ("", "acme", "acme/echo")
        assert first.trace_id != second.trace_id


@in_loop
async def test_a_record_tells_what_the_answer_told(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig, running_gateway(rig) as gate:
        gate.serve(ECHO)
        answer = await gate.post("echo")
        (record,) = records(gate)
        assert (record.invocation_id, record.start, record.status, record.node) == (
            answer.headers["x-foreglow-invocation"],
            answer.headers["x-foreglow-start"],
            "ok",
            "node-1",
        )
        assert record.sent_at <= record.ended_at
        assert record.timings.init == 3.0
        assert record.timings.place > 0


# -- probes


@in_loop
async def test_alive_at_once_and_ready_with_routes_and_a_node(tmp_path: Path) -> None:
    async with running_gateway(tmp_path / "node.sock") as gate:
        assert (await gate.client.get("/healthz")).text == "ok\n"
        assert (await gate.client.get("/readyz")).status_code == 503
        async with running_node(tmp_path):
            await until(lambda: gate.runs.links[0].up)
            assert (await gate.client.get("/readyz")).status_code == 200
            gate.table.loaded.clear()
            assert (await gate.client.get("/readyz")).status_code == 503


@in_loop
async def test_a_gateway_without_routes_yet_lets_requests_wait_and_calls_no_key_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_node(tmp_path) as rig, running_gateway(rig) as gate:
        gate.serve(ECHO)
        keys = dict(gate.table.keys)
        gate.table.loaded.clear()
        gate.table.keys.clear()
        waiting = asyncio.create_task(gate.post("echo", b"1"))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        gate.table.replace(dict(gate.table.routes), keys)
        assert (await waiting).status_code == 200
        gate.table.loaded.clear()
        monkeypatch.setattr("orchestrator.gateway.app.ROUTES_S", 0.05)
        late = await gate.post("echo", b"1")
        assert (late.status_code, late.headers["retry-after"], late.json()["title"]) == (503, "1", "not ready")


@in_loop
async def test_what_never_reached_a_handler_is_recorded_as_refused(tmp_path: Path) -> None:
    """A run that could not begin has called nothing; learned like the others, overload would unlearn every path."""
    async with running_node(tmp_path, memory_mb=150) as rig, running_gateway(rig, max_waiting=0) as gate:
        gate.serve(spec("one"), spec("two"), spec("slow", timeout_s=0.02))
        rig.driver.init_error = InitFailed({"type": "ImportError", "message": "no numpy"})
        assert (await gate.post("one")).status_code == 502
        rig.driver.init_error = None
        rig.driver.init_turn.close()
        assert (await gate.post("slow")).status_code == 504
        rig.driver.init_turn.open()
        await rig.quiet()
        rig.driver.handler = silent
        running = asyncio.ensure_future(gate.post("one"))
        await until(lambda: rig.driver.instances and rig.driver.instances[-1].invocations())
        assert (await gate.post("two")).status_code == 429
        rig.driver.instances[-1].say(FromGuest.ERROR, 1, {"type": "E"})
        assert (await running).status_code == 502
        found = [(record.function, record.status, record.error_type) for record in records(gate)]
        assert found == [
            ("acme/one", "refused", "ImportError"),
            ("acme/slow", "refused", "Timeout"),
            ("acme/two", "refused", "Overload"),
            ("acme/one", "error", "E"),
        ]
