"""OTLP over HTTP: POST /v1/traces, keyed by bearer tokens, in protobuf or JSON. Each is answered in its own encoding."""

import asyncio
import json
import zlib
from collections import Counter
from collections.abc import Callable

import structlog
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from graph.ids import TenantId
from tracing.formats import FormatError, otlp, otlp_json
from tracing.spans import Span

MAX_BODY = 4 << 20
MAX_UNPACKED = 16 << 20
MAX_MEMBERS = 16  # of a gzip body; encoders write one
BODY_TIMEOUT_S = 30.0
AT_ONCE = 32
"""Requests of a tenant that are under way at once: what they hold until they are read is bounded by it, and a tenant that sends
slowly keeps no other from sending. Exporters and collectors have a few."""
ON_THE_LOOP = 64 << 10
"""Bodies up to this size are read on the event loop; larger ones in a thread, so that they do not hold it up."""

PROTOBUF = "application/x-protobuf"
JSON = "application/json"

Authenticate = Callable[[str], TenantId | None]
Accept = Callable[[TenantId, list[Span]], int]

_log = structlog.get_logger(__name__)


class _Refused(Exception):
    """Answered with `status`, as in HTTP, and a google.rpc.Status as OTLP asks for."""

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers or {}


def receiver_app(authenticate: Authenticate, accept: Accept, refused: Callable[[TenantId, int], None] | None = None) -> Starlette:
    """`authenticate` maps a token to its tenant, None for no such token. `accept` takes spans in and returns how many it kept.
    `refused` is told how many had no valid ids.

    None of them may block. Answers: 200 (with a partial success when spans were left out), 400 for a body that is not what it
    says, 401, 408 for a body that does not come, 413 for one over 4 MiB or 16 MiB unpacked, 415 for another type or encoding,
    429 (which exporters try again) when the tenant has AT_ONCE under way.
    """
    under_way: Counter[TenantId] = Counter()

    async def receive(request: Request) -> Response:
        form = _media_type(request)
        try:
            tenant = _tenant(request, authenticate)
        except _Refused as error:
            return _refusal(error, form)
        if under_way[tenant] >= AT_ONCE:
            detail = f"{AT_ONCE} requests of this tenant are under way; send larger batches, fewer at once"
            return _refusal(_Refused(429, detail, {"Retry-After": "1"}), form)
        under_way[tenant] += 1
        try:
            return await take(request, form, tenant)
        finally:
            under_way[tenant] -= 1
            if not under_way[tenant]:
                del under_way[tenant]

    async def take(request: Request, form: str, tenant: TenantId) -> Response:
        try:
            encoding = _encoding(request, form)
            body = await _body(request)
            apart = len(body) > ON_THE_LOOP
            spans, invalid = await asyncio.to_thread(_read, body, encoding, form) if apart else _read(body, encoding, form)
        except _Refused as error:
            return _refusal(error, form)
        except ClientDisconnect:
            return Response(status_code=400)
        kept = accept(tenant, spans)
        if invalid and refused is not None:
            refused(tenant, invalid)
        left_out = len(spans) - kept + invalid
        if not left_out:
            return _answer(form, 0, "")
        _log.info("otlp.partial", tenant=tenant, left_out=left_out)
        return _answer(form, left_out, _why(len(spans) - kept, invalid))

    return Starlette(routes=[Route("/v1/traces", receive, methods=["POST"])])


def _media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _answer(form: str, left_out: int, why: str) -> Response:
    if form == JSON:
        partial = {"partialSuccess": {"rejectedSpans": str(left_out), "errorMessage": why}} if left_out else {}
        return Response(json.dumps(partial), media_type=JSON)
    answer = ExportTraceServiceResponse()
    if left_out:
        answer.partial_success.rejected_spans = left_out
        answer.partial_success.error_message = why
    return Response(answer.SerializeToString(), media_type=PROTOBUF)


def _tenant(request: Request, authenticate: Authenticate) -> TenantId:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    tenant = authenticate(token.strip()) if scheme.lower() == "bearer" and token.strip() else None
    if tenant is None:
        raise _Refused(401, "a key is needed: Authorization: Bearer KEY", {"WWW-Authenticate": "Bearer"})
    return tenant


def _encoding(request: Request, form: str) -> str:
    if form not in (PROTOBUF, JSON):
        raise _Refused(
            415, f"Content-Type: {form[:80]!r} is neither {PROTOBUF} nor {JSON}; set the exporter's protocol to http/protobuf"
        )
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", "gzip"):
        raise _Refused(415, f"Content-Encoding: {encoding[:80]!r} is neither gzip nor identity")
    return encoding


async def _body(request: Request) -> bytes:
    stated = request.headers.get("content-length", "")
    if stated.isdecimal() and int(stated) > MAX_BODY:
        raise _Refused(413, f"the body has more than {MAX_BODY} bytes; send smaller batches")
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for part in request.stream():
                size += len(part)
                if size > MAX_BODY:
                    raise _Refused(413, f"the body has more than {MAX_BODY} bytes; send smaller batches")
                parts.append(part)
    except TimeoutError:
        raise _Refused(408, f"the body did not come within {BODY_TIMEOUT_S:.0f} s") from None
    return b"".join(parts)


def _read(body: bytes, encoding: str, form: str) -> tuple[list[Span], int]:
    read = otlp_json.read if form == JSON else otlp.read
    try:
        return read(_unpacked(body) if encoding == "gzip" else body)
    except FormatError as error:
        raise _Refused(400, str(error)) from error


def _unpacked(body: bytes) -> bytes:
    """A gzip body of one or more members. Raises _Refused before more than the limit was unpacked."""
    parts: list[bytes] = []
    left = MAX_UNPACKED + 1
    for _ in range(MAX_MEMBERS + 1):
        if not body:
            return b"".join(parts)
        gzip = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
        try:
            parts.append(gzip.decompress(body, left))
        except zlib.error as error:
            raise _Refused(400, f"Content-Encoding: the body is not gzip: {error}") from error
        left -= len(parts[-1])
        if left <= 0:
            raise _Refused(413, f"the unpacked body has more than {MAX_UNPACKED} bytes; send smaller batches")
        if not gzip.eof:
            raise _Refused(400, "Content-Encoding: the gzip body ends too early")
        body = gzip.unused_data
    raise _Refused(400, f"Content-Encoding: the gzip body has more than {MAX_MEMBERS} members")


def _why(full: int, refused: int) -> str:
    told = []
    if refused:
        told.append(f"{refused} without a valid trace or span id")
    if full:
        told.append(f"{full} too late or over the limits of what may wait")
    return "left out: " + ", ".join(told)


def _refusal(error: _Refused, form: str) -> Response:
    """The connection ends with it: the body may not have been read, and nobody reads what an unknown client sends after that."""
    codes = {400: 3, 401: 16, 408: 4, 413: 8, 415: 3, 429: 8}  # google.rpc.Code, as far as it has one
    code = codes[error.status]
    if form == JSON:
        body = json.dumps({"code": code, "message": str(error)}).encode()
    else:
        body = Status(code=code, message=str(error)).SerializeToString()
    headers = {**error.headers, "Connection": "close"}
    return Response(body, error.status, headers, JSON if form == JSON else PROTOBUF)
