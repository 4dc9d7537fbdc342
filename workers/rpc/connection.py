"""One connection between two platform processes: frames in and out over a unix socket or TLS, with hello and questions.

The hot kinds (INVOKE, RESULT, CALL) go straight to the owner's callback, without a task or a future in between.
"""

import asyncio
import hmac
import secrets
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol, cast

import msgspec
import structlog

from workers.framing import MAX_BODY, MAX_META, Frame, FrameParser, encode
from workers.rpc.messages import MESSAGES, PROTOCOL, Ask, ErrorDetail, Hello, InvokeResult, Refusal, Rpc, Welcome
from workers.rpc.transport import Address, Identity, NotTrusted, Peer, connect, label, prepare, serve

HELLO_TIMEOUT_S = 5.0
WRITE_LIMIT = 8 << 20
MAX_ANSWERS = 256  # questions of one peer being answered at once

log = structlog.get_logger(__name__)

_encoder = msgspec.msgpack.Encoder()
_decoders: dict[int, msgspec.msgpack.Decoder[Any]] = {
    int(kind): msgspec.msgpack.Decoder(message) for kind, message in MESSAGES.items()
}


def proof(secret: str, side: str, nonce: str) -> str:
    """What shows that a side (hello | welcome) has the cluster's secret, without the secret."""
    return hmac.new(secret.encode(), f"{side} {nonce}".encode(), "sha256").hexdigest()


class RpcError(Exception):
    """The peer refused, broke the protocol or went away. `status` as in HTTP."""

    def __init__(self, message: str, status: int = 503) -> None:
        super().__init__(message)
        self.status = status


class Owner(Protocol):
    """Who a connection belongs to."""

    def on_message(self, connection: "Connection", kind: int, ident: int, message: Any, body: bytes) -> None:
        """A whole frame came; `message` is decoded (None where the kind has no meta). Must not block."""

    def on_lost(self, connection: "Connection", why: str) -> None:
        """The connection is gone; called once, only after on_open or a successful dial."""

    def on_open(self, connection: "Connection") -> None:
        """A dialling peer said a valid hello (listening side only)."""


Answerer = Callable[[Mapping[str, Any]], Awaitable[object]]
Admits = Callable[[Peer], str]
"""Why a peer with a good certificate, or of this user, is not let in after all; empty: it is."""


class Listening(msgspec.Struct, frozen=True):
    """What a listening side says of itself. `epoch` is asked at each welcome: a node's grows while it runs."""

    name: str
    role: str = ""
    epoch: Callable[[], int] = int
    admits: Admits = lambda peer: ""


