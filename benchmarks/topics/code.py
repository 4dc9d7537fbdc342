"""Topic code: what a package costs from each tier, and what tier 1 holds when it is needed.

For real: packages of four sizes brought from a zone cache and an origin, cold starts through the gateway, a large package lazily.
On a virtual clock: hit ratios under recorded load, and of what plans ordered.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks import processes
from benchmarks.estimates import Estimate, quantile, ratio_of_quantiles, share
from benchmarks.replay import caching, load, starts, workflows
from benchmarks.replay.policies import POLICIES
from benchmarks.replay.sizes import EXPONENT, grouped, zipf_sizes
from benchmarks.report import OURS, Report
from benchmarks.tiers import bringing, loaded, starting
from benchmarks.tiers.bringing import Brought
from benchmarks.tiers.cluster import Cluster

BOUNDS = (0.1, 0.25, 0.5)
KEEPS_S = (600.0, 60.0)
"""How long an instance waits for its next call: the node's default, and what memory pressure may leave of it."""

PLANNED_BOUND = 0.25
GAPS_S = (60.0, 600.0)
GROUP = 10
OUTAGE_S = 300.0
SEED = 20260404
LAZY_TIMEOUT_S = 120
ROUNDS = {"10 KB": 40, "1 MB": 40, "20 MB": 4, "200 MB": 2, "numpy": 2}
MORE_ROUNDS = {"10 KB": 200, "1 MB": 200, "20 MB": 20, "200 MB": 5, "numpy": 10}
NODE_LOAD_BOUND, NODE_LOAD_KEEP_S = 0.5, 60.0


def run(report: Report, full: bool) -> None:
    try:
        functions = load.read()
        report.note(f"load: {load.SOURCE}; a minute's calls are spread over it uniformly at random, seed {SEED}")
    except load.LoadMissing as missing:
        functions = []
        report.note(f"without replay: {missing}")
    report.progress("starting a platform and a zone cache")
    with Cluster() as cluster:
        brought = bringing.measure(report, cluster, MORE_ROUNDS if full else ROUNDS)
        _tell_brought(report, brought)
        if functions:
            _tell_originshare(report, cluster, functions)
    report.progress("cold starts from each tier, through the gateway")
    _tell_starts(report, 30 if full else 6)
    if functions:
        _tell_replay(report, functions)
        _tell_planned(report, functions, _transport(brought))
    _tell_lazy(report, 7 if full else 2)


# -- for real


def _tell_brought(report: Report, found: Sequence[Brought]) -> None:
    for one in found:
        layer = {"package": one.shape.name, "chunks": len(one.layer.chunks), "files": len(one.layer.files)}
        for (way, added), ms in one.ms.items():
            if way in ("unzip", "copy"):
                report.emit(f"code.{way}_ms", quantile(ms, 0.5), way, package=one.shape.name)
            else:
                report.emit("code.bring_ms", quantile(ms, 0.5), tier_of_code=way, added_ms=added, **layer)
        if one.shape.name == "1 MB":
            report.emit("code.tier1_1mb.p50_ms", quantile(one.ms["tier1", 0.0], 0.5))
            report.emit("code.tier2_1mb.p50_ms", quantile(one.ms["tier2", 0.0], 0.5), added_ms=0)
            for part, ms in one.parts.items():
                report.emit("code.part_ms", quantile(ms, 0.5), part=part)
        for peer in ("unzip", "copy"):
            ratio = ratio_of_quantiles(one.ms["tier2", 0.0], one.ms[peer, 0.0], 0.5, paired=True)
            report.emit_ratio("code.bring_ms", ratio, peer, tier_of_code="tier2", package=one.shape.name)
    added = " and ".join(f"{ms:g}" for ms in bringing.ADDED_MS)
    report.note(
        "s3: moto's server, a program for tests; it says what the protocol costs on our side, and nothing of a store's speed"
    )
    report.note(f"a loopback is no zone: added_ms is really waited before each question, {added} ms more a round trip")


