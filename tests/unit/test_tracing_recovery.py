"""The graph learned from real traces, against what the raw files say, worked out by other means (doubles.raw_traces).

On the excerpts in tests/data always; on all of the data where FOREGLOW_DATA names a folder that holds it. `pytest -s` shows how
near they are.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

import pytest
from doubles import raw_traces
from doubles.raw_traces import RawTrace

from graph.callgraph import CallGraph
from graph.ids import TenantId, function_id
from tracing.assembly import traces_of
from tracing.formats import read_file, read_stream
from tracing.spans import Span

TENANT = TenantId("t")
HERE = Path(__file__).parents[1] / "data"
EXAMPLE = Path(__file__).parents[2] / "examples" / "trainticket" / "traces.csv.gz"
DATA = Path(os.environ["FOREGLOW_DATA"]) if os.environ.get("FOREGLOW_DATA") else None

SETS: dict[str, tuple[raw_traces.Raw, Callable[[], list[Path]]]] = {
    "trainticket": (raw_traces.trainticket, lambda: [HERE / "trainticket" / "traces.csv.gz"]),
    "trainticket-example": (raw_traces.trainticket, lambda: [EXAMPLE]),
    "hotel": (raw_traces.jaeger, lambda: [HERE / "hotel-jaeger" / "traces.jsonl.gz"]),
    "node": (raw_traces.jaeger, lambda: [HERE / "node-jaeger" / "traces.jsonl.gz"]),
    "zipkin": (raw_traces.zipkin, lambda: sorted((HERE / "zipkin").glob("*.json*"))),
    "xray": (raw_traces.xray, lambda: sorted((HERE / "xray").glob("*.json"))),
}
if DATA is not None:
    SETS |= {
        "all-trainticket": (raw_traces.trainticket, lambda: sorted(_data("traces-trainticket-0129").rglob("*.csv.gz"))),
        "all-hotel": (raw_traces.jaeger, lambda: sorted(_data("traces-hotel-jaeger").glob("*.tar.xz"))),
        "all-node": (raw_traces.jaeger, lambda: sorted(_data("traces-node-jaeger").glob("*.tar.xz"))),
        "all-zipkin": (raw_traces.zipkin, lambda: sorted(_data("traces-zipkin-fixtures").glob("*.json"))),
        "all-xray": (raw_traces.xray, lambda: sorted(_data("traces-xray-fixtures").glob("*/traces.json"))),
    }


def _data(name: str) -> Path:
    assert DATA is not None
    assert (DATA / name).is_dir(), f"FOREGLOW_DATA: {DATA} has no folder {name}"
    return DATA / name


@pytest.fixture(scope="module", params=list(SETS))
def found(request: pytest.FixtureRequest) -> "Found":
    return read(request.param)


class Found:
    def __init__(self, name: str) -> None:
        raw, files = SETS[name]
        paths = files()
        self.name = name
        self.raw: list[RawTrace] = raw(content for path in paths for content in contents(path))
        self.left_out: Counter[str] = Counter()
        self.traces, dropped = traces_of(TENANT, (span for path in paths for span in spans_of(path, self.left_out)))
        self.left_out += dropped

    def learned(self, decay: bool) -> CallGraph:
        graph = CallGraph()
        for number, trace in enumerate(self.traces):
            graph.observe(trace, float(number), decay)
        return graph


@lru_cache(maxsize=1)
def read(name: str) -> Found:
    return Found(name)


def contents(path: Path) -> Iterator[bytes]:
    if path.suffix == ".xz":
        yield from raw_traces.tarred(path)
    else:
        yield raw_traces.unpacked(path)


def spans_of(path: Path, left_out: Counter[str]) -> Iterator[Span]:
    if path.suffix == ".xz":
        import io

        for content in raw_traces.tarred(path):
            yield from read_stream(io.BytesIO(content), left_out)
    else:
        yield from read_file(path, left_out)


def name(function: str) -> str:
    return function.partition("/")[2]


def test_edges_are_those_of_the_raw_files(found: Found) -> None:
    learned = {(name(edge.caller), name(edge.callee)) for edge in found.learned(decay=False).edges(TENANT)}
    expected = {edge for trace in found.raw for edge in trace.edges}
    assert expected
    precision, recall = len(learned & expected) / len(learned), len(learned & expected) / len(expected)
    calls = sum(len(trace.calls) for trace in found.traces)
    print(
        f"{found.name}: {len(found.traces)} traces, {calls} calls, {len(expected)} edges: {precision=:.4f} {recall=:.4f}",
        end="; ",
    )
    print(f"left out: {dict(found.left_out)}")
    assert precision >= 0.99, learned - expected
    assert recall >= 0.99, expected - learned


def test_every_trace_has_its_entry_and_reaches_what_the_raw_one_does(found: Found) -> None:
    assert len(found.traces) == len(found.raw)
    same = sum(
        (name(trace.entry), {name(call.callee) for call in trace.calls} - {name(trace.entry)}) == (raw.entry, raw.reached)
        for trace, raw in zip(found.traces, found.raw, strict=True)
    )
    assert same / len(found.raw) >= 0.99


@pytest.mark.parametrize("decay", [False, True], ids=["decay off", "decay on"])
def test_reach_is_the_fraction_of_the_raw_runs(found: Found, decay: bool) -> None:
    """Of every function, whether traces began with it or not: each call is a run of the function that was called."""
    graph = found.learned(decay)
    apart, shares = 0.0, 0
    for function, runs in by_function(found.raw).items():
        reach = graph.reach(function_id(TENANT, function))
        assert reach is not None
        for other in set().union(*runs) - {function}:
            outcomes = [other in run for run in runs]
            expected = raw_traces.decayed(outcomes) if decay else sum(outcomes) / len(outcomes)
            learned = reach.share(function_id(TENANT, other))
            assert learned == pytest.approx(expected, abs=0.02), (function, other, len(runs))
            apart, shares = max(apart, abs(learned - expected)), shares + 1
    print(f"{found.name}: {shares} shares, {decay=}: at most {apart:.4f} apart")


def by_function(raw: list[RawTrace]) -> dict[str, list[set[str]]]:
    found: dict[str, list[set[str]]] = {}
    for trace in raw:
        for function, reached in trace.runs:
            found.setdefault(function, []).append(reached)
    return found
