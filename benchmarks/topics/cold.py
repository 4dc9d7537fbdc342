"""Topic cold: a first request, step by step: from a clone, from a standby, with real imports. And what standbys weigh."""

import contextlib
import statistics
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial

from benchmarks import processes
from benchmarks.client import Answer
from benchmarks.estimates import mean, quantile, ratio_of_quantiles, slope
from benchmarks.peers.awslambdaric import REQUIREMENTS, LambdaRuntime
from benchmarks.peers.environments import PeerMissing, python_with
from benchmarks.peers.servers import Peer
from benchmarks.peers.starting import started
from benchmarks.peers.uvicorn import BareUvicorn, FastApi
from benchmarks.peers.workerd import WorkerLoader
from benchmarks.platform import Deployed, Platform
from benchmarks.report import OURS, Report

ECHO = Deployed("echo", "echo", "echo:handler")
IMPORTS = Deployed("imports400", "imports400", "imports400:handler", {"memory_mb": 512, "timeout_s": 60})
SETTLE_S = 0.35  # until an instance that was dropped has gone, and a standby has taken the place of the one used
WAITING = (10, 40, 70, 100)  # standbys at which memory is read
TEMPLATE_S = 60.0  # until a function template is held
LARGE = 20  # requests at least for a 99th percentile to be worth printing


def run(report: Report, full: bool) -> None:
    echoes, imports = (300, 40) if full else (60, 10)
    with contextlib.ExitStack() as stack:
        report.progress("starting foreglow without standbys")
        platform = stack.enter_context(Platform(standbys=0, templates=False))
        report.driver, report.tier = platform.driver, platform.tier
        platform.deploy([ECHO, IMPORTS])
        peers = [peer for peer in started([LambdaRuntime(), WorkerLoader()], stack, report) if peer.scales_to_zero]
        report.progress("cold echo")
        rested = _rested(echoes, platform, stack, report)
        cold = _in_turn(echoes, {OURS: _first(platform, "echo", "cold"), **{one.name: _peer_first(one, "echo") for one in peers}})
        report.progress("cold imports")
        able = [one for one in peers if isinstance(one, LambdaRuntime)]
        first_import = {one.name: _peer_first(one, "imports400") for one in able}
        imported = _in_turn(imports, {OURS: _first(platform, "imports400", "cold"), **first_import})
    templated = _from_template(imports * 3, report)
    report.progress("starting foreglow with standbys")
    with contextlib.ExitStack() as stack:
        platform = stack.enter_context(Platform(standbys=4))
        platform.deploy([ECHO])
        peers = started([WorkerLoader()], stack, report)
        platform.invoke("echo")
        time.sleep(2.0)  # the pool fills after the first use of a shape
        standby = _in_turn(
            echoes, {OURS: _first(platform, "echo", "standby"), **{one.name: _peer_first(one, "echo") for one in peers}}
        )
    for system, answers in rested.items():
        report.emit("process.rested.p50_ms", quantile([answer.ms for answer in answers], 0.5), system)
    _tell(report, "process.cold", cold)
    _tell(report, "process.standby", standby)
    _tell(report, "imports400", templated)
    _tell(report, "imports400.without", imported)
    _tell_bare_imports(report, imports)
    _tell_starts(report, 20 if full else 5)
    _tell_standby_memory(report)


def _from_template(times: int, report: Report) -> dict[str, list[Answer]]:
    """Cold starts of the imports from their function template, which the first start earned them."""
    report.progress("cold imports from a function template")
    with Platform(standbys=0) as platform:
        platform.deploy([IMPORTS])
        platform.invoke("imports400")
        until = time.monotonic() + TEMPLATE_S
        while not platform.template_held("imports400"):
            if time.monotonic() > until:
                raise RuntimeError(f"no function template after {TEMPLATE_S:.0f} s")
            time.sleep(0.1)
        return _in_turn(times, {OURS: _first(platform, "imports400", "cold")})


def _first(platform: Platform, name: str, start: str) -> Callable[[], Answer]:
    def ask() -> Answer:
        platform.cool(name)
        time.sleep(SETTLE_S)
        answer = platform.invoke(name)
        if answer.start != start:
            raise RuntimeError(f"{name} started {answer.start}, not {start}: this run measures something else")
        return answer

    return ask


