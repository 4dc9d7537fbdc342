"""From a result to an HTTP answer: status, headers, body. Pure."""

import msgspec

from tracing.records import Timings
from workers.rpc.messages import InvokeResult

STATUS = {
    "error": (502, "the function raised an exception"),
    "init-failed": (502, "the function's module could not be imported"),
    "code-unavailable": (503, "the function's code could not be fetched"),
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
_FORBIDDEN = {"connection", "transfer-encoding", "content-length", "server-timing", "x-foreglow-start", "keep-alive", "upgrade"}

Headers = list[tuple[bytes, bytes]]


def server_timing(timings: Timings) -> bytes:
    """Server-Timing with milliseconds per step; steps that did not happen are left out, run never is."""
    steps = (
        f"{name};dur={value:.2f}"
        for name, value in zip(timings.__struct_fields__, msgspec.structs.astuple(timings), strict=True)
        if value > 0.005 or name == "run"
    )
    return ", ".join(steps).encode()


def headers_of(result: InvokeResult, invocation_id: str, trace_id: str) -> Headers:
    """The headers every answer of an invocation carries."""
    return [
        (b"server-timing", server_timing(result.timings)),
        (b"x-foreglow-start", result.start.encode()),
        (b"x-foreglow-invocation", invocation_id.encode()),
        (b"x-foreglow-trace", trace_id.encode()),
    ]


def answer(result: InvokeResult, body: bytes, headers: Headers) -> tuple[int, Headers, bytes]:
    """Adds to `headers` what the result says; a result that is not ok becomes problem+json."""
    if result.status == "ok":
        if result.http_status:
            headers.extend(_user_headers(result))
        if result.content_type and not any(name == b"content-type" for name, _ in headers):
            headers.append((b"content-type", result.content_type.encode("latin-1", "replace")))
        headers.append((b"content-length", str(len(body)).encode()))
        return result.http_status or 200, headers, body
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
        if lower in _FORBIDDEN or not lower.isascii() or any(char in name + value for char in "\r\n\0"):
            continue
        kept.append((lower.encode(), value.encode("latin-1", "replace")))
    return kept
