"""Sandboxes come and go and leave nothing; a node that dies leaves nothing running; templates are replaced in use."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from doubles.loop import in_loop, until
from doubles.process_bench import ECHO, Running, bench, descendants, groups_of

from workers.drivers import limits
from workers.drivers.process import driver as driver_module
from workers.drivers.process import tenants
from workers.drivers.process.driver import ProcessDriver
from workers.ports import DriverError

pytestmark = pytest.mark.system

CLONES = 200


@in_loop
async def test_two_hundred_clones_in_a_row_leave_nothing(tmp_path: Path) -> None:
    others = descendants()  # servers that the whole run shares
    async with bench(tmp_path) as made:
        work = made.work(ECHO)
        for _ in range(4):  # the first ones fill what is kept on purpose
            await (await made.driver.clone("acme", 128)).kill("warm")
        await until(lambda: len(descendants(others)) <= 2, "they are gone")  # the template, perhaps what mounts layers
        descriptors, mounts, groups = facts(tmp_path)
        for number in range(CLONES):
            clone = await made.driver.clone("acme", 128)
            if number % 4 == 0:
                one = Running(clone, await clone.specialise(work, 15))
                assert await one.value(number) == number
            await clone.kill("over")
        kept = limits.MAX_SPARE * 3  # control groups waiting for the next sandbox, a descriptor each
        await until(lambda: len(os.listdir("/proc/self/fd")) <= descriptors + kept, "no descriptor is left")
        await until(lambda: len(descendants(others)) <= 2, "no process is left")
        after = facts(tmp_path)
        assert after[1] == mounts
        assert after[2] <= groups + kept


def facts(folder: Path) -> tuple[int, int, int]:
    """(descriptors, mounts in the driver's folder, control groups) of this process."""
    mounts = Path("/proc/self/mountinfo").read_text().count(str(folder))
    return len(os.listdir("/proc/self/fd")), mounts, len(groups_of(os.getpid()))


@in_loop
async def test_stop_ends_busy_sandboxes_standbys_and_templates(tmp_path: Path) -> None:
    others = descendants()
    async with bench(tmp_path) as made:
        busy = await made.run("def handler(event, context):\n    while True: pass\n")
        busy.begin()
        await made.driver.clone("standby", 256)
        assert len(descendants(others)) >= 4
        await made.driver.stop()
        with pytest.raises(DriverError, match="stopped"):
            await made.driver.clone("late", 128)
        assert busy.exits == ["the node stops"]
        assert not descendants(others)
        await made.driver.stop()


NODE = """
import asyncio, os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from doubles.process_bench import Bench, ECHO
from workers.drivers.process.driver import ProcessDriver

async def main():
    folder = Path(sys.argv[1])
    driver = ProcessDriver(folder / "driver")
    made = Bench(folder, driver, await driver.start())
    source = '''
import os, subprocess, sys
def handler(event, context):
    subprocess.Popen([sys.executable, "-I", "-S", "-c", "while True: pass"], start_new_session=True)
    return True
'''
    one = await made.run(source)
    await one.value()
    deaf = await made.run("def handler(event, context):\\n    while True: pass\\n", tenant="other")
    deaf.begin()  # never looks at its channel again
    await driver.clone("other", 256)
    print("up", flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


def test_a_killed_node_leaves_nothing_running_and_the_next_one_sweeps(tmp_path: Path) -> None:
    tests = str(Path(__file__).parent.parent)
    others = descendants()
    node = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(NODE), str(tmp_path), tests], stdout=subprocess.PIPE, text=True
    )
    assert node.stdout is not None
    try:
        assert node.stdout.readline() == "up\n"
        running = descendants(others) - {node.pid}
        assert len(running) >= 6  # two templates, three sandboxes, one child in one of them
    finally:
        node.send_signal(signal.SIGKILL)
        node.wait(10)
        node.stdout.close()

    @in_loop
    async def check() -> None:
        await until(lambda: not any(alive(pid) for pid in running), "all its processes have ended", 15)
        driver = ProcessDriver(tmp_path / "driver")
        await driver.start()
        assert not groups_of(node.pid)
        await driver.stop()

    check()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


@in_loop
async def test_a_used_up_template_is_replaced_while_its_clones_go_on(tmp_path: Path) -> None:
    before, tenants.CLONES_PER_TEMPLATE = tenants.CLONES_PER_TEMPLATE, 3
    try:
        async with bench(tmp_path) as made:
            running = [await made.run(ECHO) for _ in range(3)]
            first = parent_of(running[0].clone.pid)
            assert {parent_of(one.clone.pid) for one in running} == {first}
            running.append(await made.run(ECHO))  # the fourth starts the replacement
            fresh = await replaced(made.driver, first)
            assert alive(first)
            for number, one in enumerate(running):
                assert await one.value(number) == number
                await one.clone.kill("over")
            await until(lambda: not alive(first), "the old template has gone")
            await fresh.kill("over")
    finally:
        tenants.CLONES_PER_TEMPLATE = before


async def replaced(driver: ProcessDriver, first: int):  # type: ignore[no-untyped-def]
    """A clone of another template than `first`."""
    for _ in range(200):
        clone = await driver.clone("acme", 128)
        if parent_of(clone.pid) != first:
            return clone
        await clone.kill("not yet")
        await asyncio.sleep(0.02)
    raise AssertionError("the template was not replaced")


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@in_loop
async def test_a_clone_nobody_waits_for_any_more_is_ended(tmp_path: Path) -> None:
    others = descendants()
    async with bench(tmp_path) as made:
        await made.driver.clone("acme", 128)
        kept = descendants(others)  # perhaps with one that has ended and that nobody has asked for yet
        for _ in range(10):
            asking = asyncio.ensure_future(made.driver.clone("acme", 128))
            await asyncio.sleep(0)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
        await until(lambda: descendants(others) <= kept, "none of them is left")


@pytest.mark.parametrize("dead_for_s", [0.0, 0.1], ids=["dying", "dead"])
@in_loop
async def test_a_template_that_dies_under_a_request_is_replaced_at_once(tmp_path: Path, dead_for_s: float) -> None:
    async with bench(tmp_path) as made:
        one = await made.run(ECHO)
        os.kill(parent_of(one.clone.pid), signal.SIGKILL)
        time.sleep(dead_for_s)  # noqa: ASYNC251 (the loop must not hear of it meanwhile)
        clone = await made.driver.clone("acme", 128)  # asked before the node has heard of the death
        assert await Running(clone, await clone.specialise(made.work(), 15)).value(1) == 1
        await until(lambda: one.exits, "its clone went with it")


@in_loop
async def test_limits_are_in_force_before_code_comes(tmp_path: Path) -> None:
    source = """
import resource, os
NAMES = ("RLIMIT_NPROC", "RLIMIT_NOFILE", "RLIMIT_CORE", "RLIMIT_AS")
SEEN = {name: resource.getrlimit(getattr(resource, name))[1] for name in NAMES}
def handler(event, context):
    return SEEN, resource.getrlimit(resource.RLIMIT_NPROC)[1]
"""
    async with bench(tmp_path) as made:
        seen, now = await (await made.run(source)).value()
        assert seen["RLIMIT_NPROC"] == now == 128
        assert seen["RLIMIT_NOFILE"] == 1024
        assert seen["RLIMIT_CORE"] == 0
        assert (seen["RLIMIT_AS"] == -1) == made.report.limits["memory"].startswith("cgroup")


@pytest.mark.needs_root
def test_with_cgroup_v2_a_clone_is_born_in_its_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Works in a hierarchy that offers no controller too: what counts is where the sandbox is born, and by whom."""
    found = limits.detect(Path("/proc/self/mountinfo").read_text(), Path("/proc/self/cgroup").read_text()).v2
    if not found:
        pytest.skip("no cgroup v2 hierarchy is mounted")

    def open_without_controllers(cgroups: limits.Cgroups) -> list[str]:
        cgroups.open_v2(())
        return []

    monkeypatch.setattr(driver_module, "detect", lambda mountinfo, own: limits.Layout({}, found))
    monkeypatch.setattr(limits.Cgroups, "open", open_without_controllers)

    @in_loop
    async def check() -> None:
        async with bench(tmp_path) as made:
            one, two = await made.run(ECHO, tenant="a"), await made.run(ECHO, tenant="b")
            groups = [group_of(running.clone.pid) for running in (one, two)]
            assert groups[0].rpartition("/")[0] != groups[1].rpartition("/")[0]  # a subtree for each host user
            for running, group in zip((one, two), groups, strict=True):
                assert f"-{os.getpid()}/u{os.stat(f'/proc/{running.clone.pid}').st_uid}/c" in group
                assert await running.value(1) == 1
            seen = await (await made.run("def handler(event, context):\n    return open('/proc/self/cgroup').read()\n")).value()
            assert "foreglow" not in seen

    check()


def group_of(pid: int) -> str:
    return next(line[3:] for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines() if line.startswith("0::"))


@pytest.mark.needs_root
@in_loop
async def test_each_tenant_has_a_host_user_of_its_own(tmp_path: Path) -> None:
    async with bench(tmp_path) as made:
        one, two, three = [await made.run(ECHO, tenant=name) for name in ("a", "b", "a")]
        users = [os.stat(f"/proc/{running.clone.pid}").st_uid for running in (one, two, three)]
        assert users[0] == users[2] != users[1]
        assert min(users) >= 200_000
        assert made.report.tier in ("root", "root+cgroups")
