"""The HTTP of a zone cache: manifests, chunks (whole or a range), parcels and filling.

    GET  /v1/layers/{tenant}/{hex}/manifest
    GET  /v1/layers/{tenant}/{hex}/chunks/{name}
    GET  /v1/layers/{tenant}/{hex}/parcel
    POST /v1/layers/{tenant}/{hex}/fill          {"chunks": [names], "within_s": seconds} -> {"missing": n, "reason": ""}

A parcel is the manifest and, of a small layer, all chunks in their order, each behind its length in four bytes, big-endian;
length 0 stands for a chunk that this cache does not hold.

Refusals are one line of text: 403 not for this caller, 404 not in the origin or not of that layer, 503 not to be had now.
"""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any

import msgspec
import structlog
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from graph.ids import TENANT_PATTERN
from orchestrator.zone_cache.admission import Judge
from orchestrator.zone_cache.holding import Holding, NotHere, Unavailable
from workers.code.manifest import PARCEL_LENGTH_BYTES, LayerError, check_name, hex_of

MAX_BODY = 1 << 20
MAX_WITHIN_S = 5.0
PARCEL_S = 20.0
"""Who reads a parcel no faster than this loses it: it holds a place among those that are answered at once."""

OBJECT = "application/octet-stream"
RANGE = re.compile(r"bytes=(\d{0,12})-(\d{0,12})")

log = structlog.get_logger(__name__)


class FillRequest(msgspec.Struct):
    chunks: Annotated[list[str], msgspec.Meta(max_length=12_000)]
    within_s: Annotated[float, msgspec.Meta(gt=0, le=MAX_WITHIN_S)] = 1.0


class Unsatisfiable(Exception):
    """A range beyond the object's end."""


