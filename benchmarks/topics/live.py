"""Topic live: no prewarming, the whole path, and the priced policy on real sandboxes; the same runs replayed; the difference."""

import httpx
import numpy as np

from benchmarks.estimates import Estimate, bootstrap, quantile, share
from benchmarks.platform import Platform
from benchmarks.replay import live
from benchmarks.replay.live import Live, Measured
from benchmarks.report import OURS, Report

POLICIES = ("off", "path", "priced")
SEED = 20260421
TEACH = 15


def run(report: Report, full: bool) -> None:
    report.progress("starting foreglow")
    with Platform(standbys=2, prewarm="off") as platform:
        report.driver, report.tier = platform.driver, platform.tier
        platform.deploy(live.deployed())
        found = live.measure(platform, _known(platform, report), 40 if full else 5, TEACH, SEED, report.progress)
    starts = live.starts_of(found.starts_s)
    report.note(
        f"starts in the replay: {starts.driver.clone.p50_s * 1000:.1f} ms (99 % {starts.driver.clone.p99_s * 1000:.1f}) and an "
        f"init of {live.INIT_S * 1000:g} ms, from the {len(found.starts_s)} starts of stages on demand in this "
        "measurement, out of standbys where there was one"
    )
    for policy, entry in sorted(found.by_policy):
        _tell(report, found, policy, entry)


def _known(platform: Platform, report: Report) -> list[str]:
    """Those of POLICIES that this platform has."""
    known = []
    for policy in POLICIES:
        try:
            platform.prewarm(policy)
        except (RuntimeError, httpx.HTTPError) as error:
            report.note(f"without {policy}: {error}")
        else:
            known.append(policy)
    return known


def _tell(report: Report, found: Live, policy: str, entry: str) -> None:
    measured = found.by_policy[policy, entry]
    replayed = live.replay(found, policy, entry)
    of = {"workflow": entry, "prewarm": policy}
    for how, one in (("live", measured), ("replay", replayed)):
        report.emit("live.added_ms", quantile(one.added_ms, 0.5), OURS, how=how, **of)
        report.emit("live.idle_s", quantile(one.idle_s, 0.5), OURS, how=how, **of)
        report.emit("live.stages_waited", share(one.waited, one.calls), OURS, how=how, **of)
    report.emit("live.difference_ms", _difference(measured, replayed), OURS, **of)


def _difference(measured: Measured, replayed: Measured) -> Estimate:
    return bootstrap(
        [measured.added_ms, replayed.added_ms], lambda groups: float(np.median(groups[0]) - np.median(groups[1])), paired=True
    )
