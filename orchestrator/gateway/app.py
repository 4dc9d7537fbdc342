"""The functions listener, plain ASGI: POST /function/{name}, any method on /function/{name}/{path} for http functions."""

import asyncio
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from graph.calls import StartKind
from orchestrator.catalog.watch import RouteTable
from orchestrator.gateway.allowances import Allowances, OverQuota
from orchestrator.gateway.answers import Headers, answer, headers_of, problem_answer
from orchestrator.gateway.choosing import Choices
from orchestrator.gateway.resolve import NotFound, Unauthorized, authenticate, resolve
from orchestrator.gateway.runs import Run, Runs, new_span_id, new_trace_id
from orchestrator.heads import MAX_HEAD
from tracing import propagation
from workers.rpc.messages import HttpRequest
from workers.versions import Kind

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

PREFIX = "/function/"
MAX_CONTENT_TYPE = 256
BODY_S = 30.0
ROUTES_S = 10.0  # a request waits so long for the routes of a gateway that has just started
_DROPPED = {b"authorization", b"connection", b"transfer-encoding", b"keep-alive", b"upgrade", b"expect"}


class Refused(Exception):
    """The request cannot become an invocation: status, title and detail of the problem; `kind` names it, else the status does."""

    def __init__(self, status: int, title: str, detail: str, headers: Headers | None = None, kind: str = "") -> None:
        super().__init__(detail)
        self.status, self.title, self.detail, self.headers = status, title, detail, headers or []
        self.kind = kind or str(status)


class GatewayApp:
    def __init__(self, table: RouteTable, runs: Runs, allowances: Allowances, max_payload: int) -> None:
        self._table = table
        self._runs = runs
        self._allowances = allowances
        self._max_payload = max_payload
        self._loop = asyncio.get_running_loop()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        path: str = scope["path"]
        try:
            if path.startswith(PREFIX):
                status, headers, body = await self._invoke(scope, receive, path[len(PREFIX) :])
            else:
                status, headers, body = self._probe(path)
        except Refused as refused:
            self._runs.tally.refused[refused.status] += 1
            problem: dict[str, object] = {
                "type": f"foreglow:{refused.kind}",
                "title": refused.title,
                "status": refused.status,
                "detail": refused.detail,
            }
            status = refused.status
            common = [(b"server-timing", b"run;dur=0.00"), (b"x-foreglow-start", StartKind.UNKNOWN.encode())]
            headers, body = problem_answer(problem, [*common, *refused.headers])
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    def _probe(self, path: str) -> tuple[int, Headers, bytes]:
        if path == "/healthz":
            return 200, [(b"content-type", b"text/plain"), (b"content-length", b"3")], b"ok\n"
        if path == "/readyz":
            links = self._runs.links  # none: no node has joined yet, which is nothing to wait for
            ready = self._table.loaded.is_set() and (not links or any(link.up for link in links))
            if not ready:
                raise Refused(503, "not ready", "no routes yet, or no node reachable")
            return 200, [(b"content-type", b"text/plain"), (b"content-length", b"6")], b"ready\n"
        raise Refused(404, "not found", "functions are at /function/NAME")

    async def _invoke(self, scope: Message, receive: Receive, target: str) -> tuple[int, Headers, bytes]:
        began = time.monotonic()
        headers = dict(scope["headers"])
        content_type = headers.get(b"content-type", b"application/json")
        if not self._table.loaded.is_set():
            await self._routes()
        try:
            key = authenticate(self._table, headers.get(b"authorization", b""))
        except Unauthorized as error:
            raise Refused(401, "not authenticated", str(error), [(b"www-authenticate", b"Bearer")]) from error
        self._check_head(scope, headers, content_type)
        name, slash, rest = target.partition("/")
        choices = Choices(new_trace_id(), key.key_id, headers)
        try:
            _, spec = resolve(self._table, key.tenant, name, choices)
        except NotFound as error:
            raise Refused(404, "no such function", str(error)) from error
        http = None
        if spec.kind is Kind.HTTP:
            http = _http_request(scope, "/" + rest)
        elif slash:
            raise Refused(404, "not found", f"{name} is an event function: POST {PREFIX}{name}")
        elif scope["method"] != "POST":
            raise Refused(405, "method not allowed", "invoke an event function by POST", [(b"allow", b"POST")])
        try:
            self._allowances.enter(key.tenant, key.key_id, began)
        except OverQuota as error:
            self._runs.tally.throttled[error.reason] += 1
            retry = [(b"retry-after", str(error.retry_after_s).encode())]
            raise Refused(429, "over quota", str(error), retry, "over-quota") from error
        try:
            body = await self._read(receive)
            run = Run(
                key.tenant,
                spec,
                choices.trace_id,
                new_span_id(),
                "",
                0,
                began + spec.timeout_s,
                content_type.decode("latin-1"),
                http,
                _link(headers.get(b"traceparent", b"")),
                choices=choices,
            )
            result, payload = await self._runs.run(run, body, began)
        finally:
            self._allowances.leave(key.tenant)
        return answer(result, payload, headers_of(result, run.invocation_id, run.trace_id, run.place_ms))

    async def _routes(self) -> None:
        """A gateway that has just started knows nobody's key before it has the routes: until then it says neither 401 nor 404."""
        try:
            async with asyncio.timeout(ROUTES_S):
                await self._table.loaded.wait()
        except TimeoutError as error:
            detail = "this gateway has just started and has no routes yet: is Redis reachable?"
            raise Refused(503, "not ready", detail, [(b"retry-after", b"1")]) from error

    def _check_head(self, scope: Message, headers: dict[bytes, bytes], content_type: bytes) -> None:
        """Raises Refused for what must not travel on."""
        if len(content_type) > MAX_CONTENT_TYPE or sum(len(name) + len(value) for name, value in scope["headers"]) > MAX_HEAD:
            raise Refused(431, "request headers too large", f"at most {MAX_HEAD} bytes, {MAX_CONTENT_TYPE} of content type")
        length = int(headers.get(b"content-length", b"0"))  # the server has checked it
        if b"upgrade" in headers and (length or b"transfer-encoding" in headers):
            # the parser takes what follows such a head for the other protocol: the payload would be lost
            raise Refused(400, "no upgrade here", "send the request without an Upgrade header")
        if length > self._max_payload:
            raise Refused(413, "payload too large", f"at most {self._max_payload} bytes")

    async def _read(self, receive: Receive) -> bytes:
        try:
            async with asyncio.timeout(BODY_S):
                return await self._receive_all(receive)
        except TimeoutError as error:
            raise Refused(408, "request timed out", f"the payload did not come within {BODY_S:g} s") from error

    async def _receive_all(self, receive: Receive) -> bytes:
        parts: list[bytes] = []
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Refused(400, "incomplete request", "the client went away while sending the body")
            part: bytes = message.get("body", b"")
            size += len(part)
            if size > self._max_payload:
                raise Refused(413, "payload too large", f"at most {self._max_payload} bytes")
            parts.append(part)
            more = message.get("more_body", False)
        return parts[0] if len(parts) == 1 else b"".join(parts)


def _link(traceparent: bytes) -> str:
    """A trace id from outside is only ever a link: traces are keyed by tenant, and a caller could name anybody's."""
    if not traceparent:
        return ""
    text = traceparent.decode("latin-1")
    return text if propagation.parse(text) is not None else ""


def _http_request(scope: Message, path: str) -> HttpRequest:
    headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"] if name not in _DROPPED]
    return HttpRequest(scope["method"], path, scope["query_string"].decode("latin-1"), headers)
