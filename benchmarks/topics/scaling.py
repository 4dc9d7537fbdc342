"""Topic scaling: how fast instances come when load steps up, what a tick takes, and placement and scaling of ten thousand nodes
under a virtual clock."""

import gc
import time
from pathlib import Path

from benchmarks.estimates import Estimate, mean, quantile
from benchmarks.report import Report
from benchmarks.scaling.fleet import fill, fleet, step, steps
from benchmarks.scaling.stepping import step as stepped
from benchmarks.scaling.ticking import ticks
from orchestrator.whatif.scaleout import Fleet, ScaleOut

NODES, FUNCTIONS, REFUSED = 10_000, 1_000_000, 0.05
PLACEMENTS = 50_000


def run(report: Report, full: bool) -> None:
    _step(report, 6 if full else 2)
    _place(report)
    _scale_out(report)
    _tick(report)


def _step(report: Report, rounds: int) -> None:
    """Both policies in turns, each on a platform of its own."""
    for number in range(rounds):
        for policy in ("headroom", "kpa"):
            report.progress(f"a step under {policy}, {number + 1} of {rounds}")
            found, report.driver, report.tier = stepped(policy)
            system = "foreglow" if policy == "headroom" else policy
            if found.step95_s is None:
                report.note(f"{policy}: 95 % of 50 instances were not ready within 12 s")
            else:
                report.emit("scale.step95_s", one(found.step95_s), system, round=number, failed=found.failed)
            report.emit("scale.step.cold", one(found.cold), system, round=number, requests=len(found.ms))
            if found.ms:
                report.emit("scale.step.p99_ms", quantile(found.ms, 0.99), system, round=number)


def _tick(report: Report) -> None:
    report.progress("ticks over 10,000 versions on 100 nodes")
    taken = [seconds * 1000 for seconds in ticks(10_000, 100, 12)][2:]
    report.emit("scale.tick_ms", quantile(taken, 0.5), versions=10_000, nodes=100)
    taken = [seconds * 1000 for seconds in ticks(10_000, 100, 12, busy=0.01)][2:]
    report.emit("scale.quiet_tick_ms", quantile(taken, 0.5), versions=10_000, nodes=100, busy=100)


def _place(report: Report) -> None:
    report.progress(f"filling {NODES} nodes")
    before = memory_mb()
    made = fleet(NODES, FUNCTIONS)
    for placed in fill(made, 0.9):
        report.progress(f"{placed} instances")
    report.emit("place.memory_mb", one(memory_mb() - before), instances=len(made.live), functions=FUNCTIONS)
    gc.freeze()
    drawn = steps(made, PLACEMENTS, REFUSED)
    rates = []
    for at in range(0, PLACEMENTS, PLACEMENTS // 10):
        began = time.process_time()
        for (version, shape, refuses), end in zip(drawn.wanted[at : at + 5000], drawn.ends[at : at + 5000], strict=True):
            step(made, version, shape, refuses, end)
        rates.append(5000 / (time.process_time() - began))
    report.emit("place.rate", mean(rates), nodes=NODES, full=round(made.full, 3), refusals=made.refusals)
    drawn = steps(made, PLACEMENTS, REFUSED)
    taken = []
    for (version, shape, refuses), end in zip(drawn.wanted, drawn.ends, strict=True):
        began = time.perf_counter()
        step(made, version, shape, refuses, end)
        taken.append((time.perf_counter() - began) * 1000)
    report.emit("place.10k.p99_ms", quantile(taken, 0.99), nodes=NODES, p50=round(sorted(taken)[len(taken) // 2], 4))
    began = time.process_time()
    lost = [made.index.remove(f"node-{number}") for number in range(0, NODES, 10)]
    report.emit(
        "place.lost_s", one(time.process_time() - began), nodes=len(lost), instances=sum(sum(each.values()) for each in lost)
    )
    gc.unfreeze()


def _scale_out(report: Report) -> None:
    for at_once in (10_000, 50_000, 200_000):
        report.progress(f"{NODES} nodes scale, {at_once} orders a tick")
        found = ScaleOut(Fleet(nodes=NODES, refused=REFUSED, at_once=at_once)).run()
        told = {"nodes": NODES, "orders_a_tick": at_once, "needed": found.needed}
        waits = {name: round(seconds, 2) for name, seconds in found.waits.items()}
        if 0.95 in found.at_s:
            report.emit("scale.fleet95_s", one(found.at_s[0.95]), **told, first_to_give_way=found.gives_way, waits=waits)
        report.emit("scale.fleet.messages", one(sum(found.messages.values())), **told, **dict(found.messages))
        report.emit("scale.fleet.decision_us", one(sum(found.ticks) / max(1, found.orders) * 1e6), **told, orders=found.orders)
        if at_once == 10_000:
            report.emit("scale.downstream_lag_ticks", one(found.lag_ticks), **told)


def one(value: float) -> Estimate:
    return Estimate(value, value, value, 1)


def memory_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4 / 1024
