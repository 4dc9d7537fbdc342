"""Topic chain: what a cold path of N functions costs in cold starts, and what is left of that when the entry is prewarmed too.

DRIVER=microvm: shorter, in emulated microVMs, alone: cold, prewarmed and warm, from clones on demand and from standbys.
"""

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from benchmarks.estimates import Estimate, Samples, bootstrap, quantile, ratio_of_quantiles, slope_of
from benchmarks.paths import INIT_S, Path, Side, measure, stages
from benchmarks.peers.awslambdaric import LambdaRuntime
from benchmarks.peers.servers import Peer
from benchmarks.peers.starting import started
from benchmarks.peers.workerd import WorkerLoader
from benchmarks.platform import Platform
from benchmarks.predicted import measure_predicted
from benchmarks.report import OURS, Report
from benchmarks.topics.microvm import image

LENGTHS = (2, 3, 5, 7, 12)
PREDICTED_LENGTH = 5
CALIBRATION_ROUNDS = 20_000_000


VM_LENGTHS = (3, 7)
VM_STANDBYS = 8
VM_FILL_S = 60.0


def run(report: Report, full: bool) -> None:
    if os.environ.get("DRIVER") == "microvm":
        _run_microvm(report, 12 if full else 4)
        return
    rounds, predictions = (40, 1000) if full else (8, 100)
    report.progress("starting foreglow")
    with Platform(standbys=0, prewarm="path") as platform:
        report.driver, report.tier = platform.driver, platform.tier
        platform.deploy([one for init in ("wait", "cpu") for length in (1, *LENGTHS) for one in stages(init, length)])
        side = Side.of(platform)
        _learn(report, side)
        report.progress("cold paths whose init waits, prewarm path")
        waited = {length: Path() for length in (1, *LENGTHS)}
        measure(side, "wait", waited, rounds)
        _tell_cse(report, "chain.cse", waited, init="wait", prewarm="path")
        _tell_promised(report, waited)
        report.progress("cold paths whose init computes, prewarm path")
        computed = {length: Path() for length in (1, *LENGTHS)}
        measure(side, "cpu", computed, max(4, rounds // 2))
        _tell_computed(report, computed)
        report.progress("cold paths, prewarm off")
        platform.prewarm("off")
        unplanned = {length: Path() for length in (1, 3, 7)}
        measure(side, "wait", unplanned, max(3, rounds // 3))
        _tell_cse(report, "chain.off.cse", unplanned, init="wait", prewarm="off")
        platform.prewarm("path")
        report.progress(f"predicted paths, {predictions} rounds")
        _tell_predicted(report, measure_predicted(platform, PREDICTED_LENGTH, predictions))
    _beside(report, waited, computed, max(3, rounds // 3))


def _run_microvm(report: Report, rounds: int) -> None:
    image(report)
    lengths = (1, *VM_LENGTHS)
    for standbys in (0, VM_STANDBYS):
        report.progress(f"starting foreglow with microVMs, standbys: {standbys}")
        with Platform(standbys=standbys, prewarm="path", driver="microvm") as platform:
            report.driver, report.tier = platform.driver, platform.tier
            platform.deploy([one for length in lengths for one in stages("wait", length)])
            side = replace(Side.of(platform), cool=_cool_and_fill(platform, standbys))
            _learn(report, side, ("wait",), lengths)
            for prewarm in ("path", "off"):
                report.progress(f"cold paths in microVMs, standbys: {standbys}, prewarm {prewarm}")
                platform.prewarm(prewarm)
                paths = {length: Path() for length in lengths}
                measure(side, "wait", paths, rounds)
                details = {"init": "wait", "prewarm": prewarm, "accel": "tcg", "standbys": str(standbys)}
                _tell_cse(report, "chain.cse" if prewarm == "path" else "chain.off.cse", paths, **details)


def _cool_and_fill(platform: Platform, standbys: int) -> Callable[[Sequence[str]], None]:
    """No instance left, and the pool of standbys whole again."""

    def cool(_: Sequence[str]) -> None:
        platform.cool()
        until = time.monotonic() + VM_FILL_S
        while platform.standbys_waiting() < standbys:
            if time.monotonic() > until:
                raise RuntimeError(f"not {standbys} standbys after {VM_FILL_S:.0f} s")
            time.sleep(0.05)

    return cool


def _learn(report: Report, side: Side, inits: Sequence[str] = ("wait", "cpu"), lengths: Sequence[int] = (1, *LENGTHS)) -> None:
    """Warm runs of every path, so that what is measured is the learned state, not the first moments of a deployment."""
    report.progress("learning the paths")
    for init in inits:
        for length in lengths:
            for _ in range(4):
                side.ask(init, length)


def cse(first: Samples, warm: Samples, one_first: Samples, one_warm: Samples) -> float:
    """Cold starts the path paid for, in units of one cold start: (end to end - warm end to end) / (the same of a path of one)."""
    return float((np.median(first) - np.median(warm)) / (np.median(one_first) - np.median(one_warm)))


def _tell_cse(report: Report, name: str, paths: dict[int, Path], system: str = OURS, **details: str) -> None:
    """Every length beside the path of one, which is what one cold start costs."""
    one = paths[1]
    cold = bootstrap([one.first, one.warm], lambda groups: float(np.median(groups[0]) - np.median(groups[1])))
    report.emit("chain.one_cold_ms", cold, system, **details)
    longer = {length: path for length, path in paths.items() if length > 1}
    for length, path in longer.items():
        _tell_path(report, path, length, system, details)
        found = bootstrap([path.first, path.warm, one.first, one.warm], lambda groups: cse(*groups))
        report.emit(name, found, system, stages=length, **details)


def _tell_promised(report: Report, paths: dict[int, Path]) -> None:
    """Mean and growth over all lengths."""
    lengths = [length for length in paths if length > 1]
    groups = [values for length in (1, *lengths) for values in (paths[length].first, paths[length].warm)]

    def each(drawn: list[Samples]) -> Samples:
        return np.asarray([cse(drawn[at], drawn[at + 1], drawn[0], drawn[1]) for at in range(2, len(drawn), 2)])

    report.emit("chain.cse.mean", bootstrap(groups, lambda drawn: float(each(drawn).mean())))
    report.emit("chain.cse.slope", bootstrap(groups, lambda drawn: slope_of(lengths, each(drawn))))


def _tell_path(report: Report, path: Path, length: int, system: str, details: dict[str, str]) -> None:
    report.emit("chain.first_ms", quantile(path.first, 0.5), system, stages=length, **details)
    report.emit("chain.warm_ms", quantile(path.warm, 0.5), system, stages=length, **details)


def _tell_computed(report: Report, paths: dict[int, Path]) -> None:
    """The bound: nobody is faster than one cold start, nor than the cores are at all the preparing there is to do."""
    one, cores = paths[1], os.cpu_count() or 1
    cpu_ms = bootstrap([one.cpu_ms], lambda groups: float(groups[0].mean()))
    report.emit("chain.prepare_cpu_ms", cpu_ms, init="cpu")
    for length, path in paths.items():
        if length == 1:
            continue

        def ratio(groups: list[Samples], length: int = length) -> float:
            first, warm, one_first, one_warm, cpu_ms = groups
            one_cold = np.median(one_first) - np.median(one_warm)
            bound = max(float(one_cold), length * float(cpu_ms.mean()) / cores)
            return float((np.median(first) - np.median(warm)) / bound)

        _tell_path(report, path, length, OURS, {"init": "cpu", "prewarm": "path"})
        estimate = bootstrap([path.first, path.warm, one.first, one.warm, one.cpu_ms], ratio)
        report.emit("chain.cpu.excess_ratio", estimate, stages=length)


def _tell_predicted(report: Report, rounds: dict[str, list[float]]) -> None:
    first, warm, again = rounds["first"], rounds["warm"], rounds["again"]
    for label, q in (("p50", 0.5), ("p99", 0.99)):
        report.emit(f"chain.predicted.slowdown_{label}", ratio_of_quantiles(first, warm, q, paired=True), stages=PREDICTED_LENGTH)
        report.emit(f"chain.predicted.aa_{label}", ratio_of_quantiles(again, warm, q, paired=True), stages=PREDICTED_LENGTH)


def _beside(report: Report, waited: dict[int, Path], computed: dict[int, Path], rounds: int) -> None:
    """Peers that scale to zero, on the same paths. A worker's init cannot wait: workerd stands beside the computed paths."""
    lengths = (1, 3, 7)
    with contextlib.ExitStack() as stack:
        environment = {f"wait{length}s{at}": _lambda_stage(length, at) for length in lengths for at in range(length)}
        for peer in started([LambdaRuntime(environment)], stack, report):
            report.progress(f"the same paths on {peer.name}")
            _measure_peer(report, peer, "wait", rounds, waited)
    with contextlib.ExitStack() as stack:
        for trial in started([WorkerLoader(CALIBRATION_ROUNDS)], stack, report):
            turns = round(CALIBRATION_ROUNDS * INIT_S * 1000 / _load_ms(trial))
            report.progress(f"the same paths on {trial.name}, {turns} turns of its loop for {INIT_S} s")
            for peer in started([WorkerLoader(turns)], stack, report):
                _measure_peer(report, peer, "cpu", rounds, computed)


def _lambda_stage(length: int, at: int) -> dict[str, str]:
    following = f"wait{length}s{at + 1}" if at + 1 < length else ""
    return {"INIT": "wait", "INIT_S": str(INIT_S), "WORK_S": "0.01", "NEXT": following}


def _load_ms(peer: Peer) -> float:
    """How long the init of one stage takes, by a first request less the next."""
    spent = []
    for _ in range(3):
        peer.cool([])
        first = peer.invoke("s1_0", b'{"stages":0}').ms
        spent.append(first - peer.invoke("s1_0", b'{"stages":0}').ms)
    return float(np.median(spent))


def _measure_peer(report: Report, peer: Peer, init: str, rounds: int, ours: dict[int, Path]) -> None:
    paths = {length: Path() for length in (1, 3, 7)}
    measure(Side.of_peer(peer), init, paths, rounds)
    _tell_cse(report, "chain.cse", paths, peer.name, init=init)
    for length in (3, 7):
        estimate: Estimate = ratio_of_quantiles(ours[length].first, paths[length].first, 0.5)
        report.emit_ratio("chain.first_ms", estimate, peer.name, stages=length, init=init)
