"""Invocations on this node: what is known of one in flight, and how it speaks to the guest."""

import asyncio
from dataclasses import dataclass, field
from typing import Annotated

import msgspec
from msgspec import Meta

from graph.calls import StartKind
from tracing.records import Timings
from workers.instances import Instance
from workers.rpc.connection import Connection
from workers.rpc.messages import ErrorDetail, InvokeRequest, InvokeResult, Rpc


@dataclass(slots=True, eq=False)
class Invocation:
    """One request from its arrival on the RPC to its result. Times are the loop's clock, seconds."""

    connection: Connection
    stream: int
    request: InvokeRequest
    body: bytes
    arrived: float
    instance: Instance | None = None
    start: StartKind = StartKind.UNKNOWN
    decision_id: str = ""
    dispatched: float = 0.0
    timer: asyncio.TimerHandle | None = None
    collected: bytearray | None = None  # of a streamed result: parts of a byte each must not cost fifty times their size
    head: "GuestResult | None" = None
    calls: dict[int, int] = field(default_factory=dict)  # the guest's call id -> the RPC's
    done: bool = False

    def timings(self, now: float) -> Timings:
        """Steps of the preparation count only for who started it; who adopted it queued."""
        run = (now - self.dispatched) * 1000 if self.dispatched else 0.0
        waited = ((self.dispatched or now) - self.arrived) * 1000
        if self.start in (StartKind.COLD, StartKind.STANDBY) and self.instance is not None and self.dispatched:
            steps = self.instance.timings
            queue = max(0.0, waited - steps.clone - steps.code - steps.init - steps.net)
            return msgspec.structs.replace(steps, queue=queue, run=run)
        return Timings(queue=waited, run=run)

    def finish(self, result: InvokeResult, body: bytes = b"") -> None:
        """Sends the result once; later ones are ignored."""
        if self.done:
            return
        self.done = True
        if self.timer is not None:
            self.timer.cancel()
        self.connection.send(Rpc.RESULT, self.stream, result, body)


class GuestHttp(msgspec.Struct, frozen=True, omit_defaults=True):
    method: str
    path: str
    query: str
    headers: list[tuple[str, str]]


class GuestInvoke(msgspec.Struct, frozen=True, omit_defaults=True):
    """Meta of ToGuest.INVOKE."""

    invocation: str
    content_type: str
    deadline_s: float
    trace_id: str
    depth: int
    http: GuestHttp | None = None


ContentType = Annotated[str, Meta(max_length=256)]
"""What guests say is bounded where it is read: it grows when it is written for the next hop, whose frames are bounded too."""


class GuestResponse(msgspec.Struct, frozen=True):
    status: Annotated[int, Meta(ge=0, le=999)] = 200
    headers: Annotated[
        list[tuple[Annotated[str, Meta(max_length=256)], Annotated[str, Meta(max_length=8192)]]], Meta(max_length=64)
    ] = []


class GuestResult(msgspec.Struct, frozen=True):
    """Meta of FromGuest.RESULT."""

    content_type: ContentType = ""
    http: GuestResponse | None = None


class GuestError(msgspec.Struct, frozen=True):
    """Meta of FromGuest.ERROR. `payload`: the handler was not called, the payload is not what its content type says."""

    type: str = "Error"
    message: str = ""
    stack: str = ""
    payload: bool = False


class GuestCall(msgspec.Struct, frozen=True):
    """Meta of FromGuest.CALL."""

    invocation: int
    function: Annotated[str, Meta(max_length=1 << 16)]
    content_type: ContentType = "application/json"
    asynchronous: bool = False


class GuestLog(msgspec.Struct, frozen=True):
    stream: str = "out"


class GuestCallResult(msgspec.Struct, frozen=True, omit_defaults=True):
    """Meta of ToGuest.CALL_RESULT."""

    status: str
    content_type: str = ""
    error: dict[str, str] | None = None


encode_invoke = msgspec.json.Encoder().encode
decode_result = msgspec.json.Decoder(GuestResult).decode
decode_error = msgspec.json.Decoder(GuestError).decode
decode_call = msgspec.json.Decoder(GuestCall).decode
decode_log = msgspec.json.Decoder(GuestLog).decode


def guest_invoke(request: InvokeRequest, deadline_s: float) -> bytes:
    """The meta that tells a guest about `request`, which has `deadline_s` left."""
    http = request.http
    return encode_invoke(
        GuestInvoke(
            request.invocation_id,
            request.content_type,
            deadline_s,
            request.trace_id,
            request.depth,
            GuestHttp(http.method, http.path, http.query, http.headers) if http is not None else None,
        )
    )


def guest_call_result(result: InvokeResult) -> bytes:
    error = result.error
    return encode_invoke(
        GuestCallResult(
            result.status,
            result.content_type,
            {"type": error.type, "message": error.message} if error is not None else None,
        )
    )


def bounded(kind: str, message: str, stack: str) -> ErrorDetail:
    """What a guest says of an error, cut to what is worth carrying."""
    return ErrorDetail(kind[:200], message[:8192], stack[:65536])
