"""Inside a sandbox: reads frames, runs the handler, answers. Standard library only; user code sees it as `foreglow`.

    from foreglow import InvokeError
    def handler(event, context): return {"total": context.invoke("price", {"sku": event["sku"]})}

One thread at a time reads the channel: whoever waits for something (an invocation to run, the answer to a call) leads
while nobody else does, and hands over what belongs to others. So concurrency 1 needs no second thread.
"""

import contextvars
import inspect
import io
import itertools
import json
import os
import random
import select
import socket
import struct
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Protocol

HEADER = struct.Struct("!BBHIII")  # kind, flags, reserved, id, meta length, body length
MORE = 0x01
MAX_META, MAX_BODY = 1 << 20, 16 << 20
SPECIALISE, INVOKE, CALL_RESULT, CANCEL, PING = 1, 2, 3, 4, 5
READY, RESULT, ERROR, CALL, LOG, PONG, CANCEL_CALL = 17, 18, 19, 20, 21, 22, 23
MAX_LOG = 64 << 10  # bytes of output kept per invocation
READ_SIZE = 65536
JSON, BYTES, TEXT = "application/json", "application/octet-stream", "text/plain; charset=utf-8"
RESULT_META = {kind: json.dumps({"content_type": kind}).encode() for kind in (JSON, BYTES)}
LOG_META = {stream: json.dumps({"stream": stream}).encode() for stream in ("out", "err")}


def _no_json(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


_encoder = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, allow_nan=False)
_scan = json.JSONDecoder().scan_once  # type: ignore[attr-defined]
_decoder = json.JSONDecoder(parse_constant=_no_json)  # NaN could come in and not go out again
_restore_hooks: list[Callable[[], Any]] = []
_outputs: list[tuple["Output", io.TextIOWrapper]] = []  # made by a template, taken over by its clones
_unseeded: list[random.Random] = []
_current: "contextvars.ContextVar[Context | None]" = contextvars.ContextVar("foreglow_invocation", default=None)
Frame = tuple[int, int, int, bytes, bytes]  # kind, flags, id, meta, body


class BadPayload(Exception):
    """An invocation whose payload is not what its content type says."""


class InvokeError(Exception):
    """A call to another function failed. `type` and `message` as the callee gave them; `status` says how it ended:
    error, timeout, killed, not-found, full, refused, cancelled, too-large, too-deep ..."""

    def __init__(self, type: str, message: str, status: str = "error") -> None:  # noqa: A002
        super().__init__(f"{type}: {message}")
        self.type, self.message, self.status = type, message, status


def on_restore(hook: Callable[[], Any]) -> Callable[[], Any]:
    """`hook()` is called in each instance before its first invocation, with the environment in place: for what must not be
    the same in all instances, or needs the environment, while the module may have been imported once for all of them
    (function templates). In the order given; what it raises is the instance's init failing. Can be used as a decorator."""
    _restore_hooks.append(hook)
    return hook


class Stream(Protocol):
    """What is asked of a stream socket; in a microVM it is a port."""

    def fileno(self) -> int: ...
    def recv(self, size: int, /) -> bytes: ...
    def recvmsg(self, size: int, ancillary: int, /) -> tuple[bytes, list[tuple[int, int, bytes]], int, Any]: ...
    def sendall(self, content: bytes, /) -> None: ...


