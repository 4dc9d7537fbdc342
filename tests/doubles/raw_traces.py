"""What the raw files of recorded traces say, worked out from their lines by other means than ours: for each trace its entry,
its calls and what it reaches; and the decayed fraction of runs in which something happened.

A function begins where the service changes, or where a caller's half is answered; it is named by that span. That is all the
readers and the assembly are held against. Nothing here imports them.
"""

import csv
import gzip
import io
import json
import tarfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LEVELS = 16
"""How far below a function its own runs look, but for the entry's, which see everything."""


@dataclass
class RawSpan:
    key: Any
    parent: Any
    service: str
    name: str | None  # None: the service is the function
    start: float
    begins: bool | None = None  # a function begins here for sure, or for sure not; None: where the service changes

    @property
    def function(self) -> str:
        return self.service if self.name is None else f"{self.service}/{self.name.lstrip('/')}"


@dataclass
class RawTrace:
    started: float
    entry: str
    edges: set[tuple[str, str]] = field(default_factory=set)
    runs: list[tuple[str, set[str]]] = field(default_factory=list)  # each function that ran, and what was below it

    @property
    def reached(self) -> set[str]:
        return self.runs[0][1] - {self.entry}


def unpacked(path: Path) -> bytes:
    content = path.read_bytes()
    return gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content


def tarred(path: Path) -> Iterator[bytes]:
    with tarfile.open(path) as archive:
        for member in archive:
            file = archive.extractfile(member)
            if file is not None:
                yield file.read()


def told(traces: Iterable[dict[Any, RawSpan]]) -> list[RawTrace]:
    """In the order of time."""
    return sorted((_one(spans) for spans in traces if spans), key=lambda trace: trace.started)


def _one(spans: dict[Any, RawSpan]) -> RawTrace:
    below: dict[Any, list[RawSpan]] = defaultdict(list)
    for span in spans.values():
        below[span.parent if span.parent in spans else None].append(span)
    tops = [span for span in below[None] if span.parent is None] or below[None]
    top = max(tops, key=lambda span: len(_under(span, below)))
    trace = RawTrace(min(span.start for span in spans.values() if span.start), top.function)
    trace.runs.append((top.function, set()))
    waiting = [(span, top, [0]) for span in below[top.key]]
    while waiting:
        span, parent, above = waiting.pop()
        begins = span.begins if span.begins is not None else span.service != parent.service
        if begins:
            trace.edges.add((trace.runs[above[-1]][0], span.function))
            for run in {0, *above[-LEVELS:]}:
                trace.runs[run][1].add(span.function)
            above = [*above, len(trace.runs)]
            trace.runs.append((span.function, set()))
        waiting += [(child, span, above) for child in sorted(below[span.key], key=lambda child: -child.start)]
    return trace


def _under(span: RawSpan, below: dict[Any, list[RawSpan]]) -> list[RawSpan]:
    found = [span]
    for one in found:
        found += below[one.key]
    return found


def trainticket(files: Iterable[bytes]) -> list[RawTrace]:
    traces: dict[str, dict[Any, RawSpan]] = defaultdict(dict)
    for content in files:
        for row in csv.DictReader(io.StringIO(content.decode())):
            parent = None if row["ParentID"] == "root" else row["ParentID"]
            service = row["PodName"].rsplit("-", 2)[0]
            traces[row["TraceID"]][row["SpanID"]] = RawSpan(
                row["SpanID"], parent, service, row["OperationName"], int(row["StartTimeUnixNano"])
            )
    return told(traces.values())


def jaeger(files: Iterable[bytes]) -> list[RawTrace]:
    """A client's span that is the root is the caller's half of what the trace is about: the entry is below it."""
    found = []
    for content in files:
        for document in content.splitlines() if content[:8] == b'{"data":' else [content]:
            for trace in json.loads(document)["data"]:
                spans = {}
                for span in trace["spans"]:
                    kind = next((tag["value"] for tag in span["tags"] if tag["key"] == "span.kind"), "")
                    parent = next((one["spanID"] for one in span["references"]), None)
                    if parent is None and kind == "client":
                        continue
                    spans[span["spanID"]] = RawSpan(
                        span["spanID"],
                        parent,
                        trace["processes"][span["processID"]]["serviceName"],
                        span["operationName"],
                        span["startTime"],
                        kind == "server",
                    )
                found.append(spans)
    return told(found)