def _tell_originshare(report: Report, cluster: Cluster, functions: Sequence[load.Loaded]) -> None:
    uses = starts.uses(functions, SEED, NODE_LOAD_KEEP_S)
    report.progress(f"{len(uses)} starts of the recorded load on a real tier 1 and tier 2")
    found = loaded.measure(cluster, uses, zipf_sizes(len(functions)), NODE_LOAD_BOUND, SEED)
    report.emit(
        "code.origin_share",
        share(found["origin"], len(uses)),
        tier1=found["tier1"],
        tier2=found["tier2"],
        cache=NODE_LOAD_BOUND,
        keep_s=NODE_LOAD_KEEP_S,
    )


def _tell_starts(report: Report, rounds: int) -> None:
    found = starting.measure(report, rounds)
    for (tier, shape), answers in found.items():
        farther = sum(answer.code_from != tier for answer in answers)
        report.emit("code.first_answer_ms", quantile([one.ms for one in answers], 0.5), code=tier, package=shape, farther=farther)
        ms = [one.steps_ms.get("code", 0.0) for one in answers]
        report.emit("code.step_ms", quantile(ms, 0.5), code=tier, package=shape)
    report.note("20 MB is over the node's threshold for lazy starts: what a first answer waits for is what it touches, a tenth")


