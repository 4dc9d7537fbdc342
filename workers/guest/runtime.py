"""Inside a sandbox: reads frames, runs the handler, answers. Standard library only; user code sees it as `foreglow`.

    from foreglow import InvokeError        # what context.invoke raises
    def handler(event, context): return {"total": context.invoke("price", {"sku": event["sku"]})}

One thread at a time reads the channel: whoever waits for something (an invocation to run, the answer to a call) leads
while nobody else does, and hands over what belongs to others. So concurrency 1 needs no second thread.
"""

import contextvars
import importlib
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
import types
from collections import deque

HEADER = struct.Struct("!BBHIII")  # kind, flags, reserved, id, meta length, body length
MORE = 0x01
MAX_META, MAX_BODY = 1 << 20, 16 << 20
SPECIALISE, INVOKE, CALL_RESULT, CANCEL, PING = 1, 2, 3, 4, 5
READY, RESULT, ERROR, CALL, LOG, PONG, CANCEL_CALL = 17, 18, 19, 20, 21, 22, 23
MAX_LOG = 64 << 10  # bytes of output kept per invocation
JSON, BYTES, TEXT = "application/json", "application/octet-stream", "text/plain; charset=utf-8"
_JSON_RESULT, _BYTES_RESULT = b'{"content_type":"application/json"}', b'{"content_type":"application/octet-stream"}'

_dump = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode
_current = contextvars.ContextVar("foreglow_invocation", default=None)


class InvokeError(Exception):
    """A call to another function failed. `type` and `message` as the callee gave them; `status` says how it ended:
    error, timeout, killed, not-found, full, refused, cancelled, too-large, too-deep ..."""

    def __init__(self, type, message, status="error"):  # noqa: A002
        super().__init__(f"{type}: {message}")
        self.type, self.message, self.status = type, message, status


class Channel:
    """Frames over a stream socket, shared by all threads of the sandbox."""

    def __init__(self, sock):
        self._sock = sock
        self._buffer = bytearray()
        self._sending = threading.Lock()
        self._state = threading.Condition(threading.Lock())
        self._leading = False
        self.invocations = deque()  # frames nobody has taken yet
        self.results = {}  # id of a waited-for call -> None, then its frame
        self.cancelled = set()

    def send(self, kind, ident, meta=b"", body=b"", flags=0):
        head = HEADER.pack(kind, flags, 0, ident, len(meta), len(body)) + meta
        with self._sending:
            if len(body) < 65536:
                self._sock.sendall(head + body)
            else:
                self._sock.sendall(head)
                self._sock.sendall(body)

    def first(self):
        """The first frame and the descriptors that came with it."""
        chunk, descriptors, _, _ = socket.recv_fds(self._sock, 65536, 8)
        self._buffer += chunk
        return self._read(None), descriptors

    def _whole(self):
        buffer = self._buffer
        if len(buffer) < 16:
            return None, 16
        kind, flags, _, ident, meta_length, body_length = HEADER.unpack_from(buffer)
        if meta_length > MAX_META or body_length > MAX_BODY:
            raise EOFError("a frame over the limit")
        at = 16 + meta_length
        stop = at + body_length
        if len(buffer) < stop:
            return None, stop
        frame = (kind, flags, ident, bytes(buffer[16:at]), bytes(buffer[at:stop]))
        del buffer[:stop]
        return frame, 0

    def _read(self, deadline):
        """One frame; None when `deadline` (monotonic) passes first. Ends the process when the node has gone."""
        while True:
            frame, wanted = self._whole()
            if frame is not None:
                return frame
            if deadline is not None:
                poll = select.poll()
                poll.register(self._sock, select.POLLIN)
                if not poll.poll(max(0.0, (deadline - time.monotonic()) * 1000)):
                    return None
            chunk = self._sock.recv(max(65536, wanted - len(self._buffer)))
            if not chunk:
                os._exit(0)
            self._buffer += chunk

    def wait(self, take, deadline=None):
        """What `take()` (called with the state locked) finds, as soon as it is not None; None after `deadline`."""
        state = self._state
        with state:
            while True:
                found = take()
                if found is not None:
                    return found
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    return None
                if self._leading:
                    state.wait(left)
                    continue
                self._leading = True
                state.release()
                try:
                    frame = self._read(deadline)
                finally:
                    state.acquire()
                    self._leading = False
                    state.notify_all()
                if frame is not None:
                    self._dispatch(frame)

    def _dispatch(self, frame):
        kind, _, ident, _, _ = frame
        if kind == INVOKE:
            self.invocations.append(frame)
        elif kind == CALL_RESULT:
            if ident in self.results:
                self.results[ident] = frame
        elif kind == CANCEL:
            self.cancelled.add(ident)
        elif kind == PING:
            self.send(PONG, ident)

    def next_invocation(self):
        return self.wait(lambda: self.invocations.popleft() if self.invocations else None)


