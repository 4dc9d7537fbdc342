"""Topic replay: what each prewarming policy would have done, under a virtual clock, and what stood idle for it.

The planner is the platform's own, the runs are recorded or published ones, the load is Azure's, the start times are measured.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.estimates import Estimate, share
from benchmarks.replay import load
from benchmarks.replay.frontier import BUSIEST, OURS, RAREST, TAUGHT, WEIGHED, Found, Workload, all_cases, calibrations, envelope
from benchmarks.replay.workloads import all_workloads
from benchmarks.report import Report
from graph.calibration import Calibration, merged
from orchestrator.whatif.plot import frontier
from orchestrator.whatif.starts import Starts

PICTURES = Path("build/replay")
SEED = 20260420
HOURS, ALL_HOURS = 1.0, 8.0
WITHIN = 1.05
SWEPT = ("keep-alive", "greedy dual", "most likely path", "mean just in time", "orion", "path")


def run(report: Report, full: bool) -> None:
    starts = Starts()
    try:
        functions = load.read()
        workloads = all_workloads(functions, ALL_HOURS if full else HOURS, starts, SEED)
    except load.LoadMissing as missing:
        report.note(f"without replay: {missing}")
        return
    _tell_assumed(report, workloads, starts)
    report.progress("predictions against what came")
    _tell_calibration(report, calibrations(workloads))
    found: list[Found] = []
    for one in all_cases(workloads, report.progress):
        found.append(one)
        _tell_case(report, one)
    for each in workloads:
        mine = [one for one in found if one.workload == each.name]
        _tell_waste(report, each.name, mine)
        _draw(each, mine)
    _tell_defaults(report, found)
    report.note(f"pictures: {PICTURES}/frontier-*.svg")


def _tell_assumed(report: Report, workloads: Sequence[Workload], starts: Starts) -> None:
    driver = starts.driver
    report.note(f"load: {load.SOURCE}; a minute's calls are spread over it uniformly at random, seed {SEED}")
    report.note(
        f"the entries of a workload stand, at even distances in the order of their calls, for those of Azure's functions with "
        f"{RAREST} to {BUSIEST} calls in 8 hours: a synthetic mapping; {TAUGHT} traces of each entry teach before"
    )
    report.note(
        f"starts: {driver.name}, clone {driver.clone.p50_s * 1000:g} ms (99 % {driver.clone.p99_s * 1000:g}), out of a standby "
        f"{driver.standby.p50_s * 1000:g} ms ({driver.standby.p99_s * 1000:g}), from {driver.source}; and an init of "
        f"{starts.init.p50_s * 1000:g} ms, as in topic chain; lognormal; an order takes 1 ms"
    )
    report.note(
        "instances: 256 MB, one call at a time, no limit of memory or processors; what is kept alive after the last run counts; "
        "kept N s: for how long an instance waits for its next call, the same rule for all but the histogram and greedy dual"
    )
    for each in workloads:
        calls = sum(len(program.stages) for _, program in each.arrivals)
        report.note(f"{each.told}; {len(each.arrivals)} runs, {calls} calls, {len(each.functions)} functions")


def _tell_case(report: Report, one: Found) -> None:
    found = one.figures
    report.emit(
        "replay.added_ms",
        Estimate(found.added_s.value, found.added_s.low, found.added_s.high, found.runs),
        one.case.policy,
        workload=one.workload,
        setting=one.case.setting,
        wasted_s=_short(one.waste_s),
        prewarm_s=_short(found.prewarm_s),
        keep_alive_s=_short(found.keep_alive_s),
        pool_s=_short(found.pool_s),
        per_busy_s=_short(found.per_busy_s),
        gb_s=_short(found.wasted_gb_s.value / 1000),
        stages_waited=_short(found.stages.waited),
        stages_cold=_short(found.stages.cold),
        almost_warm=_short(found.stages.almost_warm),
        entries_waited=_short(found.entries.waited),
        runs_waited=_short(found.chain_cold),
        cse=_short(found.cse_mean),
        slowdown_p50=_short(found.slowdown_p50, 5),
        slowdown_p99=_short(found.slowdown_p99, 5),
    )


def _default(found: Sequence[Found], policy: str) -> Found:
    return next(one for one in found if one.case.policy == policy and one.case.default)


def _tell_waste(report: Report, name: str, found: Sequence[Found]) -> None:
    """Of one workload: where the median is met, and where the mean is."""
    whole = _default(found, "path")
    ours = [one for one in found if one.case.policy == OURS]
    enough = [one for one in ours if one.figures.slowdown_p50 <= WITHIN * whole.figures.slowdown_p50]
    if enough:
        _tell_ratio(report, "replay.waste_ratio.one", min(enough, key=lambda one: one.waste_s), whole)
    else:
        report.note(f"{name}: no setting of the priced policy has a median within 5 % of whole path's")
    for path in (one for one in found if one.case.policy == "path"):
        met = [one for one in ours if one.figures.added_s.value <= WITHIN * path.figures.added_s.value]
        if met:
            _tell_ratio(report, "replay.waste_ratio.mean", min(met, key=lambda one: one.waste_s), path)
        else:
            report.note(f"{name}: no setting of the priced policy adds as little as whole path {path.case.setting} does")


def _ratio(ours: Found, whole: Found) -> Estimate:
    """Bounded by the low of one over the high of the other: wider than a 95 % interval."""
    top, bottom = ours.figures.wasted_s, whole.figures.wasted_s
    return Estimate(top.value / bottom.value, top.low / bottom.high, top.high / max(1e-9, bottom.low), ours.figures.runs)


def _tell_ratio(report: Report, metric: str, ours: Found, whole: Found) -> None:
    report.emit(
        metric,
        _ratio(ours, whole),
        workload=whole.workload,
        setting=ours.case.setting,
        whole_path=whole.case.setting,
        wasted_s=_short(ours.waste_s),
        whole_wasted_s=_short(whole.waste_s),
        added_ms=_short(ours.figures.added_s.value),
        whole_added_ms=_short(whole.figures.added_s.value),
        slowdown_p50=_short(ours.figures.slowdown_p50, 4),
        whole_p50=_short(whole.figures.slowdown_p50, 4),
        slowdown_p99=_short(ours.figures.slowdown_p99, 4),
        whole_p99=_short(whole.figures.slowdown_p99, 4),
        prewarm_and_pool=_short((ours.figures.prewarm_s + ours.figures.pool_s) / max(1e-9, whole.figures.prewarm_s)),
    )


def _tell_defaults(report: Report, found: Sequence[Found]) -> None:
    """The promised figures: over all workloads, or of the worst."""
    ratios = [line for line in report.lines if line.metric.name == "replay.waste_ratio.one"]
    if len(ratios) == len({one.workload for one in found}):
        worst = max(ratios, key=lambda line: line.estimate.value)
        report.emit("replay.waste_ratio", worst.estimate, workload=worst.details["workload"], setting=worst.details["setting"])
    defaults = [one for one in found if one.case.default]
    for one in defaults:
        _tell_cold(report, one)
    for workload in sorted({one.workload for one in found}):
        least = min(
            (one for one in found if one.workload == workload and one.case.policy == OURS),
            key=lambda one: (one.figures.stages.waited, one.waste_s),
        )
        if not least.case.default:
            _tell_cold(report, least)
    ours = [one for one in defaults if one.case.policy == OURS]
    waited = sum(round(one.figures.stages.waited * one.figures.stages.calls) for one in ours)
    report.emit(
        "replay.stage_cold_ratio",
        share(waited, sum(one.figures.stages.calls for one in ours)),
        setting=f"{WEIGHED}, c_w 1",
        wasted_s=_short(_mean_waste(ours)),
        whole_path_wasted_s=_short(_mean_waste([one for one in defaults if one.case.policy == "path"])),
    )


def _tell_calibration(report: Report, said: Mapping[str, Calibration]) -> None:
    whole = merged(list(said.values()))
    error = whole.error() or 0.0
    each = {name: _short(one.error() or 0.0) for name, one in said.items()}
    report.emit("replay.calibration_error", Estimate(error, error, error, sum(one.count for one in whole.bins())), **each)


def _mean_waste(found: Sequence[Found]) -> float:
    return sum(one.waste_s * one.figures.runs for one in found) / sum(one.figures.runs for one in found)


def _tell_cold(report: Report, one: Found) -> None:
    stages = one.figures.stages
    report.emit(
        "replay.stage_cold_ratio.one",
        share(round(stages.waited * stages.calls), stages.calls),
        one.case.policy,
        workload=one.workload,
        setting=one.case.setting,
        wasted_s=_short(one.waste_s),
        cold=_short(stages.cold),
        almost_warm=_short(stages.almost_warm),
        entries_waited=_short(one.figures.entries.waited),
    )


def _draw(each: Workload, found: Sequence[Found]) -> None:
    curves = {name: envelope([one for one in found if one.case.policy == name]) for name in SWEPT}
    curves["priced (ours)"] = envelope([one for one in found if one.case.policy == OURS])
    for name in ("none", "hybrid histogram", "clairvoyant"):
        curves[name] = [one for one in found if one.case.policy == name]
    PICTURES.mkdir(parents=True, exist_ok=True)
    frontier(
        PICTURES / f"frontier-{each.name}.svg",
        f"{each.name}: {len(each.arrivals)} runs under Azure's load; starts of about 156 ms",
        {name: [(one.waste_s, one.figures.added_s.value) for one in ones] for name, ones in curves.items()},
    )


def _short(value: float, digits: int = 3) -> float:
    return float(f"{value:.{digits}g}")