def _tell_lazy(report: Report, runs: int) -> None:
    """A program of its own, because an ordinary user's tier needs a process of that user; ended with all it started."""
    report.progress("a 200 MB package lazily and whole")
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        process = processes.start([sys.executable, "-m", "benchmarks.lazy_start", "--runs", str(runs)], log)
        try:
            process.wait(LAZY_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            report.note(f"lazy starts: not done within {LAZY_TIMEOUT_S} s")
        finally:
            processes.stop(process)
        lines = log.read_text(errors="replace").splitlines()
    for told in (json.loads(line) for line in lines if line.startswith("{")):
        if "way" not in told:
            continue
        details = {"isolation": told["tier"], "way": told["way"], "added_ms": told["delay_ms"]}
        for name, key in (("code.lazy.first_answer_ms", "first_answer_ms"), ("code.lazy.chunks", "chunks_before_answer")):
            value = float(told[key])
            report.emit(name, Estimate(value, value, value, told["runs"]), OURS, **details)
    if process.returncode > 0:
        report.note(f"lazy starts: {lines[-1][:200] if lines else process.returncode}")


# -- on a virtual clock


def _tell_replay(report: Report, functions: Sequence[load.Loaded]) -> None:
    sizes = zipf_sizes(len(functions))
    calls = sum(function.calls for function in functions)
    tenants = grouped(len(functions), GROUP)
    most_called = sorted(range(len(functions)), key=lambda number: -functions[number].calls)
    middle = sorted(sizes)[len(sizes) // 2]
    report.note(
        f"sizes: Zipf with exponent {EXPONENT:g}, drawn over the functions, 200 MB to {min(sizes) / 1e6:.1f} MB, median "
        f"{middle / 1e6:.1f} MB, {sum(sizes) / 1e6:.0f} MB in all; tenants of {GROUP} functions are a synthetic mapping, "
        f"because the "
        "sample has 227 owners of 250 functions"
    )
    for keep_s in KEEPS_S:
        uses = starts.uses(functions, SEED, keep_s)
        report.progress(f"replaying {len(uses)} starts of {calls} calls, instances kept {keep_s:g} s")
        for bound in BOUNDS:
            for policy, whole in [*((name, False) for name in POLICIES), ("gdsf", True)]:
                tier = caching.Tier(POLICIES[policy](), round(bound * sum(sizes)), sizes)
                moved = caching.replay(uses, tier, tenants if whole else None, most_called)
                of = {"policy": policy, "cache": bound, "whole_tenant": whole, "keep_s": keep_s}
                hits = moved.starts - moved.misses
                report.emit(
                    "code.replay.start_hit", share(hits, moved.starts), **of, first=moved.first, over_mb=moved.over_bytes >> 20
                )
                mb = (moved.demanded_bytes + moved.ahead_bytes) / 1e6
                report.emit("code.replay.moved_mb", Estimate(mb, mb, mb, 1), **of)
                if policy == "gdsf":
                    report.emit("code.replay.call_hit", share(calls - moved.misses, calls), **of)
                if policy == "gdsf" and whole and bound == BOUNDS[-1]:
                    report.emit("code.replay.outage_share", caching.outage(moved, OUTAGE_S, workflows.HOURS * 3600), **of)
    report.note(
        "replay: an instance pins its code, so that tier 1 holds more than its bound while more than that is in use "
        "(over_mb); tier 2 "
        "holds all code, as publishing fills it before traffic, and with it up no start asks the origin: what tier 1 "
        "lacks comes from tier 2"
    )


def _transport(brought: Sequence[Brought]) -> workflows.Transport:
    """What this run measured of tier 2 with a millisecond more a round trip: a round from 10 KB, which takes two; the rest from
    20 MB."""
    by_name = {one.shape.name: one for one in brought}
    small, large = by_name["10 KB"], by_name["20 MB"]
    round_s = float(np.median(small.ms["tier2", 1.0])) / 2000
    whole_s = float(np.median(large.ms["tier2", 1.0])) / 1000
    rounds = workflows.Transport(round_s, 1.0).rounds_s(large.layer.size)
    return workflows.Transport(round_s, large.layer.size / max(0.01, whole_s - rounds))


def _tell_planned(report: Report, functions: Sequence[load.Loaded], transport: workflows.Transport) -> None:
    traces = workflows.read()
    teaching, runs = workflows.halves(traces)
    graph = workflows.learned(teaching)
    names = workflows.functions_of(runs, traces)
    sizes = zipf_sizes(len(functions) + len(names))
    numbers = {name: len(functions) + place for place, name in enumerate(names)}
    ahead = [len(functions) + place for place in workflows.most_called(teaching, names)]
    report.note(
        f"workflows: {len(names)} functions of Train-Ticket beside the 250, {len(teaching)} traces learned, {len(runs)} "
        f"runs of the "
        f"others drawn; a start takes {workflows.START_S:g} s beside its code; code that is asked for together shares the "
        f"line, a round in "
        f"{transport.round_s * 1000:.1f} ms and {transport.bytes_per_s / 1e6:.0f} MB/s, as measured above with 1 ms added"
    )
    cases = [(bound, gap_s, True) for bound in (*BOUNDS, 1.0) for gap_s in GAPS_S] + [(1.0, GAPS_S[0], False)]
    for keep_s in KEEPS_S:
        beside = starts.uses(functions, SEED, keep_s)
        for bound, gap_s, whole in cases:
            tier = caching.Tier(POLICIES["gdsf"](), round(bound * sum(sizes)), sizes)
            node = workflows.Node(tier, numbers, sizes, transport, keep_s)
            found = workflows.replay(node, tier, beside, workflows.arrivals(runs, gap_s, SEED), graph, ahead if whole else ())
            of = {"cache": bound, "whole_tenant": whole, "keep_s": keep_s, "gap_s": gap_s}
            _tell_one_plan(report, found, of, (bound, gap_s, whole, keep_s) == (PLANNED_BOUND, GAPS_S[0], True, KEEPS_S[0]))


def _tell_one_plan(report: Report, found: workflows.Planned, of: dict[str, float], promised: bool) -> None:
    beside = {
        "held_at_order": round(found.ordered_held / found.planned, 3),
        "waited_ms": round(1000 * found.waited_s / max(1, found.planned - found.planned_held), 1),
        "entries_held": round(found.entries_held / max(1, found.entries), 3),
        "unplanned": found.unplanned,
    }
    name = "code.planned_tier1_share" if promised else "code.replay.planned"
    report.emit(name, share(found.planned_held, found.planned), **of, **beside)
