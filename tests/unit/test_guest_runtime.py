"""The guest runtime against a hand-made node: a plain interpreter at the other end of a socket pair, no sandbox."""

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from workers.drivers.frames import FromGuest, ToGuest
from workers.framing import MORE, Frame, FrameParser, encode
from workers.guest import runtime

START = """
import importlib.util, socket, sys
spec = importlib.util.spec_from_file_location("foreglow", sys.argv[1])
runtime = importlib.util.module_from_spec(spec)
sys.modules["foreglow"] = runtime
spec.loader.exec_module(runtime)
runtime.serve(socket.socket(fileno=int(sys.argv[2])), lambda meta, descriptors: None)
"""


class Guest:
    """A runtime in a process of its own. Everything it sends is read in order, with a limit on the wait."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        ours, theirs = socket.socketpair()
        self._sock = ours
        self._sock.settimeout(10)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", START, runtime.__file__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                cwd=folder,
            )
        self._parser = FrameParser()
        self._frames: list[Frame] = []

    def send(self, kind: int, ident: int, meta: dict[str, Any] | None = None, body: bytes = b"") -> None:
        self._sock.sendall(encode(kind, ident, json.dumps(meta).encode() if meta is not None else b"", body))

    def next(self) -> Frame:
        while not self._frames:
            chunk = self._sock.recv(65536)
            if not chunk:
                raise EOFError
            self._frames += self._parser.feed(chunk)
        return self._frames.pop(0)

    def become(self, source: str, **meta: Any) -> dict[str, Any]:
        """Specialises with `source`; the meta of READY. Logs before it are left out."""
        (self._folder / "handler.py").write_text(source)
        head = {"version": "acme/shop:12", "handler": "handler:handler", "memory_mb": 256, "paths": [str(self._folder)]}
        self.send(ToGuest.SPECIALISE, 0, {**head, "entropy": "ab" * 32, "environment": {}, **meta})
        frame = self.next()
        while frame.kind == FromGuest.LOG:
            frame = self.next()
        assert frame.kind == FromGuest.READY
        return json.loads(frame.meta)

    def invoke(self, ident: int, payload: Any = None, **meta: Any) -> None:
        head = {"invocation": f"inv-{ident}", "content_type": "application/json", "deadline_s": 5.0, "trace_id": "t"}
        body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        self.send(ToGuest.INVOKE, ident, {**head, **meta}, body)

    def value(self, payload: Any = None, ident: int = 1, **meta: Any) -> Any:
        self.invoke(ident, payload, **meta)
        frame = self.next()
        assert frame.kind == FromGuest.RESULT, frame
        return json.loads(frame.body)

    def error(self, payload: Any = None, ident: int = 1, **meta: Any) -> dict[str, str]:
        self.invoke(ident, payload, **meta)
        frame = self.next()
        assert frame.kind == FromGuest.ERROR, frame
        return json.loads(frame.meta)

    def close(self) -> None:
        self._sock.close()
        assert self.process.wait(10) is not None


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Guest]:
    one = Guest(tmp_path)
    yield one
    one.close()


def test_it_ends_when_the_node_hangs_up(guest: Guest) -> None:
    guest.become("def handler(event, context):\n    return event\n")
    guest.close()
    assert guest.process.returncode == 0


def test_json_in_json_out(guest: Guest) -> None:
    ready = guest.become("def handler(event, context):\n    return [event, type(event).__name__]\n")
    assert ready["init_ms"] > 0
    assert "error" not in ready
    assert guest.value({"a": "ü\ud83d\ude00"[:1]}) == [{"a": "ü"}, "dict"]
    assert guest.value(b"") == [None, "NoneType"]
    assert guest.value(b"[1]", content_type="application/json; charset=utf-8") == [[1], "list"]


def test_bytes_in_bytes_out(guest: Guest) -> None:
    guest.become("def handler(event, context):\n    return event[::-1]\n")
    guest.invoke(4, b"\x00\x01\xff", content_type="image/png")
    frame = guest.next()
    assert (frame.id, frame.body) == (4, b"\xff\x01\x00")
    assert json.loads(frame.meta) == {"content_type": "application/octet-stream"}


@pytest.mark.parametrize(
    ("returned", "type_", "words"),
    [
        ("object()", "TypeError", "Object of type object is not JSON serializable"),
        ("{1, 2}", "TypeError", "set"),
        ("float('nan')", "ValueError", "Out of range"),
        ("(x for x in ())", "TypeError", "generator"),
        ("bytes(17 << 20)", "ValueError", "the limit is 16777216"),
    ],
)
def test_results_that_cannot_travel_are_errors_naming_why(guest: Guest, returned: str, type_: str, words: str) -> None:
    guest.become(f"def handler(event, context):\n    return {returned}\n")
    error = guest.error()
    assert error["type"] == type_
    assert words in error["message"]


def test_a_payload_that_is_no_json_is_an_error_not_the_end(guest: Guest) -> None:
    guest.become("def handler(event, context):\n    return event\n")
    refused = guest.error(b"{", content_type="application/json")
    assert (refused["type"], refused["payload"]) == ("BadPayload", True)
    deep = guest.error(b"[" * 100_000, content_type="application/json")
    assert (deep["type"], deep["payload"]) == ("BadPayload", True)
    assert guest.value(3) == 3


@pytest.mark.parametrize(
    ("raised", "type_", "message"),
    [
        ("raise ValueError('no')", "ValueError", "no"),
        ("raise SystemExit(4)", "SystemExit", "exit(4)"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt", ""),
        ("raise type('Odd', (Exception,), {'__str__': lambda self: 1 / 0})()", "Odd", "cannot be described"),
        ("raise Exception('x' * 100_000)", "Exception", "xxx"),
        ("raise Exception(chr(0xD800))", "Exception", "?"),
        ("return 1 / 0", "ZeroDivisionError", "division by zero"),
        ("return handler(event, context)", "RecursionError", "recursion"),
    ],
)
def test_whatever_a_handler_raises_is_an_error_and_it_lives_on(guest: Guest, raised: str, type_: str, message: str) -> None:
    guest.become(f"def handler(event, context):\n    if event: return event\n    {raised}\n")
    error = guest.error()
    assert error["type"] == type_
    assert message in error["message"]
    assert len(error["message"]) <= 4096
    assert len(error["stack"]) <= 32768
    assert "runtime.py" not in error["stack"]
    assert guest.value(5) == 5


def test_stacks_keep_causes_and_lose_the_runtime(guest: Guest) -> None:
    guest.become("""