class Connection(asyncio.Protocol):
    """Both ends. Made by `dial` or `listen`, never directly."""

    def __init__(
        self,
        owner: Owner,
        secret: str,
        answers: Mapping[str, Answerer] | None = None,
        hello: Hello | None = None,
        listening: Listening | None = None,
        expected: Peer | None = None,
    ) -> None:
        self.peer = Hello(role="", name="", secret="")
        self.welcome: Welcome | None = None
        self.defined: set[str] = set()  # versions this side has sent or been sent on this connection
        self._owner = owner
        self._secret = secret
        self._answers = answers or {}
        self._hello = hello
        self._listening = listening or Listening("")
        self._expected = expected
        self._certified: Peer | None = None
        self._nonce = secrets.token_hex(16)
        self._name = hello.name if hello is not None else self._listening.name
        self._open = False
        self.in_use = False  # its owner knows of it, and is told when it is lost
        self._lost = False
        self._parser = FrameParser()
        self._transport: asyncio.Transport | None = None
        self._asked: dict[int, asyncio.Future[bytes]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._next = 0
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._hello_timer = asyncio.get_running_loop().call_later(HELLO_TIMEOUT_S, self._hello_late)

    # -- life

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)  # uvloop's are none by inheritance
        self._transport = transport
        try:
            self._certified = prepare(transport)
            if self._hello is not None:
                self._check_expected()
        except NotTrusted as error:
            self._close(str(error))
            return
        transport.set_write_buffer_limits(high=WRITE_LIMIT)
        if self._hello is not None:
            shown = proof(self._secret, "hello", self._nonce)
            self.send(Rpc.HELLO, 0, msgspec.structs.replace(self._hello, secret=shown, nonce=self._nonce))

    def _check_expected(self) -> None:
        """Over TLS the dialling side says nothing before it knows that it reached whom it wanted."""
        found, wanted = self._certified, self._expected
        if found is None or wanted is None:
            return
        if found.role != wanted.role or (wanted.name and found.name != wanted.name):
            raise NotTrusted(f"the peer is {found.role} {found.name}, not {wanted.role} {wanted.name}".rstrip())
        if not wanted.counts(found.fingerprint):
            raise NotTrusted(f"{found.role} {found.name} shows a certificate that does not count any more")

    def connection_lost(self, exc: Exception | None) -> None:
        self._close(str(exc) if exc else "the peer closed the connection")

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()
        else:
            self._close("given up before it was made")

    def drop(self, why: str) -> None:
        """Ends it now: what waits to be sent is lost, and the owner is told before this returns."""
        self._close(why)

    @property
    def certified(self) -> Peer | None:
        """Who the certificate at the other end names; None on a unix socket."""
        return self._certified

    @property
    def closed(self) -> bool:
        return self._lost

    def _hello_late(self) -> None:
        if not self._open:
            self._close("no hello within the time limit")

    def _close(self, why: str) -> None:
        if self._lost:
            return
        self._lost = True
        self._hello_timer.cancel()
        if self._transport is not None:
            self._transport.abort()
        if not self.ready.done():
            self.ready.set_exception(RpcError(why))
            self.ready.exception()  # a dial that timed out does not look at it any more
        for future in self._asked.values():
            if not future.done():
                future.set_exception(RpcError(why))
        self._asked.clear()
        for task in self._tasks:
            task.cancel()
        if self.in_use:
            self._owner.on_lost(self, why)

    def hand_over(self) -> None:
        """The dialling side takes it. Raises RpcError when it was lost right after the welcome."""
        if self._lost:
            raise RpcError("the peer closed the connection right after its welcome")
        self.in_use = True

    # -- out

    def next_id(self) -> int:
        self._next = (self._next + 1) & 0xFFFFFFFF
        return self._next

    def send(self, kind: int, ident: int, message: object = None, body: bytes = b"") -> None:
        """Queues one frame. Nothing happens on a lost connection: the owner hears of it through on_lost."""
        if self._transport is None or self._lost:
            return
        meta = _encoder.encode(message) if message is not None else b""
        if len(meta) > MAX_META or len(body) > MAX_BODY:
            meta, body = self._too_large(kind, len(meta), len(body))
        self._transport.write(encode(kind, ident, meta, body))

    @staticmethod
    def _too_large(kind: int, meta: int, body: int) -> tuple[bytes, bytes]:
        """The peer would close the connection, and everything in flight on it, over one frame: it gets an error instead.
        Raises ValueError for a kind that answers nobody."""
        detail = f"{meta} bytes of description or {body} of payload are over the limit of a message"
        if kind in (Rpc.RESULT, Rpc.CALL_RESULT):
            return _encoder.encode(InvokeResult("error", error=ErrorDetail("ResultTooLarge", detail))), b""
        raise ValueError(detail)

    @property
    def congested(self) -> bool:
        """True while more than WRITE_LIMIT bytes wait for the peer: send nothing that can be left out."""
        return self._transport is not None and self._transport.get_write_buffer_size() > WRITE_LIMIT

    async def ask(self, what: str, timeout_s: float = 5.0, **args: object) -> Any:
        """The peer's answer to a question, decoded from JSON. Raises RpcError (its status) or TimeoutError."""
        return msgspec.json.decode(await self.ask_raw(what, timeout_s, **args))

    async def ask_raw(self, what: str, timeout_s: float = 5.0, **args: object) -> bytes:
        """Like ask, the answer left as JSON bytes."""
        if self._lost:
            raise RpcError("the connection is closed")
        ident = self.next_id()
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._asked[ident] = future
        self.send(Rpc.ASK, ident, Ask(what, args))
        try:
            async with asyncio.timeout(timeout_s):
                return await future
        finally:
            self._asked.pop(ident, None)

    # -- in

    def data_received(self, data: bytes) -> None:
        try:
            for frame in self._parser.feed(data):
                self._take(frame)
        except (ValueError, msgspec.MsgspecError, RpcError) as error:
            self._close(f"protocol error: {error}")
        except Exception as error:  # whatever else a frame can provoke (nesting without end did) ends its connection only
            log.exception("frame.failed", role=self.peer.role, peer=self.peer.name)
            self._close(f"protocol error: {type(error).__name__}")

    def _take(self, frame: Frame) -> None:
        kind = frame.kind
        decoder = _decoders.get(kind)
        message = decoder.decode(frame.meta) if decoder is not None else None
        if not self._open:
            self._handshake(kind, message)
        elif kind == Rpc.ASK:
            self._start_answer(frame.id, message)
        elif kind in (Rpc.ANSWER, Rpc.REFUSED):
            self._answered(kind, frame.id, message, frame.body)
        else:
            self._owner.on_message(self, kind, frame.id, message, frame.body)

    def _handshake(self, kind: int, message: Any) -> None:
        if self._hello is None:
            if kind != Rpc.HELLO or not isinstance(message, Hello) or message.protocol != PROTOCOL:
                raise RpcError("expected a hello of this protocol version")
            self._check_proof("hello", message.secret, message.nonce)
            self._check_claim(message.role, message.name)
            refused = self._listening.admits(self._certified or Peer(message.role, message.name))
            if refused:
                raise RpcError(refused)
            self.peer = message
            self._opened()
            own = self._listening
            shown = proof(self._secret, "welcome", message.nonce)
            self.send(Rpc.WELCOME, 0, Welcome(own.name, own.epoch(), PROTOCOL, own.role, shown))
            self.in_use = True
            self._owner.on_open(self)
        else:
            if kind != Rpc.WELCOME or not isinstance(message, Welcome) or message.protocol != PROTOCOL:
                raise RpcError("expected a welcome of this protocol version")
            self._check_proof("welcome", message.secret, self._nonce)
            self._check_claim(message.role, message.name)
            self.welcome = message
            self._opened()

    def _check_proof(self, side: str, shown: str, nonce: str) -> None:
        if not hmac.compare_digest(shown.encode(), proof(self._secret, side, nonce).encode()):
            raise RpcError("wrong cluster key")

    def _check_claim(self, role: str, name: str) -> None:
        """Over TLS nobody speaks for somebody else."""
        found = self._certified
        if found is not None and (found.role, found.name) != (role, name):
            raise RpcError(f"the peer says it is {role[:63]} {name[:63]}, its certificate says {found.role} {found.name}")

    def _opened(self) -> None:
        self._open = True
        self._hello_timer.cancel()
        if not self.ready.done():
            self.ready.set_result(None)

    def _start_answer(self, ident: int, message: Any) -> None:
        if len(self._tasks) >= MAX_ANSWERS:
            self.send(Rpc.REFUSED, ident, Refusal(429, f"more than {MAX_ANSWERS} questions at once"))
            return
        task = asyncio.get_running_loop().create_task(self._answer(ident, message))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, ident: int, message: Ask | None) -> None:
        if message is None or message.what not in self._answers:
            what = message.what if message else ""
            self.send(Rpc.REFUSED, ident, Refusal(404, f"{self._name or 'this process'} knows no question {what!r}"))
            return
        try:
            answer = await self._answers[message.what](message.args)
            body = answer if isinstance(answer, bytes) else msgspec.json.encode(answer)
        except RpcError as error:
            self.send(Rpc.REFUSED, ident, Refusal(error.status, str(error)))
        except TimeoutError:
            self.send(Rpc.REFUSED, ident, Refusal(504, f"{message.what}: a process behind {self._name} did not answer in time"))
        except (KeyError, TypeError, ValueError, msgspec.DecodeError) as error:
            self.send(Rpc.REFUSED, ident, Refusal(400, f"{message.what}: {type(error).__name__}: {error}"))
        except Exception:
            log.exception("question.failed", what=message.what)  # a fault of ours: whoever asked must not wait for it
            self.send(Rpc.REFUSED, ident, Refusal(500, f"{message.what}: failed, see the log of {self._name}"))
        else:
            if len(body) > MAX_BODY:
                self.send(Rpc.REFUSED, ident, Refusal(413, f"{message.what}: the answer is over {MAX_BODY} bytes"))
            else:
                self.send(Rpc.ANSWER, ident, None, body)

    def _answered(self, kind: int, ident: int, message: Any, body: bytes) -> None:
        future = self._asked.get(ident)
        if future is None or future.done():
            return
        if kind == Rpc.ANSWER:
            future.set_result(body)
        elif isinstance(message, Refusal):
            future.set_exception(RpcError(message.message, message.status))