def zipkin(files: Iterable[bytes]) -> list[RawTrace]:
    """The halves of one id are two spans, the callee's below the caller's; each time it began to be answered is one."""
    found = []
    for content in files:
        spans: dict[Any, RawSpan] = {}
        halves: dict[str, dict[str, Any]] = defaultdict(dict)
        document = [span for span in json.loads(content) if "timestamp" in span]
        for span in document:
            called = span.get("kind") in ("SERVER", "CONSUMER")
            where = span["timestamp"] if called else 0
            halves[span["id"]].setdefault("called" if called else "calling", (span["id"], called, where))
        for span in document:
            called = span.get("kind") in ("SERVER", "CONSUMER")
            key = (span["id"], called, span["timestamp"] if called else 0)
            calling = halves[span["id"]].get("calling")
            if called and calling is not None:
                parent = calling
            elif "parentId" in span:
                above = halves.get(span["parentId"], {})
                parent = above.get("called") or above.get("calling") or span["parentId"]
            else:
                parent = None
            begins = False if span.get("kind") in ("CLIENT", "PRODUCER") else True if called and calling else None
            service = span["localEndpoint"].get("serviceName") or "unknown"
            spans[key] = RawSpan(key, parent, service, span.get("name", ""), span["timestamp"], begins)
        for span in spans.values():
            client = spans.get(span.parent)
            if span.key[1] and client is not None and client.begins is False:
                span.begins = True
        found.append(spans)
    return told(found)


def xray(files: Iterable[bytes]) -> list[RawTrace]:
    """Segments that are not inferred are functions, by name; a subsegment belongs to its segment."""
    found = []
    for content in files:
        for trace in [json.loads(line) for line in content.splitlines()] if content[:2] != b"{\n" else [json.loads(content)]:
            spans: dict[Any, RawSpan] = {}
            for segment in trace["Segments"]:
                document = json.loads(segment["Document"])
                name = document["name"]

                def add(part: dict[str, Any], parent: Any, inferred: bool, name: str = name) -> None:
                    begins = False if inferred or part.get("namespace") else None
                    spans[part["id"]] = RawSpan(part["id"], parent, name, None, part["start_time"], begins)  # noqa: B023
                    for below in part.get("subsegments", []):
                        add(below, part["id"], inferred)

                add(document, document.get("parent_id"), bool(document.get("inferred")))
            found.append(spans)
    return told(found)


Raw = Callable[[Iterable[bytes]], list[RawTrace]]


def decayed(outcomes: Iterable[bool]) -> float:
    """In which share of the runs it happened, recent ones counting more: a run counts half after 200 others.

    Beside it goes a share that is half after 20. It takes over for 100 runs when the two differ by more than 4.5 standard
    deviations of its own, at a variance with 0.05 to spare, or when missing that often in a row had a chance under 1e-6.
    """
    slow, fast = 2 ** (-1 / 200), 2 ** (-1 / 20)
    sigmas = 4.5**2 / ((1 + fast) / (1 - fast))
    hits = total = recent = settled = after_change = 0.0
    until = missed = run = 0
    improbable_at = float("inf")

    def reported() -> tuple[float, bool]:
        if not hits:
            return 0.0, False
        if missed >= improbable_at or (run < until and missed):
            return min(hits / total, recent / settled), True
        if run < until:
            return hits / total, True
        if missed and run - missed < until:
            return min(hits / total, after_change / settled), False
        return hits / total, False

    for happened in outcomes:
        before, changed = reported() if happened else (0.0, False)
        after_change *= fast if run < until else slow
        run += 1
        hits, total, recent, settled = hits * slow, total * slow + 1, recent * fast, settled * fast + 1 - fast
        if not happened:
            missed += 1
            continue
        if missed:
            hits = before * (total - 1)
            if changed:
                until = run + 100
        hits, recent, missed = hits + 1, recent + 1 - fast, 0
        long, short = hits / total, recent / settled
        if (short - long) ** 2 > sigmas * (long * (1 - long) + 0.05):
            until = run + 100
        if until > run:
            hits = short * total
        after_change = recent
        most = max(hits, total)
        chance = min(hits / most, 1 - 1 / (most + 2))
        improbable_at = next((count for count in range(1, 10_000) if (1 - chance) ** count < 1e-6), float("inf"))
    return reported()[0]