def parse(text):
    try:
        return int(text)
    except ValueError as error:
        raise RuntimeError("bad order") from error
def handler(event, context):
    return parse(context.invoke("price", event) if event else "x")
""")
    stack = guest.error()["stack"]
    assert "ValueError: invalid literal" in stack
    assert "direct cause" in stack
    assert "in parse" in stack
    assert stack.rstrip().endswith("RuntimeError: bad order")
    guest.invoke(2, "sku")
    call = guest.next()
    guest.send(ToGuest.CALL_RESULT, call.id, {"status": "error", "error": {"type": "KeyError", "message": "'sku'"}})
    error = json.loads(guest.next().meta)
    assert (error["type"], error["message"]) == ("InvokeError", "KeyError: 'sku'")
    assert "runtime.py" not in error["stack"]


def test_the_context_tells_who_and_how_long(guest: Guest) -> None:
    guest.become("""
import time
def handler(event, context):
    left = context.get_remaining_time_in_millis()
    return [context.function_name, context.function_version, context.invocation_id, context.trace_id, context.memory_limit_in_mb,
            0 < left <= 5000, abs(context.deadline - time.time() - left / 1000) < 1]
""")
    assert guest.value() == ["shop", "12", "inv-1", "t", 256, True, True]


def test_async_handlers_share_one_loop(guest: Guest) -> None:
    guest.become("""
import asyncio
loops = set()
async def handler(event, context):
    loops.add(id(asyncio.get_running_loop()))
    parts = await asyncio.gather(*(asyncio.to_thread(context.invoke, "part", n) for n in range(2)))
    print("parts", parts)
    return [parts, len(loops)]
