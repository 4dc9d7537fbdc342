"""The three workloads of topic replay: Train-Ticket's runs, published workflows, trees by published quantiles."""

import csv
import os
import random
from collections.abc import Sequence
from pathlib import Path

import msgspec

from benchmarks.replay import load, machines, workflows
from benchmarks.replay.frontier import Workload, workload
from graph.calls import Trace
from graph.ids import FunctionId
from orchestrator.whatif.starts import Starts
from tracing.assembly import traces_of
from tracing.formats.reading import read_file

TRAINTICKET = "traces-trainticket-0129/trace"
TRAINTICKET_SOURCE = (
    "Nezha's Train-Ticket traces (github.com/IntelligentDDS/Nezha at d8140101fdb4, rca_data/2023-01-29; MIT); what the system's "
    "gateway calls is the entry of a run"
)
RUNS = 200
SHAPES = 14
LEAST_RUNS = 60
"""Of an entry of Train-Ticket, to teach with some and run others."""


def all_workloads(functions: Sequence[load.Loaded], hours: float, starts: Starts, seed: int) -> list[Workload]:
    """Raises LoadMissing when published data is not there."""
    medians_s = _medians()
    dice = random.Random(seed)
    published = [[one.run(f"{number:032x}", dice) for number in range(RUNS)] for one in machines.machines(medians_s, seed)]
    drawn = [[one.run(f"{number:032x}", dice) for number in range(RUNS)] for one in machines.shapes(SHAPES, medians_s, seed)]
    told = (
        (f"trainticket: {TRAINTICKET_SOURCE}", "trainticket", _trainticket()),
        (f"workflows: {machines.SOURCE} and FaaSFlow's; {machines.ASSUMED}", "workflows", published),
        (f"shapes: {machines.SHAPES_ASSUMED}", "shapes", drawn),
    )
    return [workload(name, text, entries, functions, hours, seed, starts) for text, name, entries in told]


def _trainticket() -> list[list[Trace]]:
    """By entry, in the order in which they were recorded; those that call anything, with LEAST_RUNS or more."""
    files = sorted((Path(os.environ.get("FOREGLOW_DATA", "")) / TRAINTICKET).glob("*.csv.gz"))
    if not files:
        raise load.LoadMissing(f"FOREGLOW_DATA names no folder that holds {TRAINTICKET}/: {TRAINTICKET_SOURCE}")
    traces, _ = traces_of(workflows.TENANT, (span for file in files for span in read_file(file)))
    by_entry: dict[FunctionId, list[Trace]] = {}
    for trace in traces:
        for number, call in enumerate(trace.calls):
            if call.caller_index < 0:
                below = _below(trace, number)
                by_entry.setdefault(below.entry, []).append(below)
    return [runs for runs in by_entry.values() if len(runs) >= LEAST_RUNS and any(run.calls for run in runs)]


def _below(trace: Trace, top: int) -> Trace:
    """One call of a trace, and all under it, as a trace of its own."""
    entry = trace.calls[top]
    place = {top: -1}
    calls = []
    for number, call in enumerate(trace.calls):
        if call.caller_index in place:
            place[number] = len(calls)
            offset_s = max(0.0, call.offset_s - entry.offset_s)
            calls.append(msgspec.structs.replace(call, caller_index=place[call.caller_index], offset_s=offset_s))
    return Trace(trace.tenant, trace.trace_id, entry.callee, entry.duration_s, tuple(calls), entry.wait_s, entry.failed)


def _medians() -> list[float]:
    """Seconds: of each of Azure's functions the median of its durations, where it is not 0."""
    file = Path(os.environ.get("FOREGLOW_DATA", "")) / load.FOLDER / "durations.csv"
    with file.open(newline="") as rows:
        found = [float(row["percentile_Average_50"]) / 1000 for row in csv.DictReader(rows)]
    return sorted(one for one in found if one > 0.0)
