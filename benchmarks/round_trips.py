"""What a tunnel adds to a round trip: a function and a host with a cable of its own ask the same server, in turns.

On a machine of two cores where a process runs decides more than what it does: to wake one on another core takes longer than a
whole round trip on one. `APART` gives both ways the same: who asks and the node have the first core, the private network (its
server and its proxies) the last, as if they were two machines. `ANYWHERE` leaves it to the scheduler, which keeps two processes
together where it spreads four.
"""

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from doubles.private_networks import REDIS_PORT, SERVER, Host

TURNS = 10
PINGS = 1000
APART, ANYWHERE = "apart", "anywhere"

_ASKS = """
import socket, sys, time
connection = socket.create_connection((sys.argv[1], int(sys.argv[2])), 5)
connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
print("ready", flush=True)
for line in sys.stdin:
    found = []
    for _ in range(int(line)):
        began = time.perf_counter()
        connection.send(b"PING\\r\\n")
        connection.recv(99)
        found.append(time.perf_counter() - began)
    print(sorted(found)[len(found) // 2] * 1e6, flush=True)
"""

_SPINS = """
import os
os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
while True:
    pass
"""


@dataclass(frozen=True)
class Found:
    """us, one value a turn: what the tunnel adds, and the direct way."""

    placed: str
    cores: str
    added: list[float]
    direct: list[float]


def round_trips(function: Host, direct: Host, network: Collection[int]) -> Iterator[Found]:
    """`network`: the processes of the private network. This process is the node. By where they run, and by whether a core goes to
    sleep when nobody needs it: waking that of a virtual machine takes longer again."""
    with _asking(function) as through, _asking(direct) as straight:
        for placed in (APART, ANYWHERE):
            cores = sorted(os.sched_getaffinity(0))
            here, there = ({cores[0]}, {cores[-1]}) if placed == APART else (set(cores), set(cores))
            with _only_on(here, [os.getpid(), through.pid, straight.pid]), _only_on(there, network):
                for kept, held in (("awake", _awake), ("idle", contextlib.nullcontext)):
                    with held(cores):
                        yield Found(placed, kept, *_by_turns(through.ask, straight.ask))


def _by_turns(through: Callable[[], float], straight: Callable[[], float]) -> tuple[list[float], list[float]]:
    added, direct = list[float](), list[float]()
    for turn in range(TURNS + 1):
        one, other = through(), straight()
        if turn:
            added.append(one - other)
            direct.append(other)
    return added, direct


class _Asking:
    """A process with one connection. `ask`: the median of so many round trips, us."""

    def __init__(self, host: Host) -> None:
        self._process = host.start(
            sys.executable, "-c", _ASKS, SERVER, str(REDIS_PORT), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.pid = self._process.pid
        if self._line() != "ready":
            raise RuntimeError(f"{host.name} does not reach Redis")

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().decode().strip()

    def ask(self) -> float:
        assert self._process.stdin is not None
        self._process.stdin.write(b"%d\n" % PINGS)
        self._process.stdin.flush()
        return float(self._line())

    def close(self) -> None:
        self._process.kill()
        self._process.wait(10)


@contextlib.contextmanager
def _asking(host: Host) -> Iterator[_Asking]:
    made = _Asking(host)
    try:
        yield made
    finally:
        made.close()


@contextlib.contextmanager
def _only_on(cores: set[int], processes: Collection[int]) -> Iterator[None]:
    """All threads they have now."""
    before: dict[int, set[int]] = {}
    try:
        for process in processes:
            for thread in map(int, os.listdir(f"/proc/{process}/task")):
                with contextlib.suppress(ProcessLookupError):
                    before[thread] = os.sched_getaffinity(thread)
                    os.sched_setaffinity(thread, cores)
        yield
    finally:
        for thread, had in before.items():
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(thread, had)


@contextlib.contextmanager
def _awake(cores: Collection[int]) -> Iterator[None]:
    """No core goes idle, none is taken from anybody."""
    spinners = [subprocess.Popen(["timeout", "120", "taskset", "-c", str(core), sys.executable, "-c", _SPINS]) for core in cores]
    try:
        yield
    finally:
        for spinner in spinners:
            spinner.terminate()
            spinner.wait(10)
