"""Topic microvm: a first request in a microVM, cold and from a standby, with and without a network card; what standbys cost.

Always emulated (tcg), and every line says so: hardware virtualisation makes different figures.
"""

import json
import time
from collections.abc import Callable

from benchmarks import processes
from benchmarks.client import Answer
from benchmarks.estimates import Estimate, mean, quantile, slope, slope_of
from benchmarks.platform import IMAGE, Deployed, Platform
from benchmarks.report import Report
from benchmarks.topics.cold import ECHO, LARGE, kernel_mb, steps
from workers.drivers.microvm.image import build

ACCEL = "tcg"
MOST, MARKS = 100, (10, 40, 70, 100)  # standbys; at which memory is read
FILLING_FROM = 4
PARTS = ("translated code", "guest", "QEMU's own", "programs")
FILL, FULL_MB = Deployed("fill", "fill", "fill:handler", {"memory_mb": 128, "timeout_s": 60}), 100
FILL_TIMEOUT_S = 240.0
REFILL_S = 20.0  # until a standby has taken the place of the one used
TRIES, TOLD_S = 5, 1.2  # what the node told of its standbys may be a second old
SETTLE_S = 0.5  # until an instance that was dropped has gone
REST_S = 0.35


def run(report: Report, full: bool) -> None:
    image(report)
    times = 120 if full else 15
    for network in (True, False):
        _tell_first_requests(report, times, network)
    _tell_full(report)
    _tell_pool(report)


def image(report: Report) -> None:
    """The guest image, once a machine: seconds and 39 MB from Debian's servers."""
    report.progress("the guest image")
    build(IMAGE, report.progress)


def _platform(standbys: int, network: bool = True) -> Platform:
    return Platform(standbys, driver="microvm", environment={"FOREGLOW_MICROVM_NETWORK": "1" if network else "0"})


def _tell_first_requests(report: Report, times: int, network: bool) -> None:
    """Cold and standby on platforms of their own, beside each other, by turns. `network`: guests have a card."""
    card = "yes" if network else "no"
    report.progress(f"starting foreglow, network card: {card}")
    began = time.monotonic()
    with _platform(0, network) as bare:
        up_s = time.monotonic() - began
        with _platform(4, network) as waiting:
            report.driver, report.tier = bare.driver, bare.tier
            for platform in (bare, waiting):
                platform.deploy([ECHO])
                platform.invoke(ECHO.name)
            found: dict[str, list[Answer]] = {"cold": [], "standby": [], "warm": []}
            report.progress("first requests by turns: cold, standby, warm")
            for number in range(times + 1):
                turn = {"cold": _first(bare, ECHO, "cold"), "standby": _first(waiting, ECHO, "standby"), "warm": _warm(bare)}
                for name, ask in turn.items():
                    answer = ask()
                    if number:  # the first round fills caches on all sides
                        found[name].append(answer)
    report.emit("microvm.up_s", Estimate(up_s, up_s, up_s, 1), accel=ACCEL, network=card)
    for name, answers in found.items():
        ms = [answer.ms for answer in answers]
        report.emit(f"microvm.{name}.p50_ms", quantile(ms, 0.5), accel=ACCEL, network=card)
        if name != "warm":
            if len(ms) >= LARGE:
                report.emit(f"microvm.{name}.p99_ms", quantile(ms, 0.99), accel=ACCEL, network=card)
            for step, values in steps(answers).items():
                report.emit(f"microvm.{name}.step_ms", mean(values), step=step, accel=ACCEL, network=card)


def _first(platform: Platform, function: Deployed, start: str) -> Callable[[], Answer]:
    def ask() -> Answer:
        for _ in range(TRIES):
            platform.cool(function.name)
            if start == "standby":
                time.sleep(TOLD_S)
                _wait_for(platform, platform.standbys, REFILL_S)
            time.sleep(SETTLE_S)
            answer = platform.invoke(function.name)
            if answer.start == start:
                return answer
        raise RuntimeError(f"{function.name} started {answer.start}, not {start}: this run measures something else")

    return ask