class Call:
    """A call under way. `result()` waits for it; an instance dies with its invocation."""

    def __init__(self, context, ident, name):
        self._context, self._id, self._name = context, ident, name
        self._frame = None

    def result(self, timeout=None):
        """The callee's answer (JSON decoded, other content as bytes). Raises InvokeError; `timeout` in seconds."""
        context, channel = self._context, self._context._channel
        if self._frame is None:
            until = context._until if timeout is None else min(context._until, time.monotonic() + timeout)
            frame = channel.wait(self._take, until)
            if frame is None or frame is False:
                channel.results.pop(self._id, None)
                channel.send(CANCEL_CALL, self._id)
                if frame is False:
                    raise InvokeError("Cancelled", f"the invocation that called {self._name} is over", "cancelled")
                raise InvokeError("Timeout", f"no answer from {self._name} in time", "timeout")
            self._frame = frame
        _, _, _, meta, body = self._frame
        head = json.loads(meta)
        if head.get("status", "ok") != "ok":
            error = head.get("error") or {}
            raise InvokeError(error.get("type", "InvokeError"), error.get("message", head["status"]), head["status"])
        return decode(head.get("content_type", ""), body)

    def _take(self):
        context, results = self._context, self._context._channel.results
        if context._over or context._id in context._channel.cancelled or self._id not in results:
            return False
        return results.pop(self._id) if results[self._id] is not None else None


class Context:
    """What a handler is told, and how it calls others. `deadline` is seconds since the epoch."""

    InvokeError = InvokeError
    _numbers = itertools.count(1)

    def __init__(self, instance, ident, head):
        self.function_name, self.function_version = instance.function_name, instance.function_version
        self.memory_limit_in_mb = instance.memory_mb
        self.invocation_id, self.trace_id = head.get("invocation", ""), head.get("trace_id", "")
        seconds = float(head.get("deadline_s", 3600.0))
        self.deadline, self._until = time.time() + seconds, time.monotonic() + seconds
        self._channel, self._id, self._over = instance.channel, ident, False
        self._calls, self._log = [], Log(instance.channel, ident)

    def get_remaining_time_in_millis(self):
        return max(0, int((self._until - time.monotonic()) * 1000))

    def start(self, name, payload=None):
        """Calls another function without waiting; the returned Call's `result()` does."""
        if self._over:
            raise InvokeError("InvocationOver", "this invocation has ended; it cannot call any more", "refused")
        content_type, body = encode(payload)
        ident = next(self._numbers) & 0xFFFFFFFF
        self._calls.append(ident)
        self._channel.results[ident] = None
        meta = {"invocation": self._id, "function": name, "content_type": content_type, "asynchronous": False}
        self._channel.send(CALL, ident, _dump(meta).encode(), body)
        return Call(self, ident, name)

    def invoke(self, name, payload=None, timeout=None):
        """Calls another function and waits. Raises InvokeError."""
        return self.start(name, payload).result(timeout)

    def invoke_all(self, calls, timeout=None):
        """Calls [(name, payload), ...] at the same time; their results in order. Raises the first InvokeError, after all ended."""
        until = None if timeout is None else time.monotonic() + timeout
        results, failed = [], None
        for call in [self.start(name, payload) for name, payload in calls]:
            try:
                results.append(call.result(None if until is None else max(0.0, until - time.monotonic())))
            except InvokeError as error:
                failed = failed or error
        if failed is not None:
            raise failed
        return results

    def _end(self):
        self._over = True
        for ident in self._calls:
            self._channel.results.pop(ident, None)
        self._channel.cancelled.discard(self._id)


class Headers(dict):
    """Names in lower case; looked up in any case. Of a repeated header the last value counts."""

    def __init__(self, pairs):
        super().__init__((name.lower(), value) for name, value in pairs)

    def __getitem__(self, name):
        return super().__getitem__(name.lower())

    def __contains__(self, name):
        return super().__contains__(name.lower())

    def get(self, name, default=None):
        return super().get(name.lower(), default)


