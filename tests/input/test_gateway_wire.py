"""Bytes at the functions listener that are no HTTP, nearly HTTP, or HTTP meant to be read twice; headers and payloads at odds."""

import contextlib
import json
import socket
from urllib.parse import urlsplit

import pytest
import requests
from doubles.platforms import Platform
from doubles.profiles import dear
from hypothesis import given
from hypothesis import strategies as st

pytestmark = [pytest.mark.system, pytest.mark.needs_root]

ANSWER_S = 5.0
SILENCE_S = 0.25
ALLOWED = {200, 400, 401, 404, 405, 408, 413, 431, 501, 505}
LAST = b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
"""What may be said of any bytes: never 5xx of ours, but for methods and versions nobody knows."""


def send(platform: Platform, data: bytes, silence_s: float = SILENCE_S) -> bytes:
    """What the gateway says until it closes, or is silent because it waits for more. Ends `data` with LAST, it closes soon."""
    address = urlsplit(platform.functions)
    heard = b""
    with socket.create_connection((address.hostname, address.port), timeout=ANSWER_S) as sock, contextlib.suppress(OSError):
        sock.sendall(data)
        sock.settimeout(silence_s)
        while chunk := sock.recv(65536):
            heard += chunk
    return heard


def statuses(heard: bytes) -> list[int]:
    """Of each answer in what was heard. Raises ValueError when it is not a row of whole answers."""
    found = []
    while heard:
        head, mark, rest = heard.partition(b"\r\n\r\n")
        if not mark or not head.startswith(b"HTTP/1.1 "):
            raise ValueError(f"no answer: {heard[:200]!r}")
        status = int(head[9:12])
        length, chunked = 0, b"transfer-encoding: chunked" in head.lower()
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        found.append(status)
        without = rest.startswith(b"HTTP/1.1 ")  # the answer to a HEAD says how long its body would be
        heard = b"" if chunked else rest if without else rest[length:]
        if status == 100:
            found.pop()
    return found


def head(platform: Platform, *more: bytes, line: bytes = b"POST /function/echo HTTP/1.1") -> bytes:
    key = b"authorization: Bearer " + platform.key.encode()
    return b"\r\n".join([line, b"host: x", key, *more]) + b"\r\n\r\n"


def works(platform: Platform) -> None:
    key = {"Authorization": f"Bearer {platform.key}"}
    answer = requests.post(f"{platform.functions}/function/echo", json={"still": 1}, headers=key, timeout=30)
    assert (answer.status_code, answer.json()) == (200, {"still": 1})