async def dial(
    address: Address,
    owner: Owner,
    hello: Hello,
    answers: Mapping[str, Answerer] | None = None,
    timeout_s: float = 5.0,
    identity: Identity | None = None,
    expected: Peer | None = None,
) -> Connection:
    """Connects to a listening process; over TCP only to `expected`, showing `identity`. Raises RpcError when it refuses, is
    not there, or is somebody else."""
    made: list[Connection] = []

    def make() -> Connection:
        made.append(Connection(owner, hello.secret, answers, hello, expected=expected))
        return made[0]

    try:
        async with asyncio.timeout(timeout_s):  # wait_for may swallow a cancellation, and its caller then dials for ever
            await connect(make, address, identity)
            await asyncio.shield(made[0].ready)
        made[0].hand_over()
    except (OSError, TimeoutError, NotTrusted) as error:
        raise RpcError(f"cannot reach {label(address)}: {str(error) or 'timed out'}") from error
    finally:
        for connection in made:
            if not connection.in_use:
                connection.close()
    return made[0]


async def listen(
    address: Address,
    owner: Owner,
    secret: str,
    listening: Listening | str,
    answers: Mapping[str, Answerer] | None = None,
    identity: Identity | None = None,
) -> asyncio.AbstractServer:
    """Serves connections on a unix socket (0600, only this user's processes are let in) or on TCP (only those with a
    certificate of `identity`'s authority). Raises OSError, and NotTrusted for TCP without an identity."""
    told = Listening(listening) if isinstance(listening, str) else listening
    return await serve(lambda: Connection(owner, secret, answers, listening=told), address, identity)