class Request:
    """What an http handler gets: method, path, query (undecoded), headers, body (bytes), text, json()."""

    def __init__(self, head, body):
        self.method, self.path, self.query = head.get("method", "GET"), head.get("path", "/"), head.get("query", "")
        self.headers, self.body = Headers(head.get("headers", ())), body

    @property
    def text(self):
        return self.body.decode()

    def json(self):
        return json.loads(self.body)


class Log:
    """Output of one invocation: whole lines as LOG frames, up to MAX_LOG bytes."""

    def __init__(self, channel, ident):
        self._channel, self._id, self._left = channel, ident, MAX_LOG
        self._pending = {"out": b"", "err": b""}

    def write(self, stream, text):
        if self._left > 0:
            pending = self._pending[stream] + text
            if b"\n" in text or len(pending) > 8192:
                self._send(stream, pending)
                pending = b""
            self._pending[stream] = pending

    def flush(self):
        for stream, pending in self._pending.items():
            if pending:
                self._pending[stream] = b""
                self._send(stream, pending)

    def _send(self, stream, text):
        if len(text) > self._left:
            text = text[: self._left] + b"\n[the rest of this invocation's output is left out]\n"
        self._left -= len(text)
        self._channel.send(LOG, self._id, b'{"stream":"out"}' if stream == "out" else b'{"stream":"err"}', text)


class Output(io.RawIOBase):
    """sys.stdout or sys.stderr: gives each write to the log of the invocation it belongs to."""

    def __init__(self, instance, stream):
        super().__init__()
        self._instance, self._stream = instance, stream

    def writable(self):
        return True

    def fileno(self):
        return 1 if self._stream == "out" else 2

    def write(self, text):
        self._instance.log().write(self._stream, bytes(text))
        return len(text)


def encode(value):
    """(content type, bytes) of a payload or result. Raises TypeError naming what JSON cannot hold."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        return BYTES, bytes(value)
    return JSON, _dump(value).encode()


def decode(content_type, body):
    if content_type.startswith(JSON):
        return json.loads(body) if body else None
    return body


def describe(error):
    """{type, message, stack} of an exception, without the runtime's own frames."""
    tb = error.__traceback__
    while tb is not None and tb.tb_frame.f_code.co_filename in (__file__, "<frozen importlib._bootstrap>"):
        tb = tb.tb_next
    if isinstance(error, SyntaxError):
        tb = None
    stack = "".join(traceback.format_exception(type(error), error, tb))[-32768:]
    message = f"the handler called exit({error.code!r})" if isinstance(error, SystemExit) else str(error)[:4096]
    return {"type": type(error).__name__, "message": message, "stack": stack}


def reseed(entropy):
    """No two clones of one template may draw the same numbers: kernel entropy into every generator that has state."""
    random.seed(entropy + os.urandom(16))
    modules = sys.modules
    if "ssl" in modules:
        modules["ssl"].RAND_add(entropy, float(len(entropy)))
    if "uuid" in modules:
        modules["uuid"]._node = modules["uuid"]._last_timestamp = None
    if "tempfile" in modules:
        modules["tempfile"]._name_sequence = None
    if "numpy.random" in modules:
        modules["numpy.random"].seed(struct.unpack("8I", (entropy * 32)[:32]))