request_lines = st.sampled_from(
    [
        b"POST /function/echo HTTP/1.1",
        b"POST /function/echo HTTP/1.0",
        b"POST /function/echo HTTP/9.9",
        b"POST /function/echo",
        b"GET /function/echo HTTP/1.1",
        b"HEAD /function/web HTTP/1.1",
        b"BREW /function/web/a/b?c HTTP/1.1",
        b"A" * 2000 + b" / HTTP/1.1",
        b"POST /function/%00 HTTP/1.1",
        b"POST /function/%ff%fe HTTP/1.1",
        b"POST /function/\xff\xfe HTTP/1.1",
        b"POST /function/web/%ed%a0%80?%ff=%zz HTTP/1.1",
        b"POST /function/../healthz HTTP/1.1",
        b"POST //function//echo HTTP/1.1",
        b"POST /function/" + b"e" * 70_000 + b" HTTP/1.1",
        b"POST http://evil/function/echo HTTP/1.1",
        b"CONNECT evil:443 HTTP/1.1",
        b"OPTIONS * HTTP/1.1",
        b"PRI * HTTP/2.0",
        b"\x16\x03\x01\x02\x00\x01\x00\x01",
    ]
)
header_lines = st.sampled_from(
    [
        b"content-length: 5",
        b"content-length: 0",
        b"content-length: +5",
        b"content-length: 5, 5",
        b"content-length: -1",
        b"content-length: 99999999999999999999",
        b"content-length: \xb2",
        b"content-length : 5",
        b" content-length: 5",
        b"transfer-encoding: chunked",
        b"transfer-encoding: chunked, identity",
        b"transfer-encoding: xchunked",
        b"transfer-encoding:\x0bchunked",
        b"Transfer-Encoding: identity",
        b"connection: close",
        b"connection: keep-alive, upgrade",
        b"upgrade: h2c",
        b"expect: 100-continue",
        b"expect: 200-maybe",
        b"content-type: application/json",
        b"content-type: \xff",
        b"content-type: " + b"x" * 300,
        b"authorization: Bearer nobody",
        b"authorization: \xff\x00",
        b"x-long: " + b"y" * 60_000,
        b": nameless",
        b"no colon",
        b"x: a\x00b",
        b"x: a\rb",
        b"x: a\n y: folded",
        b"traceparent: 00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01",
        b"traceparent: " + b"f" * 9000,
        b"traceparent: \xff",
        b"tracestate: " + b"a=b," * 2000,
        b"baggage: " + b"k=%ff;p=\xff," * 900,
        b"x-foreglow-start: warm",
    ]
)
bodies = st.sampled_from(
    [
        b"",
        b"hello",
        b"12345",
        b'{"a":1}',
        b"5\r\nhello\r\n0\r\n\r\n",
        b"5;x=y\r\nhello\r\n0\r\nt: v\r\n\r\n",
        b"ffffffffffffffff\r\nx",
        b"-1\r\nx",
        b"5\nhello\n0\n\n",
        b"0x5\r\nhello\r\n0\r\n\r\n",
        b"5\r\nhelloXX0\r\n\r\n",
        b"0\r\n\r\nPOST /function/echo HTTP/1.1\r\nhost: y\r\ncontent-length: 0\r\n\r\n",
        b"\0" * 500,
    ]
)


@st.composite
def nearly(draw: st.DrawFn) -> bytes:
    """A request with one or two things odd, or none: with more the parser has an easy life. KEY stands for the key."""
    odd = draw(st.lists(st.sampled_from(["line", "headers", "body", "key"]), max_size=2))
    line = draw(request_lines) if "line" in odd else b"POST /function/echo HTTP/1.1"
    headers = draw(st.lists(header_lines, min_size=1, max_size=2)) if "headers" in odd else []
    key = [] if "key" in odd else [b"authorization: Bearer KEY"]
    body = draw(bodies)
    framing = b"transfer-encoding: chunked" if "body" in odd else b"content-length: %d" % len(body)
    kind = draw(st.sampled_from([b"text/plain", b"application/json"]))
    return b"\r\n".join([line, b"host: x", *key, b"content-type: " + kind, framing, *headers]) + b"\r\n\r\n" + body


@dear(150)
@given(sent=st.lists(nearly(), min_size=1, max_size=3).map(b"".join))
def test_any_bytes_get_allowed_answers_and_an_end(platform: Platform, sent: bytes) -> None:
    found = statuses(send(platform, sent.replace(b"KEY", platform.key.encode()) + LAST))
    assert set(found) <= ALLOWED


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ([b"content-length: 6", b"transfer-encoding: chunked"], b"0\r\n\r\nG"),
        ([b"transfer-encoding: chunked", b"content-length: 6"], b"0\r\n\r\nG"),
        ([b"content-length: 5", b"content-length: 6"], b"hello!"),
        ([b"content-length: 5, 6"], b"hello!"),
        ([b"content-length: +5"], b"hello"),
        ([b"content-length: 0x5"], b"hello"),
        ([b"content-length : 5"], b"hello"),
        ([b"transfer-encoding: chunked, identity"], b"5\r\nhello\r\n0\r\n\r\n"),
        ([b"transfer-encoding: \x0bchunked"], b"5\r\nhello\r\n0\r\n\r\n"),
        ([b"transfer-encoding: chunked"], b"5\nhello\n0\n\n"),
        ([b"transfer-encoding: chunked"], b"ffffffffffffffffff\r\nhello"),
        ([b"x: 1", b" content-length: 5"], b"hello"),
        ([b"x: a\rtransfer-encoding: chunked"], b"0\r\n\r\n"),
    ],
)
def test_a_request_that_two_readers_would_cut_differently_is_refused(
    platform: Platform, headers: list[bytes], body: bytes
) -> None:
    """And nothing behind it on the connection is taken for a request."""
    behind = head(platform, b"content-length: 2") + b"42"
    assert statuses(send(platform, head(platform, b"content-type: text/plain", *headers) + body + behind)) in ([400], [])
    works(platform)