class Channel:
    """Frames over a stream socket, shared by all threads of the sandbox."""

    def __init__(self, sock: Stream, begun: bytes = b"") -> None:
        self._sock, self._buffer = sock, bytearray(begun)
        self._sending, self._state = threading.Lock(), threading.Condition()
        self._leading = False
        self.invocations: deque[Frame] = deque()  # nobody has taken them yet
        self.results: dict[int, Frame | None] = {}  # calls somebody waits for
        self.cancelled: set[int] = set()

    def send(self, kind: int, ident: int, meta: bytes = b"", body: bytes = b"", flags: int = 0) -> None:
        head = HEADER.pack(kind, flags, 0, ident, len(meta), len(body)) + meta
        with self._sending:
            self._sock.sendall(head + body if len(body) < READ_SIZE else head)
            if len(body) >= READ_SIZE:
                self._sock.sendall(body)

    def read(self, until: float | None) -> Frame | None:
        """One frame; None when `until` (monotonic) passes first. Ends the process when the node has gone."""
        buffer = self._buffer
        while True:
            stop = 16
            if len(buffer) >= 16:
                kind, flags, _, ident, meta_length, body_length = HEADER.unpack_from(buffer)
                if meta_length > MAX_META or body_length > MAX_BODY:
                    os._exit(1)
                body_at = 16 + meta_length
                stop = body_at + body_length
                if len(buffer) >= stop:
                    frame = (kind, flags, ident, bytes(buffer[16:body_at]), bytes(buffer[body_at:stop]))
                    del buffer[:stop]
                    return frame
            if until is not None:
                poll = select.poll()
                poll.register(self._sock, select.POLLIN)
                if not poll.poll(max(0.0, (until - time.monotonic()) * 1000)):
                    return None
            chunk = self._sock.recv(max(READ_SIZE, stop - len(buffer)))
            if not chunk:
                os._exit(0)
            buffer += chunk

    def wait(self, take: Callable[[], Any], until: float | None = None) -> Any:
        """What `take()` (called with the state locked) finds, as soon as it is not None; None after `until`."""
        state = self._state
        with state:
            while (found := take()) is None:
                left = None if until is None else until - time.monotonic()
                if left is not None and left <= 0:
                    break
                if self._leading:
                    state.wait(left)
                    continue
                self._leading = True
                state.release()
                try:
                    frame = self.read(until)
                finally:
                    state.acquire()
                    self._leading = False
                if frame is not None:
                    self._dispatch(frame)
                    if (found := take()) is not None:
                        break
                    state.notify_all()  # it was for somebody else
            state.notify()  # somebody else must lead now
        return found

    def _dispatch(self, frame: Frame) -> None:
        kind, _, ident, _, _ = frame
        if kind == INVOKE:
            self.invocations.append(frame)
        elif kind == CALL_RESULT and ident in self.results:
            self.results[ident] = frame
        elif kind == CANCEL:
            self.cancelled.add(ident)
        elif kind == PING:
            self.send(PONG, ident)

    def next_invocation(self) -> Frame | None:
        """To be used as `take`."""
        return self.invocations.popleft() if self.invocations else None


class Call:
    """A call under way; `result()` waits for it."""

    def __init__(self, context: "Context", ident: int, name: str) -> None:
        self._context, self._id, self._name = context, ident, name
        self._frame: Frame | None = None

    def result(self, timeout: float | None = None) -> Any:
        """The callee's answer (JSON decoded, other content as bytes). `timeout` in seconds. Raises InvokeError."""
        context = self._context
        if self._frame is None:
            until = context._until if timeout is None else min(context._until, time.monotonic() + timeout)
            frame = context._channel.wait(self._take, until)
            if not frame:
                context._channel.results.pop(self._id, None)
                context._channel.send(CANCEL_CALL, self._id)
                if frame is False:
                    raise InvokeError("Cancelled", f"the invocation that called {self._name} is over", "cancelled")
                raise InvokeError("Timeout", f"no answer from {self._name} in time", "timeout")
            self._frame = frame
        head, body = scan(self._frame[3]), self._frame[4]
        if head.get("status", "ok") != "ok":
            error = head.get("error") or {}
            raise InvokeError(error.get("type", "InvokeError"), error.get("message", head["status"]), head["status"])
        return decode(head.get("content_type", ""), body)

    def _take(self) -> Frame | bool | None:
        channel = self._context._channel
        if self._context._id in channel.cancelled or self._id not in channel.results:
            return False
        return channel.results.pop(self._id) if channel.results[self._id] else None


