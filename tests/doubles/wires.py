"""Requests as schemathesis makes them, sent over one kept-alive connection, and the same ones bent on the wire."""

from collections.abc import Callable
from random import Random
from typing import Any

import requests

STREAM = "text/event-stream"
FIRST_BYTES = 4096


class Keeping(requests.Session):
    """One connection for all; of a stream without end only what comes first is read."""

    def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:
        options["stream"] = True
        answer = super().send(request, **options)
        if answer.headers.get("content-type", "").startswith(STREAM):
            answer._content = next(answer.iter_content(FIRST_BYTES), b"")
            answer._content_consumed = True  # type: ignore[attr-defined]
            answer.close()
        else:
            assert answer.content is not None  # read, so that the connection is free again
        return answer


Bend = Callable[[requests.PreparedRequest, Random], None]

DEEP = b"[" * 20_000
BODIES = (
    b"",
    b"\0",
    b"null",
    b"{",
    b"\xff\xfe{}",
    b'{"a": NaN}',
    b'{"a": 1e999}',
    b'{"a": -0}',
    b"9" * 5000,
    b'{"a": %s}' % (b"9" * 5000),
    b'{"package": "\\ud800"}',
    DEEP,
    b'{"a":' * 20_000,
    DEEP + b"]" * 20_000,
    b'{"a": 1, "a": 2}',
    b'"' + b"\\u0000" * 50 + b'"',
)
TYPES = ("", "application/json; charset=utf-16", "text/plain", "multipart/form-data", "application/zip", "a" * 300, "\x80/\xff")
TAILS = ("%00", "%ff", "%2e%2e/", "/", "//", "/..", ";a=b", "%", "%zz", "%F0%9F%98%80", "%ed%a0%80", "a" * 3000)
QUERIES = (
    "limit=1&limit=2",
    "&&=&",
    "%",
    "limit=%ff",
    "limit=" + "9" * 400,
    "limit=1e3",
    "after=%00",
    "q=" + "a" * 8000,
    "limit=\u0661",
)
HEADERS: tuple[tuple[str, Any], ...] = (
    ("Host", "evil.example"),
    ("Host", "127.0.0.1:0:0"),
    ("Host", "[::1"),
    ("Host", ""),
    ("Authorization", "Bearer"),
    ("Authorization", "Basic Og=="),
    ("Authorization", b"Bearer \xff\xb2"),
    ("Authorization", "Bearer " + "a" * 9000),
    ("Content-Encoding", "gzip"),
    ("Content-Length", "\u00b2".encode("latin-1")),
    ("Content-Length", "1" * 30),
    ("Transfer-Encoding", "identity"),
    ("Last-Event-ID", "9" * 400),
    ("Last-Event-ID", "9" * 30),
    ("Accept", "\x80;q=9"),
    ("Range", "bytes=0-"),
    ("Origin", "null"),
    ("Cookie", "=;=;;" * 100),
    ("X-HTTP-Method-Override", "DELETE"),
    ("traceparent", "00-" + "0" * 32 + "-" + "0" * 16 + "-00"),
)


def _body(request: requests.PreparedRequest, random: Random) -> None:
    body = request.body if isinstance(request.body, bytes) else (request.body or "").encode()
    way = random.randrange(4)
    if way == 0 or not body:
        body = random.choice(BODIES)
    elif way == 1:
        body = body[: random.randrange(len(body))]
    elif way == 2:
        body += random.choice(BODIES)
    else:
        at = random.randrange(len(body))
        body = body[:at] + random.randbytes(random.randrange(1, 4)) + body[at + 1 :]
    request.body = body
    request.headers["Content-Length"] = str(len(body))


def _type(request: requests.PreparedRequest, random: Random) -> None:
    request.headers["Content-Type"] = random.choice(TYPES).encode("latin-1")  # type: ignore[assignment]


def _path(request: requests.PreparedRequest, random: Random) -> None:
    path, mark, query = str(request.url).partition("?")
    request.url = path + random.choice(TAILS) + mark + query


def _query(request: requests.PreparedRequest, random: Random) -> None:
    path, _, query = str(request.url).partition("?")
    request.url = f"{path}?{query}&{random.choice(QUERIES)}"


def _header(request: requests.PreparedRequest, random: Random) -> None:
    name, value = random.choice(HEADERS)
    request.headers[name] = value


def _method(request: requests.PreparedRequest, random: Random) -> None:
    request.method = random.choice(("HEAD", "OPTIONS", "TRACE", "PATCH", "GET", "PUT", "POST", "BREW", "get", "A" * 300))


BENDS: tuple[Bend, ...] = (_body, _body, _type, _path, _query, _header, _header, _method)


def bent(request: requests.PreparedRequest, random: Random) -> requests.PreparedRequest:
    """A copy with one or two things wrong."""
    copy = request.copy()
    for bend in random.sample(BENDS, random.randrange(1, 3)):
        bend(copy, random)
    return copy
