"""Topic warm: what a warm request costs, beside the bare servers it could have gone to. Systems take turns: noise is shared."""

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from benchmarks import processes, wrk
from benchmarks.estimates import mean, quantile, ratio_of_quantiles
from benchmarks.peers.awslambdaric import LambdaRuntime
from benchmarks.peers.starting import started
from benchmarks.peers.uvicorn import BareUvicorn, FastApi
from benchmarks.peers.workerd import WorkerLoader
from benchmarks.platform import Deployed, Platform
from benchmarks.report import OURS, Report

ECHO = Deployed("echo", "echo", "echo:handler")
SETTLE_S = 1.0


@dataclass(frozen=True)
class System:
    """`parts`: its processes by what they count as."""

    name: str
    port: int
    path: str
    authorization: str
    parts: Callable[[], dict[str, list[int]]]


def run(report: Report, full: bool) -> None:
    rounds, seconds = (12, 10.0) if full else (4, 4.0)
    with contextlib.ExitStack() as stack:
        report.progress("starting foreglow")
        platform = stack.enter_context(Platform(standbys=8, prewarm="path"))
        report.driver, report.tier = platform.driver, platform.tier
        platform.deploy([ECHO])
        systems = [System(OURS, platform.port, "/function/echo", platform.authorization, lambda: _parts(platform))]
        peers = started([BareUvicorn(), FastApi(), LambdaRuntime(), WorkerLoader()], stack, report)
        systems += [System(one.name, one.port, one.path("echo"), "", partial(_whole, one.process.pid)) for one in peers]
        for system in systems:
            for connections in (1, 8):
                wrk.run(system.port, system.path, connections, 1, system.authorization, verify=True)
        samples: dict[tuple[str, str], list[float]] = defaultdict(list)
        for number in range(rounds):
            report.progress(f"round {number + 1} of {rounds}")
            for system in systems:
                _measure(system, seconds, samples)
    _tell(report, [system.name for system in systems], samples)


def _whole(pid: int) -> dict[str, list[int]]:
    return {"all": processes.descendants(pid)}


def _parts(platform: Platform) -> dict[str, list[int]]:
    """Ours: gateway, node and instances are what a request costs; the rest is printed beside."""
    pids = platform.pids()
    node = pids["node"][:1]
    rest = [pid for name, found in pids.items() if name not in ("gateway", "node") for pid in found]
    return {"gateway": pids["gateway"], "node": node, "instances": pids["node"][1:], "rest": rest}


def _measure(system: System, seconds: float, samples: dict[tuple[str, str], list[float]]) -> None:
    """One connection for latency, then eight for throughput and CPU."""
    one = wrk.run(system.port, system.path, 1, seconds, system.authorization)
    samples[system.name, "warm.p50_ms"].append(one.p50_ms)
    samples[system.name, "warm.p99_ms"].append(one.p99_ms)
    time.sleep(SETTLE_S / 4)
    parts = system.parts()
    before = {part: processes.cpu_seconds(pids) for part, pids in parts.items()}
    eight = wrk.run(system.port, system.path, 8, seconds, system.authorization)
    time.sleep(SETTLE_S / 4)  # what was put off is paid for by then
    after = {part: processes.cpu_seconds(pids) for part, pids in system.parts().items()}
    cost = {part: (after[part] - before[part]) / eight.answers * 1e6 for part in parts}
    samples[system.name, "warm.rps"].append(eight.rps)
    samples[system.name, "warm.cpu_us"].append(sum(us for part, us in cost.items() if part != "rest"))
    samples[system.name, "warm.cpu_client_us"].append(eight.client_cpu_s / eight.answers * 1e6)
    for part in set(cost) - {"all"}:
        samples[system.name, f"warm.cpu_{part}_us"].append(cost[part])


def _tell(report: Report, names: list[str], samples: dict[tuple[str, str], list[float]]) -> None:
    for (system, metric), values in samples.items():
        estimate = mean(values) if metric.startswith("warm.cpu_") else quantile(values, 0.5)
        report.emit(metric, estimate, system)
    for peer in names[1:]:
        for metric in ("warm.p50_ms", "warm.p99_ms", "warm.rps", "warm.cpu_us"):
            report.emit_ratio(metric, ratio_of_quantiles(samples[OURS, metric], samples[peer, metric], 0.5, paired=True), peer)