class Context:
    """What a handler is told, and how it calls others. `deadline` is seconds since the epoch."""

    _numbers = itertools.count(1)

    def __init__(self, instance: "Instance", ident: int, head: dict[str, Any]) -> None:
        self.function_name, self.function_version = instance.function_name, instance.function_version
        self.memory_limit_in_mb = instance.memory_mb
        self.invocation_id, self.trace_id = head.get("invocation", ""), head.get("trace_id", "")
        seconds = float(head.get("deadline_s", 3600.0))
        self.deadline, self._until = time.time() + seconds, time.monotonic() + seconds
        self._channel, self._id, self._over = instance.channel, ident, False
        self._calls: list[int] = []
        self._left, self._pending = MAX_LOG, {"out": b"", "err": b""}

    def get_remaining_time_in_millis(self) -> int:
        return max(0, int((self._until - time.monotonic()) * 1000))

    def start(self, name: str, payload: Any = None) -> Call:
        """Calls another function without waiting. Raises InvokeError once the invocation has ended."""
        if self._over:
            raise InvokeError("InvocationOver", "this invocation has ended; it cannot call any more", "refused")
        content_type, body = encode(payload)
        ident = next(self._numbers) & 0xFFFFFFFF
        self._calls.append(ident)
        self._channel.results[ident] = None
        meta = {"invocation": self._id, "function": name, "content_type": content_type, "asynchronous": False}
        self._channel.send(CALL, ident, dump(meta), body)
        return Call(self, ident, name)

    def invoke(self, name: str, payload: Any = None, timeout: float | None = None) -> Any:
        """Calls another function and waits for its answer. Raises InvokeError."""
        return self.start(name, payload).result(timeout)

    def invoke_all(self, calls: Iterable[tuple[str, Any]], timeout: float | None = None) -> list[Any]:
        """Makes all calls at the same time; answers in order. Raises the first InvokeError, after all have ended."""
        until = None if timeout is None else time.monotonic() + timeout
        results: list[Any] = []
        failed: InvokeError | None = None
        for call in [self.start(name, payload) for name, payload in calls]:
            try:
                results.append(call.result(None if until is None else max(0.0, until - time.monotonic())))
            except InvokeError as error:
                failed = failed or error
        if failed is not None:
            raise failed
        return results

    def _write(self, stream: str, text: bytes) -> None:
        self._pending[stream] += text[: MAX_LOG + 1]
        if b"\n" in text or len(self._pending[stream]) > 8192:
            self._flush()

    def _flush(self) -> None:
        """Output as LOG frames, up to MAX_LOG bytes of it."""
        for stream, text in self._pending.items():
            self._pending[stream] = b""
            if len(text) > self._left > 0:
                text = text[: self._left] + b"\n[the rest of this invocation's output is left out]\n"  # noqa: PLW2901
            if text and self._left > 0:
                self._left -= len(text)
                self._channel.send(LOG, self._id, LOG_META[stream], text)

    def _end(self) -> None:
        self._flush()
        self._over = True
        for ident in self._calls:
            self._channel.results.pop(ident, None)
        self._channel.cancelled.discard(self._id)


class Request:
    """What an http handler gets. `headers`: names in lower case, of a repeated one the last; `query` is not decoded."""

    def __init__(self, head: dict[str, Any], body: bytes) -> None:
        self.method, self.path, self.query = head.get("method", "GET"), head.get("path", "/"), head.get("query", "")
        self.headers = {name.lower(): value for name, value in head.get("headers", ())}
        self.body = body

    @property
    def text(self) -> str:
        return self.body.decode()

    def json(self) -> Any:
        return json.loads(self.body)


class Output(io.RawIOBase):
    """sys.stdout or sys.stderr: each write goes to the log of the invocation it belongs to."""

    def __init__(self, stream: str, descriptor: int) -> None:
        super().__init__()
        self.instance: Instance
        self._stream, self._descriptor = stream, descriptor

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def write(self, text: Any) -> int:
        self.instance.context()._write(self._stream, bytes(text))
        return len(text)


def scan(meta: bytes) -> Any:
    """Meta the node wrote, which is JSON without space around it: the short way through the decoder."""
    return _scan(meta.decode(), 0)[0]


def dump(value: Any) -> bytes:
    return _encoder.encode(value).encode("utf-8", "replace")


def encode(value: Any) -> tuple[str, bytes]:
    """(content type, bytes) of a payload or result. Raises TypeError naming what JSON cannot hold."""
    return (BYTES, bytes(value)) if isinstance(value, bytes | bytearray | memoryview) else (JSON, dump(value))


def decode(content_type: str, body: bytes) -> Any:
    if content_type and not content_type.startswith(JSON):
        return body
    return _decoder.decode(body.decode(json.detect_encoding(body), "surrogatepass")) if body else None


