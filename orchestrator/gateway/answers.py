"""From a result to an HTTP answer: status, headers, body. Pure."""

import re

import msgspec

from tracing.records import STEPS, Timings
from workers.rpc.messages import ErrorDetail, InvokeResult

STATUS = {
    "error": (502, "the function raised an exception"),
    "bad-answer": (502, "the function's answer is not HTTP"),
    "bad-payload": (400, "the payload is not what its content type says"),
    "init-failed": (502, "the function's module could not be imported"),
    "code-unavailable": (503, "the function's code could not be fetched"),
    "network-unavailable": (503, "the function's private network cannot be reached from the node"),
    "killed": (502, "the instance was killed"),
    "timeout": (504, "the function took too long"),
    "full": (429, "no capacity"),
    "draining": (503, "the version is being drained"),
    "cancelled": (499, "the invocation was cancelled"),
    "unknown-version": (503, "the node does not know this version"),
    "not-found": (404, "no such function"),
    "too-large": (413, "the payload is too large"),
    "too-deep": (508, "the call path is too deep"),
    "refused": (403, "the call was refused"),
}
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,200}")
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]{0,8192}")
_FORBIDDEN = {"connection", "transfer-encoding", "content-length", "server-timing", "keep-alive", "upgrade", "trailer", "te"}
_BODILESS = (204, 304)

Headers = list[tuple[bytes, bytes]]


def server_timing(timings: Timings, place_ms: float = 0.0) -> bytes:
    """Server-Timing with milliseconds per step, and which tier the code came from; steps that did not happen are left out, run
    never is."""
    steps = []
    for name in STEPS:
        took = place_ms if name == "place" else getattr(timings, name)
        if took > 0.005 or name == "run":
            said = f";desc={timings.code_from}" if name == "code" and timings.code_from else ""
            steps.append(f"{name}{said};dur={took:.2f}")
    return ", ".join(steps).encode()


def headers_of(result: InvokeResult, invocation_id: str, trace_id: str, place_ms: float) -> Headers:
    """The headers every answer of an invocation carries."""
    return [
        (b"server-timing", server_timing(result.timings, place_ms)),
        (b"x-foreglow-start", result.start.encode()),
        (b"x-foreglow-invocation", invocation_id.encode()),
        (b"x-foreglow-trace", trace_id.encode()),
    ]


def answer(result: InvokeResult, body: bytes, headers: Headers) -> tuple[int, Headers, bytes]:
    """Adds to `headers` what the result says; a result that is not ok becomes problem+json."""
    if result.status == "ok" and (not result.http_status or 200 <= result.http_status <= 599):
        if result.http_status:
            headers.extend(_user_headers(result))
        if result.content_type and not any(name == b"content-type" for name, _ in headers):
            sound = _VALUE.fullmatch(result.content_type) is not None
            headers.append((b"content-type", result.content_type.encode("latin-1") if sound else b"application/octet-stream"))
        if result.http_status in _BODILESS:
            return result.http_status, headers, b""
        headers.append((b"content-length", str(len(body)).encode()))
        return result.http_status or 200, headers, body
    if result.status == "ok":
        detail = f"the function answered with status {result.http_status}, which is not between 200 and 599"
        result = msgspec.structs.replace(result, status="bad-answer", error=ErrorDetail("BadAnswer", detail))
    status, title = STATUS.get(result.status, (500, result.status))
    problem: dict[str, object] = {"type": f"foreglow:{result.status}", "title": title, "status": status}
    if result.error is not None:
        problem["detail"] = result.error.message or title
        problem["error"] = {"type": result.error.type, "message": result.error.message, "stack": result.error.stack}
    if status == 429:
        headers.append((b"retry-after", b"1"))
    return status, *problem_answer(problem, headers)


def problem_answer(problem: dict[str, object], headers: Headers) -> tuple[Headers, bytes]:
    body = msgspec.json.encode(problem)
    headers.append((b"content-type", b"application/problem+json"))
    headers.append((b"content-length", str(len(body)).encode()))
    return headers, body


def _user_headers(result: InvokeResult) -> Headers:
    """What an http function set, but for what belongs to the connection or to us, and for broken ones."""
    kept: Headers = []
    for name, value in result.headers:
        lower = name.lower()
        if lower in _FORBIDDEN or lower.startswith("x-foreglow-") or not _TOKEN.fullmatch(name) or not _VALUE.fullmatch(value):
            continue
        kept.append((lower.encode(), value.encode("latin-1")))
    return kept
