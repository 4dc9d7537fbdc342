"""Topic scaling: how fast instances come when load steps up, what other policies pay for as few cold starts, and placement and
scaling of ten thousand nodes under a virtual clock."""

import gc
import time
from pathlib import Path

from benchmarks.estimates import Estimate, mean, quantile
from benchmarks.replay import load
from benchmarks.report import Report
from benchmarks.scaling.fleet import fill, fleet, step, steps
from benchmarks.scaling.replaying import START_S, Case, all_of, fixed, histogram, kpa, ours
from benchmarks.scaling.stepping import step as stepped
from orchestrator.scaling.kpa import KpaSettings
from orchestrator.whatif.plot import frontier
from orchestrator.whatif.scaleout import Fleet, ScaleOut

PICTURES = Path("build/scaling")
NODES, FUNCTIONS, REFUSED = 10_000, 1_000_000, 0.05
PLACEMENTS = 50_000


def run(report: Report, full: bool) -> None:
    _step(report, 6 if full else 2)
    _place(report)
    _scale_out(report)
    _replay(report, 480 if full else 60)


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


def _replay(report: Report, minutes: int) -> None:
    try:
        functions = load.read()
    except load.LoadMissing as missing:
        report.note(f"without the replay: {missing}")
        return
    report.note(f"load: {load.SOURCE}; the first {minutes} minutes, a minute's calls spread over it uniformly at random")
    report.note(
        f"every policy on the same platform: a call that finds no idle instance starts one in {START_S * 1000:.0f} ms; 256 MB"
    )
    points: dict[str, list[tuple[float, float]]] = {}
    for case in cases():
        report.progress(f"{case.policy} {case.setting}")
        came = all_of(functions, minutes, case)
        ratio, waste = came.cold / came.calls, came.wasted_s / came.calls
        points.setdefault(case.policy, []).append((waste, ratio * START_S * 1000))
        system = "foreglow" if case.policy == "headroom" else case.policy
        details = {"setting": case.setting, "cold": came.cold, "wasted_gb_s": round(came.wasted_s / 4)}
        report.emit("scale.replay.cold_ratio", Estimate(ratio, ratio, ratio, came.calls), system, **details)
    PICTURES.mkdir(parents=True, exist_ok=True)
    frontier(PICTURES / "frontier.svg", f"250 functions of Azure, {minutes} minutes; a start takes 156 ms", points)
    report.note(f"picture: {PICTURES}/frontier.svg, one call a run")


def cases() -> list[Case]:
    return [
        *(fixed(seconds) for seconds in (30.0, 60.0, 120.0, 600.0)),
        histogram(),
        kpa(KpaSettings(), "as published"),
        kpa(KpaSettings(stable_s=120.0), "stable window 120 s"),
        kpa(KpaSettings(grace_s=0.0), "no grace"),
        *(ours(price, 60.0, 1.0) for price in (3.0, 1.0, 0.3, 0.1, 0.03)),
        *(ours(price, 10.0, 1.0) for price in (1.0, 0.1, 0.03)),
        *(ours(price, 10.0, 1.0, unknown_s=60.0) for price in (1.0, 0.3, 0.1, 0.03)),
        *(ours(price, 10.0, 1.0, levels=True) for price in (1.0, 0.3, 0.1, 0.03)),
        ours(0.1, 10.0, 1.0, levels=True, unknown_s=60.0),
    ]


def one(value: float) -> Estimate:
    return Estimate(value, value, value, 1)


def memory_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4 / 1024