def _rested(times: int, platform: Platform, stack: contextlib.ExitStack, report: Report) -> dict[str, list[Answer]]:
    """Warm requests after the pause a cold one has: processes have slept, caches have been used by others."""

    def after_pause(ask: Callable[[], Answer]) -> Callable[[], Answer]:
        def paused() -> Answer:
            time.sleep(SETTLE_S)
            return ask()

        return paused

    servers = {peer.name: after_pause(partial(peer.invoke, "echo")) for peer in started([BareUvicorn()], stack, report)}
    return _in_turn(times // 2, {OURS: after_pause(partial(platform.invoke, "echo")), **servers})


def _peer_first(peer: Peer, name: str) -> Callable[[], Answer]:
    def ask() -> Answer:
        peer.cool([name])
        time.sleep(SETTLE_S)
        return peer.invoke(name)

    return ask


def _in_turn(times: int, systems: dict[str, Callable[[], Answer]]) -> dict[str, list[Answer]]:
    """Each system once a round; the first round is not counted: it fills caches on all sides."""
    answers: dict[str, list[Answer]] = defaultdict(list)
    for number in range(times + 1):
        for name, ask in systems.items():
            answer = ask()
            if number:
                answers[name].append(answer)
    return answers


def _tell(report: Report, prefix: str, answers: dict[str, list[Answer]]) -> None:
    ms = {system: [answer.ms for answer in found] for system, found in answers.items()}
    for system, values in ms.items():
        report.emit(f"{prefix}.p50_ms", quantile(values, 0.5), system)
        if len(values) >= LARGE and not prefix.startswith("imports400"):
            report.emit(f"{prefix}.p99_ms", quantile(values, 0.99), system)
    for step, values in steps(answers[OURS]).items():
        report.emit(f"{prefix}.step_ms", mean(values), step=step)
    for peer in ms.keys() - {OURS}:
        report.emit_ratio(f"{prefix}.p50_ms", ratio_of_quantiles(ms[OURS], ms[peer], 0.5, paired=True), peer)


def steps(answers: Sequence[Answer]) -> dict[str, list[float]]:
    """ms of each step that happened in any of them, and `rest`: connecting, HTTP and the RPC, which no step covers."""
    names = list(dict.fromkeys(name for answer in answers for name in answer.steps_ms))
    found = {name: [answer.steps_ms.get(name, 0.0) for answer in answers] for name in names}
    return {**found, "rest": [answer.ms - sum(answer.steps_ms.values()) for answer in answers]}


def _tell_bare_imports(report: Report, times: int) -> None:
    report.progress("the same imports in a plain interpreter")
    measure = "import time; began = time.perf_counter(); import pandas, requests; print((time.perf_counter() - began) * 1000)"
    try:
        python = python_with("imports400", REQUIREMENTS.read_text().split())
    except PeerMissing as missing:
        report.note(f"without {missing}")
        return
    runs = [
        float(subprocess.run([str(python), "-c", measure], capture_output=True, text=True, check=True, timeout=60).stdout)
        for _ in range(times + 1)
    ]
    report.emit("imports400.bare_ms", quantile(runs[1:], 0.5), "python")


def _tell_starts(report: Report, times: int) -> None:
    """Servers that are always on have no cold start; what they have is a start."""
    found: dict[str, list[float]] = defaultdict(list)
    for _ in range(times):
        for peer in (BareUvicorn(), FastApi()):
            with contextlib.ExitStack() as stack:
                found[peer.name] += [one.start_ms for one in started([peer], stack, report)]
    for name, values in found.items():
        if values:
            report.emit("process.start_ms", quantile(values, 0.5), name)


def _tell_standby_memory(report: Report) -> None:
    shared: dict[float, list[float]] = {}
    whole: dict[float, list[float]] = {}
    for standbys in WAITING:
        report.progress(f"memory of {standbys} standbys")
        with Platform(standbys=standbys) as platform:
            platform.deploy([ECHO])
            platform.invoke("echo")
            platform.cool("echo")
            _wait_for_standbys(platform, standbys)
            node = platform.pids()["node"]
            shared[standbys] = [processes.pss_mb(node)]
            whole[standbys] = [shared[standbys][0] + kernel_mb() for _ in range(5)]
    report.emit("process.standby.mb", slope(whole))
    report.emit("process.standby.pss_mb", slope(shared))


def kernel_mb() -> float:
    """The median over a moment: others on the machine come and go."""
    values = []
    for _ in range(5):
        values.append(processes.kernel_memory_mb())
        time.sleep(0.05)
    return statistics.median(values)


def _wait_for_standbys(platform: Platform, standbys: int) -> None:
    until = time.monotonic() + 60
    while (found := platform.standbys_waiting()) < standbys:
        if time.monotonic() > until:
            raise RuntimeError(f"only {found} of {standbys} standbys after 60 s")
        time.sleep(0.1)
    time.sleep(0.5)