""")
    for ident in (1, 2):
        guest.invoke(ident)
        for _ in range(2):
            call = guest.next()
            guest.send(ToGuest.CALL_RESULT, call.id, {"status": "ok", "content_type": "application/json"}, call.body)
        assert guest.next()[:3] == (FromGuest.LOG, 0, ident)
        assert json.loads(guest.next().body) == [[0, 1], 1]


def test_a_dotted_handler_and_an_instance(guest: Guest) -> None:
    source = "class App:\n    @staticmethod\n    def run(event, context):\n        return event\n"
    assert "error" not in guest.become(source, handler="handler:App.run")
    assert guest.value(9) == 9


def test_kind_web_is_refused_with_the_way_out(guest: Guest) -> None:
    error = guest.become("def handler(event, context): ...", kind="web")["error"]
    assert "web" in error["message"]
    assert "http" in error["message"]


def test_init_errors_say_type_message_and_the_users_lines(guest: Guest) -> None:
    ready = guest.become("import json\njson.loads('{')\n")
    assert ready["error"]["type"] == "JSONDecodeError"
    assert "handler.py" in ready["error"]["stack"]
    assert "importlib" not in ready["error"]["stack"]


# -- calls


CALLER = """
from foreglow import InvokeError
def handler(event, context):
    try:
        return {"answer": context.invoke("price", event, timeout=event.get("timeout"))}
    except InvokeError as error:
        return [error.type, error.message, error.status]
"""


def test_a_call_waits_for_its_answer_over_the_same_channel(guest: Guest) -> None:
    guest.become(CALLER)
    guest.invoke(7, {"sku": 1})
    call = guest.next()
    assert call.kind == FromGuest.CALL
    meta = json.loads(call.meta)
    assert meta == {"invocation": 7, "function": "price", "content_type": "application/json", "asynchronous": False}
    assert json.loads(call.body) == {"sku": 1}
    guest.send(ToGuest.CALL_RESULT, 0xFFFF, {"status": "ok"}, b"stray")
    guest.send(ToGuest.PING, 3)
    guest.send(ToGuest.CALL_RESULT, call.id, {"status": "ok", "content_type": "application/json"}, b"12.5")
    assert guest.next().kind == FromGuest.PONG
    assert json.loads(guest.next().body) == {"answer": 12.5}


@pytest.mark.parametrize(
    ("meta", "expected"),
    [
        ({"status": "not-found", "error": {"type": "NotFound", "message": "no price"}}, ["NotFound", "no price", "not-found"]),
        ({"status": "timeout", "error": None}, ["InvokeError", "timeout", "timeout"]),
        ({"status": "error", "error": {}}, ["InvokeError", "error", "error"]),
    ],
)
def test_failed_calls_raise_what_the_callee_said(guest: Guest, meta: dict[str, Any], expected: list[str]) -> None:
    guest.become(CALLER)
    guest.invoke(1, {})
    guest.send(ToGuest.CALL_RESULT, guest.next().id, meta)
    assert json.loads(guest.next().body) == expected


def test_a_call_that_takes_too_long_is_cancelled(guest: Guest) -> None:
    guest.become(CALLER)
    guest.invoke(1, {"timeout": 0.05})
    call = guest.next()
    cancel = guest.next()
    assert (cancel.kind, cancel.id) == (FromGuest.CANCEL_CALL, call.id)
    assert json.loads(guest.next().body)[2] == "timeout"
    guest.send(ToGuest.CALL_RESULT, call.id, {"status": "ok"}, b"1")  # too late, and for nobody
    guest.invoke(3, {"sku": 2})
    guest.send(ToGuest.CALL_RESULT, guest.next().id, {"status": "ok", "content_type": "application/json"}, b"2")
    assert json.loads(guest.next().body) == {"answer": 2}


def test_a_call_ends_with_the_invocations_own_deadline(guest: Guest) -> None:
    guest.become(CALLER)
    guest.invoke(1, {}, deadline_s=0.05)
    assert [guest.next().kind for _ in range(3)] == [FromGuest.CALL, FromGuest.CANCEL_CALL, FromGuest.RESULT]


def test_fan_out_sends_all_before_it_waits(guest: Guest) -> None:
    guest.become("""
def handler(event, context):
    return context.invoke_all([("f%d" % n, n + 1) for n in range(event)])
""")
    guest.invoke(1, 5)
    calls = [guest.next() for _ in range(5)]
    assert [json.loads(call.meta)["function"] for call in calls] == [f"f{n}" for n in range(5)]
    for call in reversed(calls):
        guest.send(ToGuest.CALL_RESULT, call.id, {"status": "ok", "content_type": "application/json"}, call.body + b"0")
    assert json.loads(guest.next().body) == [10, 20, 30, 40, 50]


def test_fan_out_raises_the_first_failure_after_all_have_ended(guest: Guest) -> None:
    guest.become("""