def payload(content_type: str, body: bytes) -> Any:
    """The event. Raises BadPayload: not the handler's fault."""
    try:
        return decode(content_type, body)
    except (ValueError, RecursionError) as error:
        raise BadPayload(f"the payload is not the JSON its content type says: {error}") from None


def describe(error: BaseException) -> dict[str, str]:
    """{type, message, stack} of an exception, without the runtime's own frames. Never raises."""
    try:
        message = f"the handler called exit({error.code!r})" if isinstance(error, SystemExit) else str(error)
        trail = [whole := traceback.TracebackException.from_exception(error)]
        for one in trail:
            kept = [line for line in one.stack if line.filename != __file__ and "<frozen importlib" not in line.filename]
            one.stack = traceback.StackSummary.from_list(kept)
            trail += [other for other in (one.__cause__, one.__context__) if other is not None]
        stack = "".join(whole.format())
    except Exception as broken:
        message = stack = f"the error cannot be described: {type(broken).__name__}"
    return {"type": type(error).__name__, "message": message[:4096], "stack": stack[-32768:]}


def reseed(entropy: bytes, drawn: bool = True) -> None:
    """No two clones of one template draw the same numbers: fresh entropy into every generator that has state. `drawn`: user code
    may have drawn from OpenSSL's; until somebody does, it has no state, and then draws its seed from the kernel."""
    random.seed(entropy + os.urandom(16))
    modules: Any = sys.modules  # not copied: that would write to every module
    if drawn and "ssl" in modules:
        modules["ssl"].RAND_add(entropy + os.urandom(16), 48.0)
    if "uuid" in modules:
        modules["uuid"]._node = modules["uuid"]._last_timestamp = None
    if "tempfile" in modules:
        modules["tempfile"]._name_sequence = None
    if "numpy.random" in modules:
        modules["numpy.random"].seed(struct.unpack("8I", os.urandom(32)))
    for generator in _unseeded:
        generator.seed(entropy + os.urandom(16))


class Withheld(dict):  # type: ignore[type-arg]
    """The environment while a function template is made: values are not there yet, and who asks for one is noted. Asking for
    all is asking for each: what is made of it would be wrong in every instance."""

    def __init__(self, present: dict[Any, Any], names: Iterable[str]) -> None:
        super().__init__(present)
        self._names, self.asked = frozenset(map(os.fsencode, names)), set[str]()

    def __getitem__(self, name: Any) -> Any:
        if name in self._names:
            self.asked.add(os.fsdecode(name))
        return super().__getitem__(name)

    def __iter__(self) -> Any:
        self.asked.update(map(os.fsdecode, self._names))
        return super().__iter__()

    def __len__(self) -> int:
        self.asked.update(map(os.fsdecode, self._names))
        return super().__len__()


def _withhold(names: Iterable[str]) -> Withheld:
    withheld = Withheld(os.environ._data, names)  # type: ignore[attr-defined]
    _put_environment(withheld)
    return withheld


def _put_environment(values: dict[Any, Any]) -> None:
    views: Any = (os.environ, os.environb)
    for view in views:
        view._data = values


def _put_in(environment: dict[str, str]) -> None:
    for name, value in environment.items():  # `update` asks what kind of mapping it is given: many lines, in every clone
        os.environ[name] = value


def _take_output(instance: "Instance") -> None:
    """sys.stdout and sys.stderr write to the invocations of `instance` from now on."""
    if not _outputs:
        for descriptor, stream in ((1, "out"), (2, "err")):
            output: Any = Output(stream, descriptor)
            _outputs.append((output, io.TextIOWrapper(output, "utf-8", "backslashreplace", write_through=True)))
    (out, sys.stdout), (err, sys.stderr) = _outputs
    out.instance = err.instance = instance


def _note_unseeded() -> Callable[[], None]:
    """Generators made from now on without a seed get a new one in each clone; what undoes this is returned."""
    seed = random.Random.seed

    def noting(self: random.Random, a: Any = None, version: int = 2) -> None:
        if a is None and type(self) is random.Random:
            _unseeded.append(self)
        seed(self, a, version)

    random.Random.seed = noting  # type: ignore[method-assign]

    def undo() -> None:
        random.Random.seed = seed  # type: ignore[method-assign]

    return undo


