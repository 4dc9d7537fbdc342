"""A platform under load through many faults, with a verdict after each: tests share one, so that CI can afford all of them."""

import contextlib
import datetime
import json
import os
import signal
import time
from collections.abc import Iterator

import redis
from faults import table
from faults.leaks import Traces, descriptors
from faults.load import CLIENT_S, IDLE_S, MANAGE_S, SERVED_S, Acknowledged, Load
from faults.running import PROCESSES, READY_S, Running, stopped, wait_for

FULL = bool(os.environ.get("FULL"))
STOP_S = CLIENT_S if FULL else 4.0  # with FULL a request that hangs as long as its process stands still is a client's timeout
SETTLED_S = 0.5  # after recovery: from here on no client may see anything
QUIET_S = 1.5
FD_SLACK = 12  # pools fill and connections of clients come and go; a leak of one per fault would be more
KILL, STOP, CUT, FLUSH = "kill -9", "SIGSTOP", "cut off", "FLUSHALL"
HELD = (STOP, CUT)

Fault = tuple[str, str]


class Bench:
    """One platform under load through many faults; a verdict after each."""

    def __init__(self, platform: Running, load: Load | None = None) -> None:
        self.platform = platform
        self.load = load or Load(platform)
        self.traces = Traces(platform)
        self.measured: list[dict[str, object]] = []
        self._quiet_from = time.monotonic()

    def suffer(self, faults: list[Fault]) -> None:
        """Puts the faults in at once, waits until all works again, and checks what clients saw from before to after."""
        self.traces.look()
        self._nothing_since_recovery(faults)
        answered, cold, began = self.load.answered, self.load.cold, time.monotonic()
        killed = [name for name, fault in faults if fault == KILL]
        held = [self.held(name, fault) for name, fault in faults if fault in HELD]
        before = {name: self.kill(name) for name in killed}
        if any(fault == FLUSH for _, fault in faults):
            self.flush()
        if held:
            with contextlib.ExitStack() as stack:
                for one in held:
                    stack.enter_context(one)
                time.sleep(STOP_S)
        released = time.monotonic()
        for name, pid in before.items():
            self.back(name, pid)
        self._all_works(answered, cold)
        ended = time.monotonic()
        last = max((one.at for one in list(self.load.seen)), default=0.0)
        self._quiet_from = ended + SETTLED_S
        self._verdict(faults, began, ended)
        self.measured.append(
            {
                "metric": "faults.recovery_s",
                "value": round(ended - released, 2),
                "unit": "s",
                "faults": [f"{name}, {fault}" for name, fault in faults],
                "last_error_s": round(max(0.0, last - began), 2) if last > began else 0.0,
                "errors": len([one for one in self.load.seen if one.at >= began]),
                "stopped_s": STOP_S if held else 0.0,
            }
        )
        print(json.dumps(self.measured[-1]))
        self.traces.look()

    def flush(self) -> None:
        with redis.Redis.from_url(f"unix://{self.platform.settings.socket('valkey')}") as client:
            client.flushall()

    def pids(self, name: str) -> list[int]:
        return [wait_for(lambda: self.platform.pid(name), f"{name} runs", READY_S)]

    def kill(self, name: str) -> int:
        (pid,) = self.pids(name)
        os.kill(pid, signal.SIGKILL)
        return pid

    def held(self, name: str, fault: str) -> contextlib.AbstractContextManager[None]:
        """A fault that lasts as long as the block."""
        return stopped(self.pids(name))

    def back(self, name: str, pid: int) -> None:
        self.platform.new_pid(name, pid)

    def _all_works(self, answered: int, cold: int) -> None:
        """A deploy made now is served, and warm and cold workflows are answered."""
        with self.platform.control(MANAGE_S) as control:
            made: Acknowledged = wait_for(lambda: self.load.deploy(control, "probe"), "a deploy is taken", SERVED_S)
            wait_for(lambda: self._answers(made), f"{made} is served", SERVED_S)
        try:
            wait_for(lambda: self.load.answered > answered and self.load.cold > cold, "workflows are answered", SERVED_S)
            answered = self.load.answered
            wait_for(lambda: self.load.answered > answered + 5, "workflows are answered again", SERVED_S)
        except AssertionError as error:
            raise AssertionError(f"{error}; {self.load.told()}") from error

    def _answers(self, made: Acknowledged) -> bool:
        with self.platform.functions(MANAGE_S) as client:
            try:
                answer = client.post(f"/function/{made.name}:{made.number}", json=None)
            except Exception:
                return False
            return answer.status_code == 200 and bool(answer.json() == made.marker)

    def _verdict(self, faults: list[Fault], began: float, ended: float) -> None:
        allowed = table.rows()
        for one in list(self.load.seen):
            if began <= one.at <= ended + SETTLED_S:
                assert any(allowed[fault].allows(one.flow, one.what) for fault in faults), f"{faults}: a client saw {one}"
        assert self.load.wrong == []

    def _nothing_since_recovery(self, faults: list[Fault]) -> None:
        time.sleep(SETTLED_S)
        late = [one for one in list(self.load.seen) if one.at > self._quiet_from]
        self._quiet_from = time.monotonic()  # what is told now is not told again before the next fault
        assert late == [], f"before {faults}, long after the fault before"

    # -- the beginning and the end

    def begin(self) -> None:
        self.load.prepare()
        self.load.start()
        time.sleep(QUIET_S)
        self._quiet_from = time.monotonic()
        self.open_before = {name: descriptors(self.pids(name)[0]) for name in (*self._named(), "supervisor")}

    def _named(self) -> list[str]:
        return [name for name in PROCESSES if self.platform.pid(name) is not None]

    def finish(self) -> None:
        """The end of the load, everything that is owed, and what is left when the platform is stopped."""
        self.load.stop()
        assert self.load.wrong == []
        for entry, warm in (("front", True), ("rare", False)):
            kinds = {kind: count for (name, kind), count in self.load.starts.items() if name == entry}
            mostly = 2 * kinds.get("warm", 0) > sum(kinds.values())
            assert mostly is warm, f"{entry} was to be {'warm' if warm else 'cold'}: {kinds}"
        self.load.check_acknowledged()
        with self.platform.control(MANAGE_S) as control:  # each instance has descriptors, and what was checked last left many
            assert control.post("/v1/cool", json={}).status_code == 200
        try:
            wait_for(lambda: not self._opened(), "descriptors are closed", SERVED_S)
        except AssertionError as error:
            raise AssertionError(f"{error}: {self._opened()}") from error
        self.traces.look()
        assert self.platform.stop() == 0, self.platform.lines
        left = self.traces.left()
        assert left == [], left

    def _opened(self) -> list[str]:
        """Who has more open than at the beginning."""
        found = []
        for name, before in self.open_before.items():
            now = descriptors(self.pids(name)[0])
            if now.total() > before.total() + (0 if name == "supervisor" else FD_SLACK):
                found.append(f"{name} has open {now}, had {before}")
        return found


@contextlib.contextmanager
def recorded(bench: Bench) -> Iterator[Bench]:
    """Under load; with FULL what was measured is written down at the end."""
    try:
        bench.begin()
        yield bench
    finally:
        bench.load.end()
    if FULL and bench.measured:
        today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
        table.write_measured([{**one, "date": today} for one in bench.measured])


def settings(**more: str) -> dict[str, str]:
    """For Running: instances idle out between two cold workflows; all processes there are run."""
    return {"FOREGLOW_IDLE_S": str(IDLE_S), "FOREGLOW_STANDBYS": "1", "FOREGLOW_ZONE_CACHE": "1", **more}