def handler(event, context):
    try:
        context.invoke_all([("a", 1), ("b", 2), ("c", 3)])
    except context.__class__.invoke.__globals__["InvokeError"] as error:
        return error.message
""")
    guest.invoke(1)
    first, second, third = (guest.next() for _ in range(3))
    guest.send(ToGuest.CALL_RESULT, second.id, {"status": "error", "error": {"type": "E", "message": "second"}})
    guest.send(ToGuest.CALL_RESULT, third.id, {"status": "error", "error": {"type": "E", "message": "third"}})
    guest.send(ToGuest.PING, 1)
    assert guest.next().kind == FromGuest.PONG
    guest.send(ToGuest.CALL_RESULT, first.id, {"status": "ok"}, b"")
    assert json.loads(guest.next().body) == "second"


def test_started_calls_are_awaited_in_any_order_and_twice(guest: Guest) -> None:
    guest.become("""
def handler(event, context):
    one, two = context.start("one"), context.start("two", b"raw")
    return [two.result(), one.result(), one.result()]
""")
    guest.invoke(1)
    one, two = guest.next(), guest.next()
    assert json.loads(two.meta)["content_type"] == "application/octet-stream"
    assert two.body == b"raw"
    guest.send(ToGuest.CALL_RESULT, one.id, {"status": "ok", "content_type": "application/json"}, b"1")
    guest.send(ToGuest.CALL_RESULT, two.id, {"status": "ok", "content_type": "application/json"}, b"2")
    assert json.loads(guest.next().body) == [2, 1, 1]


def test_calls_after_the_invocation_ended_are_refused_here(guest: Guest) -> None:
    guest.become("""
kept = []
def handler(event, context):
    if not kept:
        kept.extend([context, context.start("slow")])
        return "kept"
    said = []
    for attempt in (lambda: kept[0].invoke("late"), kept[1].result):
        try:
            attempt()
        except Exception as error:
            said.append(error.status)
    return said
""")
    guest.invoke(1)
    assert guest.next().kind == FromGuest.CALL
    assert json.loads(guest.next().body) == "kept"
    guest.invoke(2)
    kinds = [guest.next() for _ in range(2)]
    assert [frame.kind for frame in kinds] == [FromGuest.CANCEL_CALL, FromGuest.RESULT]
    assert json.loads(kinds[1].body) == ["refused", "cancelled"]


def test_a_cancelled_invocation_stops_waiting_for_its_calls(guest: Guest) -> None:
    guest.become(CALLER)
    guest.invoke(1, {})
    call = guest.next()
    guest.send(ToGuest.CANCEL, 1)
    assert guest.next()[:3] == (FromGuest.CANCEL_CALL, 0, call.id)
    assert json.loads(guest.next().body)[2] == "cancelled"
    guest.invoke(1, {})  # the id may come again
    guest.send(ToGuest.CALL_RESULT, guest.next().id, {"status": "ok", "content_type": "application/json"}, b"1")
    assert json.loads(guest.next().body) == {"answer": 1}


def test_a_call_with_what_json_cannot_hold_is_the_callers_error(guest: Guest) -> None:
    guest.become("def handler(event, context):\n    context.invoke('price', {1, 2})\n")
    assert guest.error()["type"] == "TypeError"


# -- concurrency


def test_invocations_run_side_by_side_up_to_the_concurrency(guest: Guest) -> None:
    guest.become("def handler(event, context):\n    return [event, context.invoke('gate', event)]\n", concurrency=3)
    for ident in (1, 2, 3):
        guest.invoke(ident, ident)
    calls = {json.loads(call.body): call for call in (guest.next() for _ in range(3))}
    guest.invoke(4, 4)  # waits inside until one of them is done
    for ident in (2, 3, 1):
        guest.send(ToGuest.CALL_RESULT, calls[ident].id, {"status": "ok", "content_type": "application/json"}, b'"go"')
    seen = [guest.next() for _ in range(4)]
    results = {frame.id: json.loads(frame.body) for frame in seen if frame.kind == FromGuest.RESULT}
    assert results == {1: [1, "go"], 2: [2, "go"], 3: [3, "go"]}
    last = next(frame for frame in seen if frame.kind == FromGuest.CALL)
    guest.send(ToGuest.CALL_RESULT, last.id, {"status": "ok", "content_type": "application/json"}, b'"go"')
    assert json.loads(guest.next().body) == [4, "go"]


def test_concurrency_one_has_one_thread(guest: Guest) -> None:
    guest.become("import threading\ndef handler(event, context):\n    return threading.active_count()\n")
    assert guest.value() == 1


def test_many_calls_from_many_threads_find_their_own_answers(guest: Guest) -> None:
    guest.become(
        """
