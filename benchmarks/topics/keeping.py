"""Topic keeping: what policies pay in memory for as few cold starts, over eight hours of Azure's load under a virtual clock."""

from pathlib import Path

from benchmarks.estimates import Estimate
from benchmarks.replay import load
from benchmarks.report import Report
from benchmarks.scaling.replaying import START_S, Case, all_of, fixed, histogram, kpa, ours
from orchestrator.scaling.kpa import KpaSettings
from orchestrator.whatif.plot import frontier

PICTURES = Path("build/keeping")


def run(report: Report, full: bool) -> None:
    minutes = 480 if full else 60
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
        details = {"setting": case.setting, "minutes": minutes, "cold": came.cold, "wasted_gb_s": round(came.wasted_s / 4)}
        report.emit("keep.cold_ratio", Estimate(ratio, ratio, ratio, came.calls), system, **details)
    PICTURES.mkdir(parents=True, exist_ok=True)
    frontier(PICTURES / "keeping.svg", f"250 functions of Azure, {minutes} minutes; a start takes 156 ms", points)
    report.note(f"picture: {PICTURES}/keeping.svg, one call a run")


def cases() -> list[Case]:
    return [
        *(fixed(seconds) for seconds in (10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0)),
        histogram(),
        kpa(KpaSettings(), "as published"),
        kpa(KpaSettings(grace_s=0.0), "no grace"),
        *(ours(price, 60.0) for price in (1.0, 0.3, 0.1, 0.03)),
        *(ours(price, 60.0, levels=False) for price in (1.0, 0.3, 0.1, 0.03)),
    ]
