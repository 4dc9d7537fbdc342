"""A platform with microVMs: a QEMU that is killed or stands still costs its own invocations, a killed node leaves no QEMU."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from doubles.microvms import guest_image
from faults import table
from faults.leaks import Traces
from faults.running import Running, put, wait_for

pytestmark = pytest.mark.system

READY_S = 120.0
ECHO = "def handle(event, context):\n    return event\n"
SLOW = "import time\ndef handle(event, context):\n    time.sleep(event)\n    return event\n"


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    image = guest_image().kernel.parents[2]
    settings = {"FOREGLOW_DRIVER": "microvm", "FOREGLOW_ACCEL": "tcg", "FOREGLOW_IMAGE": str(image), "FOREGLOW_STANDBYS": "1"}
    with Running(tmp_path_factory.mktemp("microvms"), settings) as running:
        traces = Traces(running)
        with running.control(30) as control:
            for name, source in (("echo", ECHO), ("slow", SLOW)):
                assert put(control, name, source, timeout_s=20).status_code == 202
        wait_for(lambda: answer(running, "echo", 1) == 200 and answer(running, "slow", 0) == 200, "both serve", READY_S)
        yield running
        traces.look()
        assert running.stop() == 0
        assert traces.left() == []


def answer(running: Running, name: str, event: float) -> int:
    """The status; 0: none in time."""
    with running.functions(90) as client, contextlib.suppress(httpx.HTTPError):
        return client.post(f"/function/{name}", json=event).status_code
    return 0


def machines(running: Running) -> set[int]:
    """Processes of QEMU below the node."""
    node = running.pid("node")
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                if parent == node and (entry / "comm").read_text().startswith("qemu"):
                    found.add(int(entry.name))
            except OSError:
                continue
    return found


def busy(running: Running) -> int:
    """The QEMU that computes now, as nothing else here does for as long: a standby has its turn, too."""
    last = _busiest(running)
    for _ in range(5):
        if (found := _busiest(running)) == last:
            break
        last = found
    return last


def _busiest(running: Running) -> int:

    def ticks() -> dict[int, int]:
        found = {}
        for pid in machines(running):
            try:
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                found[pid] = int(fields[11]) + int(fields[12])
            except OSError:
                continue
        return found

    before = ticks()
    threading.Event().wait(1.0)
    after = ticks()
    return max(after, key=lambda pid: after[pid] - before.get(pid, 0))


def statuses(running: Running, source_event: float, meanwhile: Callable[[], None]) -> int:
    """The status of a slow invocation during which something happens."""
    found: list[int | str] = []

    def ask() -> None:
        with running.functions(60) as client:
            try:
                found.append(client.post("/function/spin", json=source_event).status_code)
            except httpx.HTTPError as error:
                found.append(type(error).__name__)

    asking = threading.Thread(target=ask)
    asking.start()
    meanwhile()
    asking.join()
    assert isinstance(found[0], int), found
    return found[0]


SPIN = """
import time
def handle(event, context):
    until = time.monotonic() + event
    while time.monotonic() < until:
        pass
    return event
"""


@pytest.mark.parametrize(("fault", "number"), [("kill -9", signal.SIGKILL), ("SIGSTOP", signal.SIGSTOP)])
def test_a_qemu_that_fails_costs_its_own_invocation(platform: Running, fault: str, number: signal.Signals) -> None:
    row = table.rows()["microVM", fault]
    with platform.control(30) as control:
        assert put(control, "spin", SPIN, timeout_s=14).status_code == 202
    wait_for(lambda: _spins(platform), "it serves", READY_S)

    def meanwhile() -> None:
        threading.Event().wait(1.0)
        os.kill(busy(platform), number)
        assert answer(platform, "echo", 1) == 200

    status = statuses(platform, 11.0, meanwhile)
    assert row.allows("invoke", str(status)), status
    wait_for(lambda: _spins(platform), "the next one is another", READY_S)
    assert answer(platform, "echo", 2) == 200


def _spins(running: Running) -> bool:
    return answer(running, "spin", 0.01) == 200


def test_a_killed_node_leaves_no_machine_and_the_next_one_serves(platform: Running) -> None:
    before, old = machines(platform), platform.pid("node")
    assert before
    assert old is not None
    os.kill(old, signal.SIGKILL)
    wait_for(lambda: not any(_alive(pid) for pid in before), "every QEMU has ended", 60)
    platform.new_pid("node", old)
    wait_for(lambda: answer(platform, "echo", 1) == 200, "it serves", READY_S)


def _alive(pid: int) -> bool:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return "qemu" in fields.partition(")")[0] and fields.rpartition(")")[2].split()[0] not in "ZX"