from concurrent.futures import ThreadPoolExecutor
def handler(event, context):
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(lambda n: context.invoke("double", n), range(event)))
""",
        concurrency=2,
    )
    guest.invoke(1, 40)
    guest.invoke(2, 40)
    results = {}
    for _ in range(82):
        frame = guest.next()
        if frame.kind == FromGuest.CALL:
            doubled = json.dumps(json.loads(frame.body) * 2).encode()
            guest.send(ToGuest.CALL_RESULT, frame.id, {"status": "ok", "content_type": "application/json"}, doubled)
        else:
            results[frame.id] = json.loads(frame.body)
    assert results == {ident: [n * 2 for n in range(40)] for ident in (1, 2)}


# -- output


def logs_of(guest: Guest) -> tuple[list[tuple[int, str, bytes]], Frame]:
    logs = []
    while (frame := guest.next()).kind == FromGuest.LOG:
        logs.append((frame.id, json.loads(frame.meta)["stream"], frame.body))
    return logs, frame


def test_output_belongs_to_its_invocation_and_comes_before_its_result(guest: Guest) -> None:
    guest.become("""
import sys, threading
def handler(event, context):
    print("hello", event)
    sys.stderr.write("no newline")
    thread = threading.Thread(target=print, args=("from a thread",))
    thread.start(); thread.join()
    sys.stdout.buffer.write(b"bytes\\n")
    sys.stdout.flush()
""")
    for ident in (1, 2):
        guest.invoke(ident, ident)
        logs, frame = logs_of(guest)
        assert frame.kind == FromGuest.RESULT
        text = {stream: b"".join(part for _, one, part in logs if one == stream) for stream in ("out", "err")}
        assert {one for one, _, _ in logs} == {ident}
        assert text == {"out": f"hello {ident}\nfrom a thread\nbytes\n".encode(), "err": b"no newline"}


def test_output_is_capped_per_invocation(guest: Guest) -> None:
    guest.become("""
def handler(event, context):
    for number in range(event):
        print("x" * 99)
    print("y" * 500_000)
