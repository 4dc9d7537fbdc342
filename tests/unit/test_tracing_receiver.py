"""POST /v1/traces: keys, limits, types, partial success."""

import asyncio
import base64
import gzip
import json

import httpx
import pytest
from google.protobuf.json_format import MessageToDict
from google.rpc.status_pb2 import Status
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse

from graph.calls import StartKind
from tracing import receiver
from tracing.export import spans_of
from tracing.receiver import receiver_app
from tracing.records import InvocationRecord, Timings

KEYS = {"key-of-t": "t", "key-of-u": "u"}


def body(count=2):
    records = [
        InvocationRecord("t", "a" * 32, f"{n + 1:016x}", "", "t/f", 1, 1.0, 2.0, StartKind.WARM, "ok", Timings())
        for n in range(count)
    ]
    return encode_spans(spans_of(records)).SerializeToString()


class Inbox:
    def __init__(self, room=10**9):
        self.taken, self.room = [], room

    def accept(self, tenant, spans):
        self.taken.append((tenant, spans))
        return min(len(spans), self.room)


def post(inbox, content, key="key-of-t", method="POST", path="/v1/traces", refused=None, **headers):
    sent = {"content-type": "application/x-protobuf"} | {name.replace("_", "-"): value for name, value in headers.items()}
    if key:
        sent["authorization"] = f"Bearer {key}"

    async def exchange():
        transport = httpx.ASGITransport(receiver_app(KEYS.get, inbox.accept, refused))
        async with httpx.AsyncClient(transport=transport, base_url="http://otlp") as client:
            return await client.request(method, path, content=content, headers=sent)

    return asyncio.run(exchange())


def test_spans_reach_the_tenant_of_the_key():
    inbox = Inbox()
    answer = post(inbox, body(3), key="key-of-u")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/x-protobuf")
    assert ExportTraceServiceResponse.FromString(answer.content) == ExportTraceServiceResponse()
    ((tenant, spans),) = inbox.taken
    assert (tenant, len(spans), spans[0].function) == ("u", 3, "f")


def test_gzip_in_one_or_more_members():
    inbox = Inbox()
    whole = body(700)
    assert post(inbox, gzip.compress(whole), content_encoding="gzip").status_code == 200
    members = gzip.compress(whole[:100]) + gzip.compress(whole[100:])
    assert post(inbox, members, content_encoding="GZIP").status_code == 200
    assert [len(spans) for _, spans in inbox.taken] == [700, 700]


def test_large_bodies_are_read_too():
    inbox = Inbox()
    large = body(3000)
    assert len(large) > receiver.ON_THE_LOOP
    assert post(inbox, large).status_code == 200
    assert len(inbox.taken[0][1]) == 3000


def test_what_was_left_out_is_a_partial_success():
    request = ExportTraceServiceRequest.FromString(body(5))
    request.resource_spans[0].scope_spans[0].spans[0].trace_id = b""
    answer = post(Inbox(room=3), request.SerializeToString())
    assert answer.status_code == 200
    partial = ExportTraceServiceResponse.FromString(answer.content).partial_success
    assert partial.rejected_spans == 2
    assert partial.error_message == (
        "left out: 1 without a valid trace or span id, 1 too late or over the limits of what may wait"
    )


@pytest.mark.parametrize("key", ["", "wrong", " "])
def test_without_a_valid_key_nothing_is_read(key):
    inbox = Inbox()
    answer = post(inbox, body(), key=key)
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert "Authorization: Bearer" in Status.FromString(answer.content).message
    basic = post(inbox, body(), key="", authorization="Basic key-of-t")
    assert basic.status_code == 401
    assert inbox.taken == []


@pytest.mark.parametrize(
    ("content", "headers", "status", "says"),
    [
        (b"not protobuf", {}, 400, "ExportTraceServiceRequest"),
        (b"{}", {"content_type": "text/plain"}, 415, "http/protobuf"),
        (body(), {"content_encoding": "br"}, 415, "'br' is neither gzip nor identity"),
        (body(), {"content_encoding": "gzip"}, 400, "not gzip"),
        (gzip.compress(body())[:-9], {"content_encoding": "gzip"}, 400, "ends too early"),
        (gzip.compress(b"") * 40, {"content_encoding": "gzip"}, 400, "members"),
        (b"\0" * (receiver.MAX_BODY + 1), {}, 413, "smaller batches"),
        (gzip.compress(b"\0" * (receiver.MAX_UNPACKED + 1)), {"content_encoding": "gzip"}, 413, "unpacked"),
    ],
)
def test_refusals_are_statuses_with_the_way_out(content, headers, status, says):
    inbox = Inbox()
    answer = post(inbox, content, **headers)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/x-protobuf"
    assert says in Status.FromString(answer.content).message
    assert inbox.taken == []