class Instance:
    """A sandbox that has become a version of a function. `load` must come before `run`."""

    def __init__(self, channel: Channel, meta: dict[str, Any]) -> None:
        name, _, self.function_version = meta.get("version", "").rpartition(":")
        self.function_name = name.partition("/")[2]
        self.memory_mb, self.concurrency = int(meta.get("memory_mb", 0)), max(1, int(meta.get("concurrency", 1)))
        self.kind, self.channel, self._handler_name = meta.get("kind", "event"), channel, meta.get("handler", "")
        self.original = "withheld" in meta  # of a function template: its clones become instances
        self.exercise = int(meta.get("exercise", 0))  # invocations after which nobody is to be able to tell that it ran
        self._running, self._threads = dict[int, Context](), threading.local()
        self.outside = Context(self, 0, {})  # output of no invocation
        self.noted: Callable[[], None] = lambda: None  # ends what a function template's original takes notes of
        self.module_name = ""
        self._handler: Callable[..., Any] = print
        self._is_async = False

    def context(self) -> Context:
        """Of the running code. A thread that a handler made has none: it is clear only when one invocation runs."""
        context = _current.get()
        if context is not None and not context._over:
            return context
        running = list(self._running.values())
        return running[0] if len(running) == 1 else self.outside

    def load(self) -> None:
        """Imports `module:function`. Raises whatever the module does; LookupError when the function is not there."""
        if self.kind not in ("event", "http"):
            raise ValueError(f"kind {self.kind} does not run here yet: deploy the function as event or http")
        self.module_name, _, name = self._handler_name.partition(":")
        __import__(self.module_name)
        found: Any = sys.modules[self.module_name]
        for part in name.split("."):
            if not hasattr(found, part):
                raise LookupError(f"handler {self._handler_name}: {self.module_name} has no {name}")
            found = getattr(found, part)
        if not callable(found):
            raise TypeError(f"handler {self._handler_name} is not callable")
        self._handler, self._is_async = found, inspect.iscoroutinefunction(found)

    def moved(self, channel: Channel) -> None:
        """This process is a clone, with a channel of its own."""
        self.channel = channel
        self.outside = Context(self, 0, {})

    def work(self) -> None:
        while True:
            self.run(self.channel.wait(self.channel.next_invocation))

    def run(self, frame: Frame) -> None:
        _, _, ident, meta, body = frame
        head = scan(meta)
        context = self._running[ident] = Context(self, ident, head)
        token = _current.set(context)
        try:
            if self.kind == "http":
                meta, body = self._http(self._call(Request(head.get("http") or {}, body), context), context)
            else:
                content_type, body = encode(self._call(payload(head.get("content_type", ""), body), context))
                meta = RESULT_META[content_type]
            if len(body) > MAX_BODY:
                raise ValueError(f"the result has {len(body)} bytes; the limit is {MAX_BODY}")
            kind = RESULT
        except BaseException as error:
            kind, meta, body = ERROR, dump(describe(error) | {"payload": isinstance(error, BadPayload)}), b""
        context._end()
        _current.reset(token)
        del self._running[ident]
        self.channel.send(kind, ident, meta, body)

    def _call(self, event: Any, context: Context) -> Any:
        if not self._is_async:
            return self._handler(event, context)
        import asyncio

        if not hasattr(self._threads, "loop"):
            self._threads.loop = asyncio.new_event_loop()
        return self._threads.loop.run_until_complete(self._handler(event, context))

    def _http(self, value: Any, context: Context) -> tuple[bytes, bytes]:
        """Meta and last body of the answer; a generator's parts are sent on the way."""
        status, headers = 200, dict[str, Any]()
        if isinstance(value, tuple) and len(value) == 2:
            status, value = value
        elif isinstance(value, dict) and value and value.keys() <= {"status", "headers", "body"}:
            status, headers, value = value.get("status", 200), value.get("headers") or {}, value.get("body", b"")
        pairs = [[str(k), str(v)] for k, v in (headers.items() if isinstance(headers, dict) else headers)]
        streamed = inspect.isgenerator(value)
        kind, body = (TEXT, value.encode()) if isinstance(value, str) else (TEXT, b"") if streamed else encode(value)
        kind = next((v for k, v in pairs if k.lower() == "content-type"), kind)
        meta = dump({"content_type": kind, "http": {"status": int(status), "headers": pairs}})
        for chunk in value if streamed else ():
            self.channel.send(RESULT, context._id, meta, chunk.encode() if isinstance(chunk, str) else bytes(chunk), MORE)
            meta = b"{}"
        return meta, body


