"""OTLP bodies of any kind: spans, or a refusal that says why; never more memory than the receiver's limits, never a 5xx."""

import asyncio
import gzip
import json
import zlib
from typing import Any

import httpx
import pytest
from doubles.profiles import examples
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import DecodeError
from google.rpc.status_pb2 import Status
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

from graph.ids import TenantId
from tracing.assembly import Assembler
from tracing.receiver import MAX_BODY, receiver_app
from tracing.spans import Span

ALLOWED = {200, 400, 401, 413, 415}


def post(body: bytes, accept: Any = lambda tenant, spans: len(spans), **headers: str) -> httpx.Response:
    sent = {"authorization": "Bearer k", "content-type": "application/x-protobuf"}
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}

    async def exchange() -> httpx.Response:
        transport = httpx.ASGITransport(receiver_app({"k": TenantId("t")}.get, accept))  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://otlp") as client:
            return await client.post("/v1/traces", content=body, headers=sent)

    return asyncio.run(exchange())


texts = st.sampled_from(
    ["", "service.name", "faas.name", "faas.invoked_name", "foreglow.wait_ms", "\0", "x" * 5000, "a/b", "\u202e"]
)
counts = st.sampled_from([0, 1, 2**63, 2**64 - 1, 1_700_000_000_000_000_000])


@st.composite
def any_values(draw: st.DrawFn) -> AnyValue:
    value = AnyValue()
    way = draw(st.sampled_from(["text", "bool", "int", "double", "bytes", "list", "none"]))
    if way == "text":
        value.string_value = draw(texts)
    elif way == "bool":
        value.bool_value = draw(st.booleans())
    elif way == "int":
        value.int_value = draw(st.sampled_from([0, -1, 2**63 - 1, -(2**63)]))
    elif way == "double":
        value.double_value = draw(st.sampled_from([0.0, -1.0, float("nan"), float("inf"), 1e308]))
    elif way == "bytes":
        value.bytes_value = draw(st.binary(max_size=5))
    elif way == "list":
        value.array_value.values.add().string_value = "x"
    return value


@st.composite
def exports(draw: st.DrawFn) -> bytes:
    request = ExportTraceServiceRequest()
    for _ in range(draw(st.integers(0, 2))):
        resource = request.resource_spans.add()
        resource.resource.attributes.append(KeyValue(key=draw(texts), value=draw(any_values())))
        scope = resource.scope_spans.add()
        for _ in range(draw(st.integers(0, 4))):
            span = scope.spans.add()
            span.trace_id = draw(st.sampled_from([b"", b"\1" * 16, b"\2" * 16, b"\0" * 16, b"\1" * 17]))
            span.span_id = draw(st.sampled_from([b"\1" * 8, b"\2" * 8, b"\3" * 8, b"\0" * 8, b""]))
            span.parent_span_id = draw(st.sampled_from([b"", b"\1" * 8, b"\2" * 8, b"\3" * 8, b"x" * 9]))
            span.name = draw(texts)
            span.kind = draw(st.integers(-1, 7))  # type: ignore[assignment]
            span.start_time_unix_nano, span.end_time_unix_nano = draw(counts), draw(counts)
            span.attributes.append(KeyValue(key=draw(texts), value=draw(any_values())))
    return request.SerializeToString()


bodies = exports() | st.binary(max_size=60)


@examples(150)
@given(body=bodies, zipped=st.booleans(), damage=st.binary(max_size=3), at=st.integers(0, 10_000))
def test_any_body_is_taken_or_refused(body: bytes, zipped: bool, damage: bytes, at: int) -> None:
    sent = gzip.compress(body) if zipped else body
    at %= len(sent) + 1
    sent = sent[:at] + damage + sent[at + len(damage) :]
    taken: list[Span] = []
    assembler = Assembler()

    def accept(tenant: TenantId, spans: list[Span]) -> int:
        taken.extend(spans)
        return assembler.add(tenant, spans, 1000.0)

    answer = post(sent, accept, content_encoding="gzip" if zipped else "identity")
    assert answer.status_code in ALLOWED
    if answer.status_code != 200:
        assert Status.FromString(answer.content).message
        assert not taken
    for trace in assembler.settled(1e9):
        assert trace.duration_s >= 0
        assert all(-1 <= call.caller_index < index for index, call in enumerate(trace.calls))


@examples(150)
@given(body=bodies, damage=st.binary(max_size=3), at=st.integers(0, 10_000))
def test_any_json_body_is_taken_or_refused_in_json(body: bytes, damage: bytes, at: int) -> None:
    try:
        sent = json.dumps(MessageToDict(ExportTraceServiceRequest.FromString(body))).encode()
    except (DecodeError, UnicodeDecodeError):
        sent = body
    at %= len(sent) + 1
    sent = sent[:at] + damage + sent[at + len(damage) :]
    taken: list[Span] = []
    answer = post(sent, lambda tenant, spans: len(taken.extend(spans) or spans), content_type="application/json")  # type: ignore[func-returns-value]
    assert answer.status_code in ALLOWED
    assert answer.headers["content-type"] == "application/json"
    assert isinstance(answer.json(), dict)
    if answer.status_code != 200:
        assert answer.json()["message"]
        assert not taken


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_a_gzip_bomb_is_refused_before_it_is_unpacked(layers: int) -> None:
    bomb = zlib.compress(b"\0" * (64 << 20), 9, wbits=31) if layers == 1 else gzip.compress(b"\0" * (64 << 20)) * layers
    assert len(bomb) < MAX_BODY
    answer = post(bomb, content_encoding="gzip")
    assert (answer.status_code, b"16777216" in answer.content) == (413, True)


@pytest.mark.parametrize("depth", [50, 99, 5_000, 200_000])
def test_attributes_nested_without_end_are_refused_or_not_looked_at(depth: int) -> None:
    inner = b""
    for _ in range(min(depth, 400)):  # ArrayValue in AnyValue in ArrayValue ...; deeper than any reader goes
        inner = _field(5, _field(1, inner))
    if depth > 400:
        inner = _field(5, b"\x0a" * depth)
    attribute = _field(1, b"k") + _field(2, inner)
    span = _field(1, b"\1" * 16) + _field(2, b"\1" * 8) + _field(9, attribute)
    answer = post(_field(1, _field(2, _field(2, span))))
    assert answer.status_code in (200, 400)


def _field(number: int, content: bytes) -> bytes:
    length, size = b"", len(content)
    while size > 0x7F:
        length, size = length + bytes([size & 0x7F | 0x80]), size >> 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + content