class ZoneApp:
    """`ready` says whether the members are known yet. The caller is in the scope's state: `peer`, None on this host's socket."""

    def __init__(self, holding: Holding, judge: Judge, ready: Callable[[], bool]) -> None:
        self._holding = holding
        self._judge = judge
        self._ready = ready
        layer = "/v1/layers/{tenant}/{hex}"
        self.app = Starlette(
            routes=[
                Route(f"{layer}/manifest", self._manifest, methods=["GET"]),
                Route(f"{layer}/parcel", self._parcel, methods=["GET"]),
                Route(f"{layer}/chunks/{{name}}", self._chunk, methods=["GET"]),
                Route(f"{layer}/fill", self._fill, methods=["POST"]),
            ],
            exception_handlers={
                LayerError: _answer(400),
                msgspec.DecodeError: _answer(400),
                NotHere: _answer(404),
                Unavailable: _answer(503),
            },
        )

    async def _manifest(self, request: Request) -> Response:
        tenant, digest = self._named(request)
        refusal = self._refused(request, tenant)
        if refusal is not None:
            return refusal
        layer = await self._holding.layer(tenant, digest)
        return self._object(request, layer.stored, hex_of(digest))

    async def _parcel(self, request: Request) -> Any:
        tenant, digest = self._named(request)
        refusal = self._refused(request, tenant)
        if refusal is not None:
            return refusal
        layer = await self._holding.layer(tenant, digest)
        self._holding.tally.served_bytes += len(layer.stored)
        return _Parcel(_part(layer.stored), self._parts(self._holding.parcel(tenant, layer)))

    async def _parts(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for stored in chunks:
            self._holding.tally.served_bytes += len(stored)
            yield _part(stored)

    async def _chunk(self, request: Request) -> Response:
        tenant, digest = self._named(request)
        name = check_name(request.path_params["name"])
        refusal = self._refused(request, tenant)
        if refusal is not None:
            return refusal
        return self._object(request, await self._holding.chunk(tenant, digest, name), name)

    async def _fill(self, request: Request) -> Response:
        tenant, digest = self._named(request)
        refusal = self._refused(request, tenant, filling=True)
        if refusal is not None:
            return refusal
        wanted = msgspec.json.decode(await _body(request), type=FillRequest)
        for name in wanted.chunks:
            check_name(name)
        filled = await self._holding.fill(tenant, digest, wanted.chunks, wanted.within_s)
        return Response(msgspec.json.encode(filled), media_type="application/json")

    def _named(self, request: Request) -> tuple[str, str]:
        tenant, digest = request.path_params["tenant"], f"sha256:{request.path_params['hex']}"
        hex_of(digest)
        if not TENANT_PATTERN.match(tenant):
            raise LayerError(f"not a tenant: {tenant[:80]!r}")
        return tenant, digest

    def _refused(self, request: Request, tenant: str, filling: bool = False) -> Response | None:
        peer = request.scope["state"]["peer"]
        if peer is not None and not self._ready():
            return PlainTextResponse("this cache does not know the members yet", 503)
        why = self._judge(peer, tenant, filling)
        if not why:
            return None
        self._holding.tally.refused += 1
        log.warning("zone.refused", peer=peer.name[:63] if peer is not None else "", tenant=tenant, reason=why)
        return PlainTextResponse(why, 403)

    def _object(self, request: Request, stored: bytes, tag: str) -> Response:
        headers = {"etag": f'"{tag}"', "accept-ranges": "bytes"}
        if request.headers.get("if-none-match") == headers["etag"]:
            return Response(status_code=304, headers=headers)
        try:
            part = byte_range(request.headers.get("range", ""), len(stored))
        except Unsatisfiable:
            return PlainTextResponse("the range lies behind the end", 416, {"content-range": f"bytes */{len(stored)}"})
        if part is None:
            self._holding.tally.served_bytes += len(stored)
            return Response(stored, media_type=OBJECT, headers=headers)
        first, last = part
        self._holding.tally.served_bytes += last + 1 - first
        headers["content-range"] = f"bytes {first}-{last}/{len(stored)}"
        return Response(stored[first : last + 1], 206, headers, OBJECT)


class _Parcel:
    """An answer that is sent part by part, as the reader takes them, and broken off after PARCEL_S."""

    def __init__(self, first: bytes, rest: AsyncIterator[bytes]) -> None:
        self._first = first
        self._rest = rest

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        with contextlib.suppress(TimeoutError):  # what is not whole when this returns ends with the connection
            async with asyncio.timeout(PARCEL_S):
                await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", OBJECT.encode())]})
                await send({"type": "http.response.body", "body": self._first, "more_body": True})
                async for part in self._rest:
                    await send({"type": "http.response.body", "body": part, "more_body": True})
                await send({"type": "http.response.body", "body": b""})


def _part(stored: bytes) -> bytes:
    return len(stored).to_bytes(PARCEL_LENGTH_BYTES, "big") + stored


def byte_range(header: str, size: int) -> tuple[int, int] | None:
    """First and last byte of a single range; None for the whole, which what cannot be read asks for too (RFC 9110, 14.2).
    Raises Unsatisfiable."""
    found = RANGE.fullmatch(header.strip())
    if found is None or found.groups() == ("", ""):
        return None
    first, last = found.groups()
    if not first:  # the last so many bytes
        if int(last) == 0 or size == 0:
            raise Unsatisfiable
        return max(size - int(last), 0), size - 1
    if last and int(last) < int(first):
        return None
    if int(first) >= size:
        raise Unsatisfiable
    return int(first), min(int(last), size - 1) if last else size - 1


async def _body(request: Request) -> bytes:
    body = bytearray()
    try:
        async for part in request.stream():
            body += part
            if len(body) > MAX_BODY:
                raise LayerError(f"the body is over {MAX_BODY} bytes")
    except ClientDisconnect:
        raise LayerError("the caller went away") from None
    return bytes(body)


def _answer(status: int) -> Any:
    def answer(request: Request, error: Exception) -> Response:
        return PlainTextResponse(str(error)[:500], status)

    return answer
