"""Topic release: an alias goes from one version to the next, 0 -> 30 -> 100 %, under load: gated, ungated, not at all, in turns.

The load is open: calls leave at their time whoever waits, and their time counts from then. Of the path of two functions the entry
is released; its module takes 150 ms to import, each stage works for 10 ms.
"""

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import httpx

from benchmarks.estimates import Estimate, bootstrap, quantile, ratio_of_quantiles
from benchmarks.paths import names, stages
from benchmarks.platform import Deployed, Platform
from benchmarks.report import Report

CLIENTS = 8
PERIOD_S = 0.16  # of each client: 50 calls a second together
HOLD_S = 2.0
WINDOW_S = 7.0  # of each arm: a release, its steps, and some time after
SETTLED_S = 60.0
ARMS = ("gated", "ungated", "still", "still again")
WAITED = ("cold", "standby", "almost-warm")
EVENT = b'{"stages":0}'
SEED = 11
RULES = {  # no release is to stop half-way, nor to wait longer than its holds
    "FOREGLOW_RELEASE_REQUESTS": "1",
    "FOREGLOW_RELEASE_ERROR_RATE": "1",
    "FOREGLOW_RELEASE_SLOWDOWN": "1000",
}


@dataclass
class Arm:
    """Of all its windows: ms by round, and how many requests waited for an instance, of the new version and of all."""

    rounds: list[list[float]] = field(default_factory=list)
    waited_new: int = 0
    waited: int = 0
    failed: int = 0
    slowest_wait_ms: float = 0.0

    @property
    def ms(self) -> list[float]:
        return [one for each in self.rounds for one in each]


@dataclass(frozen=True)
class Call:
    due: float
    ms: float
    status: int
    start: str
    version: int


