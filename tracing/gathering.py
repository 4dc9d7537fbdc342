"""Spans of any number of files into whole traces, in the order of time, with little in memory.

A trace's spans are anywhere: in another order than time, in several files. So they wait in a temporary file, and what is in
memory is where: about 400 bytes a trace and 8 a span.
"""

import tempfile
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from types import TracebackType

import msgspec

from tracing.links import leader_of
from tracing.spans import Span

IN_MEMORY = 64 << 20
"""Bytes of spans that wait in memory; more of them go to the temporary file."""

SPANS_PER_TRACE = 10_000
_LENGTH = 4

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Span).decode


class _Trace:
    __slots__ = ("began", "leader", "places")

    def __init__(self) -> None:
        self.began = 0
        self.leader = ""
        self.places = array("Q")


class Gathering:
    """`left_out` counts spans by reason: `trace too long`. A context: leaving it removes the temporary file."""

    def __init__(self) -> None:
        self.left_out: Counter[str] = Counter()
        self.spans = 0
        self._file = tempfile.SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115
        self._end = 0
        self._traces: dict[str, _Trace] = {}

    def __enter__(self) -> "Gathering":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()

    @property
    def traces(self) -> int:
        return len(self._traces)

    def add(self, spans: Iterable[Span]) -> int:
        """Returns how many came. Raises OSError when the temporary file cannot grow."""
        came = 0
        for span in spans:
            came += 1
            trace = self._traces.get(span.trace_id)
            if trace is None:
                trace = self._traces[span.trace_id] = _Trace()
            if len(trace.places) >= SPANS_PER_TRACE:
                self.left_out["trace too long"] += 1
                continue
            if span.start_ns and (not trace.began or span.start_ns < trace.began):
                trace.began = span.start_ns
            if not span.parent_id and not trace.leader:
                trace.leader = leader_of(span)
            record = _encode(span)
            trace.places.append(self._end)
            self._file.write(len(record).to_bytes(_LENGTH, "little") + record)
            self._end += _LENGTH + len(record)
        self.spans += came
        return came

    def batches(self, spans: int) -> Iterator[tuple[int, list[Span]]]:
        """Whole traces, the earliest first, those that are linked side by side: how many, and all their spans.

        At most `spans` at once, but for a single trace that has more.
        """
        batch: list[Span] = []
        count = 0
        for together in self._in_order():
            size = sum(len(self._traces[one].places) for one in together)
            if batch and len(batch) + size > spans:
                yield count, batch
                batch, count = [], 0
            for one in together:
                batch += self._read(self._traces[one])
                count += 1
        if batch:
            yield count, batch

    def _read(self, trace: _Trace) -> Iterator[Span]:
        for place in trace.places:
            self._file.seek(place)
            yield _decode(self._file.read(int.from_bytes(self._file.read(_LENGTH), "little")))

    def _in_order(self) -> Iterator[list[str]]:
        """Ids of traces; where roots are linked to other traces, those come along with the first of them."""
        beside: dict[str, list[str]] = {}
        for name, trace in self._traces.items():
            if trace.leader in self._traces:
                beside.setdefault(trace.leader, []).append(name)
                beside.setdefault(name, []).append(trace.leader)
        given: set[str] = set()
        for name in sorted(self._traces, key=lambda name: (self._traces[name].began, name)):
            if name not in beside:
                yield [name]
            elif name not in given:
                yield self._linked(name, beside, given)

    def _linked(self, name: str, beside: dict[str, list[str]], given: set[str]) -> list[str]:
        """As many as make one trace at most: a queue may link all there are."""
        found, size = [name], len(self._traces[name].places)
        given.add(name)
        for one in found:
            for other in beside[one]:
                size_then = size + len(self._traces[other].places)
                if other not in given and size_then <= SPANS_PER_TRACE:
                    given.add(other)
                    found.append(other)
                    size = size_then
        return found