def _warm(platform: Platform) -> Callable[[], Answer]:
    def ask() -> Answer:
        time.sleep(REST_S)
        return platform.invoke(ECHO.name)

    return ask


def _wait_for(platform: Platform, standbys: int, timeout_s: float) -> None:
    until = time.monotonic() + timeout_s
    while (found := platform.standbys_waiting()) < standbys:
        if time.monotonic() > until:
            raise RuntimeError(f"only {found} of {standbys} standbys after {timeout_s:g} s")
        time.sleep(0.05)


def _tell_full(report: Report) -> None:
    """What an instance takes beside what its function holds, when that is most of its memory and much code has run in it."""
    report.progress("a full instance")
    with _platform(0) as platform:
        platform.deploy([FILL])
        platform.invoke(FILL.name, b'{"mb":1}')
        beside = []
        for mb in (50, 75, FULL_MB):
            platform.invoke(FILL.name, json.dumps({"mb": mb}).encode())
            below = processes.descendants(platform.pids()["node"][0])
            beside.append(
                max(processes.pss_mb([pid]) for pid in below if "qemu" in " ".join(processes.command_line(pid)[:1])) - mb
            )
    report.emit("microvm.full.beside_mb", quantile(beside, 1.0), accel=ACCEL)


def _machines(platform: Platform) -> list[int]:
    """Its QEMUs."""
    below = processes.descendants(platform.pids()["node"][0])
    return [pid for pid in below if any("qemu-system" in word for word in processes.command_line(pid)[:1])]


def _part(rights: str, name: str) -> str:
    """What a mapping of a QEMU is for."""
    if "memfd:foreglow" in name:
        return "guest"
    if "x" in rights and not name:
        return "translated code"
    return "programs" if name.startswith("/") else "QEMU's own"


def _tell_pool(report: Report) -> None:
    """One pool that fills to 100: how fast, and what memory it holds at four places on the way."""
    report.progress(f"a pool of {MOST} standbys fills")
    shared: dict[float, list[float]] = {}
    whole: dict[float, list[float]] = {}
    seen: list[tuple[float, int]] = []
    with Platform(MOST, driver="microvm", environment={"FOREGLOW_NODE_MEMORY_MB": str(64 << 10)}) as platform:
        platform.deploy([ECHO])
        platform.invoke(ECHO.name)
        platform.cool(ECHO.name)
        node, marks = platform.pids()["node"][0], list(MARKS)
        until = time.monotonic() + FILL_TIMEOUT_S
        while marks:
            now, waiting = time.monotonic(), platform.standbys_waiting()
            if now > until:
                raise RuntimeError(f"only {waiting} of {MOST} standbys after {FILL_TIMEOUT_S:g} s")
            if waiting >= FILLING_FROM and waiting < MOST:
                seen.append((now, waiting))
            if waiting >= marks[0]:
                marks.pop(0)
                mb = processes.pss_mb(processes.descendants(node))
                kernel = kernel_mb()
                between = (waiting + platform.standbys_waiting()) / 2  # the pool goes on filling meanwhile
                shared[between], whole[between] = [mb], [mb + kernel]
            time.sleep(0.05)
        parts = [processes.private_mb(pid, _part) for pid in _machines(platform)]
    for name in PARTS:
        report.emit("microvm.standby.part_mb", mean([one.get(name, 0.0) for one in parts]), part=name, accel=ACCEL)
    first = next(at for at, waiting in seen if waiting >= FILLING_FROM)
    rate = slope_of([at - first for at, _ in seen], [waiting for _, waiting in seen])
    report.emit("microvm.clones_per_s", Estimate(rate, rate, rate, len(seen)), accel=ACCEL)
    report.emit("microvm.standby.mb", slope(whole), accel=ACCEL)
    report.emit("microvm.standby.pss_mb", slope(shared), accel=ACCEL)