def test_pipelined_requests_are_answered_in_their_order(platform: Platform) -> None:
    sent = b"".join(head(platform, b"content-type: application/json", b"content-length: 1") + b"%d" % n for n in range(9))
    heard = send(platform, sent + LAST, 30.0)  # which closes it
    assert statuses(heard) == [200] * 10
    assert [part.partition(b"HTTP/1.1")[0] for part in heard.split(b"\r\n\r\n")[1:-1]] == [b"%d" % n for n in range(9)]


@pytest.mark.parametrize(
    "payload",
    [
        b"{",
        b"NaN",
        b"[NaN]",
        b'{"a": Infinity}',
        b"-Infinity",
        b"\xff\xff",
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b"nul",
        b'"\x00"',
        b"1 2",
        b"9" * 5000,
    ],
)
def test_a_payload_that_is_no_json_is_the_callers_fault(platform: Platform, payload: bytes) -> None:
    key = {"Authorization": f"Bearer {platform.key}", "Content-Type": "application/json"}
    answer = requests.post(f"{platform.functions}/function/echo", payload, headers=key, timeout=30)
    assert answer.status_code == 400, answer.text[:300]
    assert answer.json()["type"] == "foreglow:bad-payload"
    works(platform)


@pytest.mark.parametrize(
    "payload",
    [b"1e999", b"1e-999", b'"\\ud800"', b"9" * 4000, b"[" * 900 + b"]" * 900, b'{"a":1,"a":2}', b'"' + b"x" * 3_000_000 + b'"'],
)
def test_odd_json_comes_back_or_fails_in_the_function_alone(platform: Platform, payload: bytes) -> None:
    key = {"Authorization": f"Bearer {platform.key}", "Content-Type": "application/json"}
    answer = requests.post(f"{platform.functions}/function/echo", payload, headers=key, timeout=30)
    assert answer.status_code in (200, 400, 502), answer.text[:300]
    json.loads(answer.content)
    works(platform)


@pytest.mark.parametrize(
    "header", ["00-" + "a" * 32 + "-" + "b" * 16 + "-01", "nonsense", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "f" * 20_000]
)
def test_a_traceparent_from_outside_is_never_the_runs_own_trace(platform: Platform, header: str) -> None:
    headers = {
        "Authorization": f"Bearer {platform.key}",
        "traceparent": header,
        "tracestate": "a=" + "b" * 9000,
        "baggage": "k=v," * 2000,
    }
    answer = requests.post(f"{platform.functions}/function/echo", json=1, headers=headers, timeout=30)
    assert answer.status_code == 200
    assert answer.headers["x-foreglow-trace"] not in header


def test_many_heads_that_never_end_do_not_keep_others_out(platform: Platform) -> None:
    address = urlsplit(platform.functions)
    slow = [socket.create_connection((address.hostname, address.port), timeout=ANSWER_S) for _ in range(300)]
    try:
        for sock in slow:
            sock.sendall(b"POST /function/echo HTTP/1.1\r\nhost: x\r\nx-slow: ")
        works(platform)
    finally:
        for sock in slow:
            sock.close()
    works(platform)