def test_a_body_without_a_stated_length_is_bounded_as_well():
    async def endless():
        for _ in range(100):
            yield b"\0" * (1 << 20)

    assert post(Inbox(), endless()).status_code == 413


def test_more_spans_than_a_request_may_hold_are_refused():
    request = ExportTraceServiceRequest()
    scope = request.resource_spans.add().scope_spans.add()
    for _ in range(50_001):
        scope.spans.add()
    assert post(Inbox(), request.SerializeToString()).status_code == 400


def test_a_body_that_does_not_come_is_given_up(monkeypatch):
    monkeypatch.setattr(receiver, "BODY_TIMEOUT_S", 0.05)

    async def exchange():
        sent = []

        async def receive():
            await asyncio.sleep(30)

        async def send(message):
            sent.append(message)

        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "method": "POST",
            "path": "/v1/traces",
            "raw_path": b"/v1/traces",
            "query_string": b"",
            "headers": [(b"authorization", b"Bearer key-of-t"), (b"content-type", b"application/x-protobuf")],
        }
        await receiver_app(KEYS.get, Inbox().accept)(scope, receive, send)
        return sent[0]["status"]

    assert asyncio.run(exchange()) == 408


def as_json(content):
    """The same request in OTLP's JSON mapping, made from protobuf's own: that one has base64 where OTLP has hex."""
    document = MessageToDict(ExportTraceServiceRequest.FromString(content))
    for scope in (scope for each in document["resourceSpans"] for scope in each["scopeSpans"]):
        for span in scope["spans"]:
            for field in ("traceId", "spanId", "parentSpanId"):
                if field in span:
                    span[field] = base64.b64decode(span[field]).hex()
    return json.dumps(document).encode()


@pytest.mark.parametrize("packed", [False, True])
def test_json_is_the_same_spans_and_is_answered_in_json(packed):
    inbox = Inbox()
    whole = body(700)
    assert post(inbox, whole).status_code == 200
    sent = gzip.compress(as_json(whole)) if packed else as_json(whole)
    encoding = {"content_encoding": "gzip"} if packed else {}
    answer = post(inbox, sent, content_type="application/json; charset=utf-8", **encoding)
    assert (answer.status_code, answer.headers["content-type"], answer.json()) == (200, "application/json", {})
    (_, ours), (_, theirs) = inbox.taken
    assert ours == theirs


def test_json_requests_are_refused_in_json_and_partly_taken_in_json():
    inbox, counted = Inbox(room=1), []
    document = json.loads(as_json(body(3)))
    document["resourceSpans"][0]["scopeSpans"][0]["spans"][0]["spanId"] = "AAAAAAAAAAE="
    headers = {"content_type": "application/json"}
    answer = post(inbox, json.dumps(document).encode(), refused=lambda *told: counted.append(told), **headers)
    assert answer.json() == {
        "partialSuccess": {
            "rejectedSpans": "2",
            "errorMessage": "left out: 1 without a valid trace or span id, 1 too late or over the limits of what may wait",
        }
    }
    assert counted == [("t", 1)]
    refused = post(inbox, b'{"resourceSpans": 1}', **headers)
    assert (refused.status_code, refused.headers["content-type"], refused.json()["code"]) == (400, "application/json", 3)
    assert "$.resourceSpans" in refused.json()["message"]
    assert post(inbox, b"{}", key="", **headers).json()["code"] == 16
    assert post(inbox, b"[" * 100_000, **headers).status_code == 400


def test_other_paths_and_methods_are_unknown():
    assert post(Inbox(), b"", path="/v1/metrics").status_code == 404
    assert post(Inbox(), b"", method="GET").status_code == 405


def test_a_tenant_has_so_many_requests_under_way_and_keeps_no_other_from_sending(monkeypatch):
    monkeypatch.setattr(receiver, "AT_ONCE", 3)
    inbox, go = Inbox(), asyncio.Event()

    async def slowly():
        await go.wait()
        yield body()

    async def exchange():
        transport = httpx.ASGITransport(receiver_app(KEYS.get, inbox.accept))
        async with httpx.AsyncClient(transport=transport, base_url="http://otlp") as client:

            def send(key, content):
                headers = {"content-type": "application/x-protobuf", "authorization": f"Bearer {key}"}
                return client.post("/v1/traces", content=content, headers=headers)

            slow = [asyncio.create_task(send("key-of-t", slowly())) for _ in range(3)]
            await asyncio.sleep(0.05)
            async with asyncio.timeout(5):
                refused, other = await send("key-of-t", body()), await send("key-of-u", body())
            go.set()
            return refused, [other, *await asyncio.gather(*slow), await send("key-of-t", body())]

    refused, taken = asyncio.run(exchange())
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    assert "fewer at once" in Status.FromString(refused.content).message
    assert [one.status_code for one in taken] == [200] * 5
