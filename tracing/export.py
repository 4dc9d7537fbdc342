"""Records into OpenTelemetry spans, and the exporter that sends them over OTLP without ever holding anybody up."""

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from functools import lru_cache

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from graph.calls import StartKind
from tracing import attributes
from tracing.propagation import parse
from tracing.records import STEPS, InvocationRecord

_STARTED_COLD = (StartKind.COLD, StartKind.STANDBY)
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)

_log = logging.getLogger(__name__)


def spans_of(records: Iterable[InvocationRecord]) -> list[ReadableSpan]:
    """One span a record, with the ids the platform gave out: the trace id, and the invocation id as span id."""
    return [_span(record) for record in records]


def _span(record: InvocationRecord) -> ReadableSpan:
    name = record.function.removeprefix(f"{record.tenant}/")
    trace_id = int(record.trace_id, 16)
    parent = SpanContext(trace_id, int(record.parent_id, 16), is_remote=True, trace_flags=_SAMPLED) if record.parent_id else None
    outside = parse(record.link) if record.link else None
    links = []
    if outside is not None:
        flags = TraceFlags(TraceFlags.SAMPLED if outside.sampled else TraceFlags.DEFAULT)
        links.append(Link(SpanContext(int(outside.trace_id, 16), int(outside.span_id, 16), is_remote=True, trace_flags=flags)))
    return ReadableSpan(
        name=name,
        context=SpanContext(trace_id, int(record.invocation_id, 16), is_remote=False, trace_flags=_SAMPLED),
        parent=parent,
        resource=_resource(record.tenant, name, record.version),
        attributes=_attributes(record, name),
        links=links,
        kind=SpanKind.SERVER,
        status=Status(StatusCode.OK) if record.status == "ok" else Status(StatusCode.ERROR, record.error_type or record.status),
        start_time=int(record.sent_at * 1e9),
        end_time=int(max(record.sent_at, record.ended_at) * 1e9),
    )


def _attributes(record: InvocationRecord, name: str) -> dict[str, str | bool | float]:
    told: dict[str, str | bool | float] = {
        attributes.FAAS_NAME: name,
        attributes.FAAS_INVOCATION_ID: record.invocation_id,
        attributes.FAAS_COLDSTART: record.start in _STARTED_COLD,
        attributes.FAAS_TRIGGER: attributes.TRIGGER_OTHER if record.parent_id else attributes.TRIGGER_HTTP,
        attributes.START: record.start.value,
        attributes.WAIT_MS: record.timings.start_ms,
        attributes.STATUS: record.status,
    }
    for step in STEPS:
        took = getattr(record.timings, step)
        if took:
            told[attributes.STEP_MS.format(step)] = took
    optional = {
        attributes.NODE: record.node,
        attributes.DECISION_ID: record.decision_id,
        attributes.ERROR_TYPE: record.error_type,
        attributes.CODE_FROM: record.timings.code_from,
    }
    told.update({attribute: value for attribute, value in optional.items() if value})
    return told


@lru_cache(maxsize=1024)
def _resource(tenant: str, name: str, version: int) -> Resource:
    return Resource(
        {
            attributes.SERVICE_NAME: name,
            attributes.SERVICE_NAMESPACE: tenant,
            attributes.FAAS_NAME: name,
            attributes.FAAS_VERSION: str(version),
        }
    )


class Exporter:
    """Sends records as spans to an OTLP endpoint, on a thread of its own. Without an endpoint it does nothing at all.

    `submit` never blocks: what does not fit into the queue is dropped and counted, and so is what could not be sent.
    Headers and compression come from the standard OTEL_EXPORTER_OTLP_* variables.
    """

    QUEUE = 20_000  # records
    BATCH = 512
    EVERY_S = 1.0
    SEND_TIMEOUT_S = 5.0

    def __init__(self, endpoint: str = "", sender: SpanExporter | None = None) -> None:
        """`endpoint` is the base URL; `/v1/traces` is appended unless it is there. `sender` replaces the OTLP one."""
        self.sent = 0
        self.dropped = 0
        self._sender = sender or (_otlp(endpoint, self.SEND_TIMEOUT_S) if endpoint else None)
        self._queue: deque[InvocationRecord] = deque()
        self._wake = threading.Event()
        self._closing = False
        self._thread: threading.Thread | None = None
        if self._sender is not None:
            self._thread = threading.Thread(target=self._run, name="span-exporter", daemon=True)
            self._thread.start()

    @property
    def active(self) -> bool:
        return self._sender is not None and not self._closing

    def submit(self, records: Sequence[InvocationRecord]) -> None:
        if not self.active:
            return
        room = max(0, self.QUEUE - len(self._queue))
        self._queue.extend(records[:room])
        self.dropped += max(0, len(records) - room)
        if len(self._queue) >= self.BATCH:
            self._wake.set()

    def close(self, timeout_s: float = 3.0) -> None:
        """Sends what is queued, for at most `timeout_s` seconds; what is left then is dropped and counted. Idempotent."""
        if self._thread is None or self._sender is None or self._closing:
            return
        until = time.monotonic() + timeout_s
        self._closing = True
        self._wake.set()
        self._thread.join(timeout_s * 0.8)
        if self._thread.is_alive():
            # The thread is inside a slow send. Shutting the sender down ends its retries; the thread is a daemon.
            self._sender.shutdown()
            self._thread.join(max(0.0, until - time.monotonic()))
        self.dropped += len(self._queue)  # those in the sender's hands are counted by the thread, if it ever comes back
        self._queue.clear()

    def _run(self) -> None:
        assert self._sender is not None
        while not self._closing:
            self._wake.wait(self.EVERY_S)
            self._wake.clear()
            self._drain(self._sender)
        self._drain(self._sender)
        self._sender.shutdown()

    def _batch(self) -> list[InvocationRecord]:
        batch: list[InvocationRecord] = []
        with contextlib.suppress(IndexError):  # close() may empty the queue at any time
            while len(batch) < self.BATCH:
                batch.append(self._queue.popleft())
        return batch

    def _drain(self, sender: SpanExporter) -> None:
        while batch := self._batch():
            try:
                taken = sender.export(spans_of(batch)) is SpanExportResult.SUCCESS
            except Exception as error:  # whatever a record or the network holds, this thread goes on
                _log.warning("spans were not exported: %s", type(error).__name__)
                taken = False
            if taken:
                self.sent += len(batch)
            else:
                self.dropped += len(batch)


def _otlp(endpoint: str, timeout_s: float) -> SpanExporter:
    url = endpoint.rstrip("/")
    return OTLPSpanExporter(endpoint=url if url.endswith("/v1/traces") else f"{url}/v1/traces", timeout=timeout_s)