""")
    for ident, lines in ((1, 10), (2, 3000), (3, 10)):
        guest.invoke(ident, lines)
        logs, _ = logs_of(guest)
        text = b"".join(part for _, _, part in logs)
        assert len(text) <= runtime.MAX_LOG + 100
        assert text.count(b"is left out") == 1
        assert text.startswith(b"x" * 99 + b"\n")


def test_output_while_importing_belongs_to_nobody(guest: Guest) -> None:
    (guest._folder / "handler.py").write_text("print('loading')\ndef handler(event, context): ...\n")
    meta = {"version": "a/b:1", "handler": "handler:handler", "paths": [str(guest._folder)], "entropy": ""}
    guest.send(ToGuest.SPECIALISE, 0, meta)
    logs, frame = logs_of(guest)
    assert logs == [(0, "out", b"loading\n")]
    assert frame.kind == FromGuest.READY


def test_what_a_module_prints_before_it_fails_is_kept(guest: Guest) -> None:
    (guest._folder / "handler.py").write_text("print('reading config', end='')\nraise OSError('config')\n")
    guest.send(ToGuest.SPECIALISE, 0, {"handler": "handler:handler", "paths": [str(guest._folder)]})
    logs, frame = logs_of(guest)
    assert logs == [(0, "out", b"reading config")]
    assert json.loads(frame.meta)["error"]["type"] == "OSError"


def test_odd_text_is_written_anyway(guest: Guest) -> None:
    guest.become("def handler(event, context):\n    print(chr(0xD800) + chr(0x1F600))\n")
    guest.invoke(1)
    logs, _ = logs_of(guest)
    assert logs == [(1, "out", b"\\ud800\xf0\x9f\x98\x80\n")]


# -- http


HTTP = {
    "method": "PUT",
    "path": "/orders/7",
    "query": "a=1&b=%20",
    "headers": [["Content-Type", "application/json"], ["X-Id", "9"]],
}


def http(guest: Guest, returned: str, body: bytes = b'{"n": 1}') -> tuple[dict[str, Any], list[bytes]]:
    guest.become(f"def handler(request, context):\n    return {returned}\n", kind="http")
    guest.invoke(1, body, http=HTTP)
    head: dict[str, Any] = {}
    bodies = []
    while True:
        frame = guest.next()
        assert frame.kind == FromGuest.RESULT, frame
        head = head or json.loads(frame.meta)
        bodies.append(frame.body)
        if not frame.flags & MORE:
            return head, bodies


@pytest.mark.parametrize(
    ("returned", "status", "content_type", "body"),
    [
        ("'plain'", 200, "text/plain; charset=utf-8", b"plain"),
        ("b'raw'", 200, "application/octet-stream", b"raw"),
        ("{'total': 3}", 200, "application/json", b'{"total":3}'),
        ("None", 200, "application/json", b"null"),
        ("(404, 'gone')", 404, "text/plain; charset=utf-8", b"gone"),
        ("(201, {'id': 1})", 201, "application/json", b'{"id":1}'),
        ("{'status': 204}", 204, "application/octet-stream", b""),
        ("{'body': [1]}", 200, "application/json", b"[1]"),
        ("{'status': 200, 'headers': {'content-TYPE': 'text/html'}, 'body': '<p>'}", 200, "text/html", b"<p>"),
    ],
)
def test_http_answers_in_every_form(guest: Guest, returned: str, status: int, content_type: str, body: bytes) -> None:
    head, bodies = http(guest, returned)
    assert head["http"]["status"] == status
    assert head["content_type"] == content_type
    assert b"".join(bodies) == body


def test_http_headers_may_repeat(guest: Guest) -> None:
    head, _ = http(guest, "{'status': 302, 'headers': [('Set-Cookie', 'a'), ('Set-Cookie', 'b'), ('X-N', 1)]}")
    assert head["http"]["headers"] == [["Set-Cookie", "a"], ["Set-Cookie", "b"], ["X-N", "1"]]


def test_http_requests_carry_everything(guest: Guest) -> None:
    seen = (
        "[request.method, request.path, request.query, request.headers['x-id'], request.text, request.json(), len(request.body)]"
    )
    _, bodies = http(guest, seen)
    assert json.loads(bodies[0]) == ["PUT", "/orders/7", "a=1&b=%20", "9", '{"n": 1}', {"n": 1}, 8]


def test_http_generators_are_streamed(guest: Guest) -> None:
    head, bodies = http(guest, "(part for part in ('one', b'two', 'ü'))")
    assert head["http"]["status"] == 200
    assert bodies == [b"one", b"two", "ü".encode(), b""]


def test_http_generators_with_status_and_one_that_breaks(guest: Guest) -> None:
    guest.become(
        "def handler(request, context):\n    def parts():\n        yield 'a'\n        1 / 0\n    return 206, parts()\n",
        kind="http",
    )
    guest.invoke(1, b"", http=HTTP)
    first = guest.next()
    assert first.flags & MORE
    assert json.loads(first.meta)["http"]["status"] == 206
    assert guest.next().kind == FromGuest.ERROR


# -- reseeding


def test_reseeding_gives_other_numbers_even_from_the_same_entropy() -> None:
    import random
    import ssl
    import tempfile
    import uuid

    state = random.getstate()
    drawn = set()
    for _ in range(3):
        random.setstate(state)
        runtime.reseed(bytes(32))
        drawn.add((random.random(), ssl.RAND_bytes(8)))
        assert tempfile._name_sequence is None  # type: ignore[attr-defined]
        assert uuid._node is None  # type: ignore[attr-defined]
    assert len({number for number, _ in drawn}) == 3


def test_reseeding_reaches_numpy_when_it_is_loaded() -> None:
    numpy = pytest.importorskip("numpy")
    numpy.random.seed(1)
    expected = numpy.random.rand()
    numpy.random.seed(1)
    runtime.reseed(bytes(32))
    assert numpy.random.rand() != expected