Attach = Callable[[dict[str, Any], list[int]], None]


def become(sock: Stream, attach: Attach) -> Instance:
    """Waits for SPECIALISE and becomes that version. `attach(meta, descriptors)` brings the code in and locks the sandbox;
    no user code runs before it has returned. With `withheld` in the meta (names), it becomes the original of a function
    template: the module is imported, and the rest is left to `resume` in each clone."""
    channel, ident, meta, descriptors = _specialised(sock)
    instance = Instance(channel, meta)

    def load(ready: dict[str, Any]) -> None:
        reseed(bytes.fromhex(meta.get("entropy", "")), drawn=False)
        _put_in(meta.get("environment", {}))
        sys.path[:0] = meta.get("paths", ())
        _take_output(instance)
        if "withheld" in meta:
            withheld, instance.noted = _withhold(meta["withheld"]), _note_unseeded()
            try:
                instance.load()
            finally:
                ready["asked"] = sorted(withheld.asked)
        else:
            instance.load()
            _restored()

    _ready(instance, ident, lambda: attach(meta, descriptors), load)
    return instance


def resume(instance: Instance, sock: Stream, attach: Attach) -> None:
    """In a clone of an original: waits for SPECIALISE, is locked by `attach`, becomes an instance of its own, and serves.
    Never returns."""
    channel, ident, meta, descriptors = _specialised(sock)
    instance.moved(channel)

    def restore(_ready: dict[str, Any]) -> None:
        instance.noted()
        reseed(bytes.fromhex(meta.get("entropy", "")))
        _put_environment(dict(os.environ._data))  # type: ignore[attr-defined]
        _put_in(meta.get("environment", {}))
        _restored()

    _ready(instance, ident, lambda: attach(meta, descriptors), restore)
    _work(instance)


def _specialised(sock: Stream) -> tuple[Channel, int, dict[str, Any], list[int]]:
    chunk, passed, _, _ = sock.recvmsg(READ_SIZE, socket.CMSG_SPACE(32))
    descriptors = [number for _, _, packed in passed for (number,) in struct.iter_unpack("i", packed)]
    channel = Channel(sock, chunk)
    _, _, ident, head, _ = channel.read(None) or os._exit(0)
    return channel, ident, scan(head), descriptors


def _restored() -> None:
    for hook in _restore_hooks:
        hook()


def _ready(instance: Instance, ident: int, attach: Callable[[], None], load: Callable[[dict[str, Any]], None]) -> None:
    """The last steps, and word of how they went."""
    began, ready = time.perf_counter(), dict[str, Any]()
    try:
        attach()
    except BaseException as error:
        ready = {"error": describe(error), "step": "attach"}
    else:
        began = time.perf_counter()
        try:
            load(ready)
        except BaseException as error:
            ready["error"] = describe(error)
    elapsed_ms = (time.perf_counter() - began) * 1000
    ready["init_ms"] = elapsed_ms if elapsed_ms < 10 else int(elapsed_ms)  # writing a fraction is dear in an emulated clone
    instance.outside._flush()
    instance.channel.send(READY, ident, dump(ready))


def not_made(descriptor: int, error: BaseException) -> None:
    """Word to the node at the other end of `descriptor`: no sandbox came of this process."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, descriptor)
    Channel(sock).send(READY, 0, dump({"init_ms": 0.0, "step": "sandbox", "error": describe(error)}))


def serve(sock: Stream, attach: Attach) -> None:
    """All of a guest's life, from standby on. Never returns: the process ends with its channel."""
    live(become(sock, attach), sock, attach)


def live(instance: Instance, sock: Stream, attach: Attach, hold: Callable[[], None] = lambda: None) -> None:
    """The life of what has become an instance. Never returns. Where clones are made of the whole machine, the original of a
    function template goes on here as the instance it is in each of them; `hold()` returns in each clone."""
    if instance.original:
        hold()
        resume(instance, sock, attach)
    _work(instance)


def _work(instance: Instance) -> None:
    for _ in range(instance.concurrency - 1):
        threading.Thread(target=instance.work, daemon=True).start()
    instance.work()