class Load:
    """Calls of the alias until `stop`; `calls` grows."""

    def __init__(self, platform: Platform, target: str) -> None:
        self.calls: list[Call] = []
        self._url = f"http://127.0.0.1:{platform.port}/function/{target}"
        self._headers = {"Authorization": platform.authorization, "Content-Type": "application/json"}
        self._ending = threading.Event()
        self._versions: dict[str, int] = {}
        self._threads = [threading.Thread(target=self._client, args=(number,), daemon=True) for number in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def _client(self, number: int) -> None:
        due = time.monotonic() + number * PERIOD_S / CLIENTS
        with httpx.Client(headers=self._headers, trust_env=False, timeout=30) as http:
            while not self._ending.is_set():
                time.sleep(max(0.0, due - time.monotonic()))
                answer = http.post(self._url, content=EVENT)
                ms = (time.monotonic() - due) * 1000
                version = int(answer.json().get("release", 0)) if answer.status_code == 200 else 0
                self.calls.append(Call(due, ms, answer.status_code, answer.headers.get("x-foreglow-start", ""), version))
                due += PERIOD_S

    def stop(self) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join(30)


def run(report: Report, full: bool) -> None:
    rounds = 40 if full else 7
    report.progress("starting foreglow")
    with Platform(standbys=2, prewarm="path", environment=RULES) as platform:
        report.driver, report.tier = platform.driver, platform.tier
        entry = names("wait", 2)[0]
        path = stages("wait", 2)
        platform.deploy(path)
        first = _newest(platform, entry)
        _checked(platform, "PUT", f"/v1/functions/{entry}/aliases/live", {"version": first})
        time.sleep(1.0)
        load = Load(platform, f"{entry}:live")
        try:
            time.sleep(3.0)
            arms = _measure(report, platform, entry, load, rounds)
        finally:
            load.stop()
    _tell(report, arms)


def _measure(report: Report, platform: Platform, entry: str, load: Load, rounds: int) -> dict[str, Arm]:
    order = random.Random(SEED)
    arms = {name: Arm() for name in ARMS}
    for number in range(rounds):
        report.progress(f"round {number + 1} of {rounds}")
        for name in order.sample(ARMS, len(ARMS)):
            version = 0
            if not name.startswith("still"):
                version = _deploy(platform, entry)
                time.sleep(1.0)
            began = time.monotonic()
            if name == "gated":
                _gated(platform, entry, version)
            elif name == "ungated":
                _ungated(platform, entry, version)
            time.sleep(max(0.0, began + WINDOW_S - time.monotonic()))
            ended = time.monotonic()
            time.sleep(0.5)  # what was due in the window has been answered
            _count(arms[name], [one for one in list(load.calls) if began <= one.due < ended], version)
    return arms


def _count(arm: Arm, calls: list[Call], version: int) -> None:
    waits = [one for one in calls if one.start in WAITED]
    arm.rounds.append([one.ms for one in calls if one.status == 200])
    arm.failed += sum(one.status != 200 for one in calls)
    arm.waited += len(waits)
    new = [one for one in waits if version and one.version == version]
    arm.waited_new += len(new)
    arm.slowest_wait_ms = max([arm.slowest_wait_ms, *(one.ms for one in new)])


def _tell(report: Report, arms: dict[str, Arm]) -> None:
    still = arms["still"].ms
    same = ratio_of_quantiles(arms["still again"].ms, still, 0.99)
    for name in ("gated", "ungated"):
        arm = arms[name]
        ratio = ratio_of_quantiles(arm.ms, still, 0.99)
        n, releases = len(arm.ms), len(arm.rounds)
        excess = ratio.high / max(1.05, same.high)
        suffix = "" if name == "gated" else "ungated_"
        report.emit(f"release.{suffix}cold_requests", _whole(arm.waited_new, n), releases=releases, failed=arm.failed)
        report.emit(f"release.{suffix}p99_ms", quantile(arm.ms, 0.99))
        report.emit(f"release.{suffix}p99_ratio", ratio)
        report.emit(f"release.{suffix}p99_excess", Estimate(excess, excess, excess, n))
    report.emit("release.still_p99_ms", quantile(still, 0.99))
    report.emit("release.still_p99_ratio", same)
    report.emit("release.mean_ratio", bootstrap([arms["gated"].ms, still], lambda of: float(of[0].mean() / of[1].mean())))
    for name in ("gated", "ungated"):
        arm = arms[name]
        told = f"the new version's first calls took up to {arm.slowest_wait_ms:.0f} ms"
        report.note(f"{name}: {told}; {arm.waited} calls waited for an instance of whatever version")


def _whole(count: int, n: int) -> Estimate:
    return Estimate(count, count, count, n)


# -- releases


def _deploy(platform: Platform, entry: str) -> int:
    """A new version, which only $LATEST means: nobody calls that, so nothing is made ready for it. It says its number."""
    wanted = stages("wait", 2)[0]
    number = _newest(platform, entry) + 1
    environment = {**wanted.settings["environment"], "RELEASE": str(number)}
    settings = {**wanted.settings, "environment": environment, "release": {"gate": False}}
    platform.deploy([Deployed(wanted.name, wanted.folder, wanted.handler, settings)])
    return number


def _gated(platform: Platform, entry: str, version: int) -> None:
    plan = {"ramp": [0.3, 1.0], "hold_s": HOLD_S}
    _checked(platform, "PUT", f"/v1/functions/{entry}/aliases/live", {"version": version, "release": plan})
    _until(lambda: platform.get(f"/v1/releases?function={entry}&limit=10")["releases"], _live_done)


def _ungated(platform: Platform, entry: str, version: int) -> None:
    path = f"/v1/functions/{entry}/aliases"
    before = next(one["version"] for one in platform.get(path)["aliases"] if one["name"] == "live")
    now = {"gate": False}
    _checked(platform, "PUT", f"{path}/live", {"version": before, "second": version, "share": 0.3, "release": now})
    time.sleep(HOLD_S)
    _checked(platform, "PUT", f"{path}/live", {"version": version, "release": now})


def _live_done(releases: list[dict[str, object]]) -> bool:
    newest = next(one for one in releases if one["alias"] == "live")
    if newest["phase"] not in ("done", "preparing", "holding"):
        raise RuntimeError(f"the release ended as {newest['phase']}: {newest['reason']}")
    return newest["phase"] == "done"


def _until(look: Callable[[], list[dict[str, object]]], true: Callable[[list[dict[str, object]]], bool]) -> None:
    until = time.monotonic() + SETTLED_S
    while not true(look()):
        if time.monotonic() > until:
            raise RuntimeError("the release did not end in time")
        time.sleep(0.05)


def _newest(platform: Platform, entry: str) -> int:
    return max(int(one["number"]) for one in platform.get(f"/v1/functions/{entry}")["versions"])


def _checked(platform: Platform, method: str, path: str, document: object) -> None:
    answer = platform.control.request(method, path, json=document)
    if answer.is_error:
        raise RuntimeError(f"{method} {path}: {answer.status_code} {answer.text[:300]}")
