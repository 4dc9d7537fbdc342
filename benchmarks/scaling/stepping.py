"""A step from 1 to 50 concurrent requests on a real platform, under one scaling policy."""

import math
import threading
import time
from dataclasses import dataclass, field

from benchmarks.client import NotOk
from benchmarks.platform import Deployed, Platform

CLIENTS = 50
WORK_MS = 400.0
WARM_S, STEP_S = 4.0, 12.0
TICK_S = 1.5
"""The first tick after the step is over by then."""

WORK = Deployed(
    "work",
    "chain",
    "chain:handler",
    {"environment": {"INIT": "wait", "INIT_S": "0.15", "WORK_S": str(WORK_MS / 1000)}, "timeout_s": 30},
)


@dataclass
class Stepped:
    """`ready_s`: when each instance that was started for a request was ready, from the step on: its answer less its work. `ms`:
    of requests sent after the first tick; `cold`: of these."""

    ready_s: list[float] = field(default_factory=list)
    cold: int = 0
    ms: list[float] = field(default_factory=list)
    failed: int = 0

    @property
    def step95_s(self) -> float | None:
        """None: so many were not started."""
        enough = math.ceil(0.95 * CLIENTS) - 1  # the one of before is there
        return sorted(self.ready_s)[enough - 1] if len(self.ready_s) >= enough else None


def step(policy: str) -> tuple[Stepped, str, str]:
    """Returns what came, the driver and its tier."""
    found = Stepped()
    environment = {"FOREGLOW_SCALING": policy, "FOREGLOW_NODE_MEMORY_MB": "16384"}
    with Platform(standbys=0, prewarm="path", templates=False, environment=environment) as platform:
        platform.deploy([WORK])
        began = time.monotonic() + WARM_S
        until, lock = began + STEP_S, threading.Lock()

        def client(first: float) -> None:
            time.sleep(max(0.0, first - time.monotonic()))
            while (sent := time.monotonic()) < until:
                try:
                    answer = platform.invoke(WORK.name, b'{"stages": 0}')
                except (NotOk, OSError):
                    with lock:
                        found.failed += 1
                    continue
                ready = time.monotonic() - began - WORK_MS / 1000
                if answer.start != "warm" and ready > 0.0:
                    with lock:
                        found.ready_s.append(ready)
                if sent >= began + TICK_S:
                    with lock:
                        found.ms.append(answer.ms)
                        found.cold += answer.start in ("cold", "almost-warm", "standby")

        clients = [threading.Thread(target=client, args=(0.0 if number == 0 else began,)) for number in range(CLIENTS)]
        for one in clients:
            one.start()
        for one in clients:
            one.join()
        return found, platform.driver, platform.tier