class Instance:
    """A sandbox that has become a version of a function."""

    def __init__(self, channel, meta):
        name, _, self.function_version = meta.get("version", "").rpartition(":")
        self.function_name = name.partition("/")[2]
        self.memory_mb, self.concurrency = int(meta.get("memory_mb", 0)), max(1, int(meta.get("concurrency", 1)))
        self.kind, self.channel = meta.get("kind", "event"), channel
        self._log, self._running, self._threads = Log(channel, 0), {}, threading.local()

    def log(self):
        context = _current.get()
        if context is not None and not context._over:
            return context._log
        running = list(self._running.values())  # a thread of the handler: clear only when one invocation runs
        return running[0]._log if len(running) == 1 else self._log

    def load(self, handler):
        """Imports `module:function`. Raises whatever the module does; LookupError when the function is not there."""
        if self.kind not in ("event", "http"):
            raise ValueError(f"kind {self.kind} is not run by this runtime: deploy the function as http or event")
        module, _, name = handler.partition(":")
        found = importlib.import_module(module)
        for part in name.split("."):
            if not hasattr(found, part):
                raise LookupError(f"handler {handler}: {module} has no {name}")
            found = getattr(found, part)
        if not callable(found):
            raise TypeError(f"handler {handler} is not callable")
        self._handler = found
        self._is_async = inspect.iscoroutinefunction(found)

    def work(self):
        while True:
            self.run(self.channel.next_invocation())

    def run(self, frame):
        _, _, ident, meta, body = frame
        head = json.loads(meta)
        context = Context(self, ident, head)
        self._running[ident] = context
        token = _current.set(context)
        try:
            if self.kind == "http":
                answer = self._answer_http(self._call(Request(head.get("http") or {}, body), context), ident, context)
            else:
                content_type, answer_body = encode(self._call(decode(head.get("content_type") or JSON, body), context))
                answer = (RESULT, ident, _JSON_RESULT if content_type is JSON else _BYTES_RESULT, answer_body)
            if len(answer[3]) > MAX_BODY:
                raise ValueError(f"the result has {len(answer[3])} bytes; the limit is {MAX_BODY}")
        except BaseException as error:
            answer = (ERROR, ident, _dump(describe(error)).encode("utf-8", "replace"), b"")
        context._log.flush()
        context._end()
        _current.reset(token)
        del self._running[ident]
        self.channel.send(*answer)

    def _call(self, event, context):
        if not self._is_async:
            return self._handler(event, context)
        import asyncio

        loop = getattr(self._threads, "loop", None)
        if loop is None:
            loop = self._threads.loop = asyncio.new_event_loop()
        return loop.run_until_complete(self._handler(event, context))

    def _answer_http(self, value, ident, context):
        status, headers = 200, {}
        if isinstance(value, tuple) and len(value) == 2:
            status, value = value
        elif isinstance(value, dict) and value and value.keys() <= {"status", "headers", "body"}:
            status, headers, value = value.get("status", 200), value.get("headers") or {}, value.get("body", b"")
        pairs = [[str(k), str(v)] for k, v in (headers.items() if isinstance(headers, dict) else headers)]
        streamed = isinstance(value, types.GeneratorType)
        content_type, body = (TEXT, b"") if streamed else (TEXT, value.encode()) if isinstance(value, str) else encode(value)
        content_type = next((v for k, v in pairs if k.lower() == "content-type"), content_type)
        meta = _dump({"content_type": content_type, "http": {"status": int(status), "headers": pairs}}).encode()
        if streamed:
            for chunk in value:
                context._log.flush()
                self.channel.send(RESULT, ident, meta, chunk.encode() if isinstance(chunk, str) else bytes(chunk), MORE)
                meta = b"{}"
        return RESULT, ident, meta, body


def serve(sock, attach):
    """Waits for SPECIALISE, becomes that version, and runs invocations until the node closes the channel.

    `attach(meta, descriptors)` brings the code in and locks the sandbox; no user code runs before it returned.
    """
    channel = Channel(sock)
    (kind, _, ident, meta_bytes, _), descriptors = channel.first()
    meta = json.loads(meta_bytes)
    began = time.perf_counter()
    ready = {"init_ms": 0.0}
    instance = Instance(channel, meta)
    try:
        if kind != SPECIALISE:
            raise ValueError(f"the first frame has kind {kind}, not SPECIALISE")
        attach(meta, descriptors)
        began = time.perf_counter()
    except BaseException as error:
        ready["error"], ready["step"] = describe(error), "attach"
    else:
        reseed(bytes.fromhex(meta.get("entropy", "")))
        os.environ.update(meta.get("environment", {}))
        sys.path[:0] = meta.get("paths", [])
        for stream, name in (("out", "stdout"), ("err", "stderr")):
            output = io.TextIOWrapper(Output(instance, stream), "utf-8", "backslashreplace", write_through=True)
            setattr(sys, name, output)
            setattr(sys, f"__{name}__", output)
        try:
            instance.load(meta["handler"])
        except BaseException as error:
            ready["error"] = describe(error)
    ready["init_ms"] = (time.perf_counter() - began) * 1000
    instance._log.flush()
    channel.send(READY, ident, _dump(ready).encode("utf-8", "replace"))
    for _ in range(instance.concurrency - 1):
        threading.Thread(target=instance.work, daemon=True).start()
    instance.work()
