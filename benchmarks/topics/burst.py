"""Topic burst: what a burst of prewarms does to a request that starts cold beside it, in turns with the same without a burst."""

import random
import time

from benchmarks.estimates import quantile, ratio_of_quantiles
from benchmarks.paths import EVENT, SETTLE_S, names, stages
from benchmarks.platform import Deployed, Platform
from benchmarks.report import Report

LENGTH = 12
NEIGHBOUR = Deployed("neighbour", "echo", "echo:handler")
SEED = 7


def run(report: Report, full: bool) -> None:
    rounds = 200 if full else 40
    report.progress("starting foreglow")
    with Platform(standbys=0, prewarm="path", templates=False) as platform:
        report.driver, report.tier = platform.driver, platform.tier
        platform.deploy([NEIGHBOUR, *stages("wait", LENGTH), *stages("cpu", LENGTH)])
        for _ in range(5):
            _cold(platform, "")
        for init in ("wait", "cpu"):
            report.progress(f"bursts of {LENGTH} whose init is {init}")
            alone, beside = _measure(platform, init, rounds)
            details = {"init": init, "burst": LENGTH}
            for share, name in ((0.5, "p50"), (0.95, "p95")):
                report.emit(f"burst.alone_{name}_ms", quantile(alone, share), **details)
                report.emit(f"burst.beside_{name}_ms", quantile(beside, share), **details)
                report.emit(f"burst.slowdown_{name}", ratio_of_quantiles(beside, alone, share), **details)


def _measure(platform: Platform, init: str, rounds: int) -> tuple[list[float], list[float]]:
    """ms of the neighbour's cold request, alone and beside a burst, in turns whose order is drawn."""
    order = random.Random(SEED)
    found: dict[str, list[float]] = {"": [], init: []}
    for _ in range(rounds):
        for burst in order.sample(["", init], 2):
            found[burst].append(_cold(platform, burst))
    return found[""], found[init]


def _cold(platform: Platform, burst: str) -> float:
    """One request that finds nothing ready, sent as soon as the burst is ordered."""
    platform.cool()
    time.sleep(SETTLE_S)
    if burst:
        ordered = platform.warm(names(burst, LENGTH)[0])
        if len(ordered["decisions"]) != LENGTH:
            raise RuntimeError(f"the burst is of {len(ordered['decisions'])} instances, not of {LENGTH}")
    answer = platform.invoke(NEIGHBOUR.name, EVENT)
    if answer.start != "cold":
        raise RuntimeError(f"the neighbour started {answer.start}: this run measures something else")
    return answer.ms
