"""Templates, clones and standbys of microVMs over their whole lives: identity, refusal, what a killed node leaves."""

import asyncio
import contextlib
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from doubles.loop import until
from doubles.microvms import ACCEL, Shared, guest_image, microvms, shared
from doubles.process_bench import ECHO, Bench, Running, groups_of

from workers.drivers.microvm import functions
from workers.drivers.microvm.image import GuestImage
from workers.drivers.microvm.machine import Machine
from workers.ports import DriverError

pytestmark = pytest.mark.system

CLONES = 100 if os.environ.get("FULL") == "1" else 10
CLOCK_S = 0.25  # mostly; a guest that has no turn as it sets its clock is late by that, however long
PAUSED_S = 3.0  # a clock that nobody set is behind by it
DRAWS = """
import os, random, secrets, socket, ssl, tempfile, time, uuid
mine = random.Random()
def handler(event, context):
    with open("/proc/sys/kernel/random/uuid") as file:
        kernel = file.read()
    return {"now": time.time(), "host": socket.gethostname(), "drawn": {
        "urandom": os.urandom(8).hex(), "kernel": kernel, "random": random.random(), "mine": mine.random(),
        "secrets": secrets.token_hex(8), "ssl": ssl.RAND_bytes(8).hex(), "uuid1": str(uuid.uuid1()), "uuid4": str(uuid.uuid4()),
        "tempfile": next(tempfile._get_candidate_names())}}
"""


@pytest.fixture(scope="module")
def vms(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    with shared(tmp_path_factory.mktemp("microvms"), guest_image()) as made:
        yield made


async def standby(bench: Bench, source: str = ECHO, paused_s: float = 0.0) -> Running:
    work = bench.work(source)
    clone = await bench.driver.clone("", work.memory_mb)
    try:
        await clone.rest()
        await asyncio.sleep(paused_s)
        return Running(clone, await clone.specialise(work, 30))
    except BaseException:
        await clone.kill("it did not start")
        raise


def test_no_two_ever_draw_the_same_and_each_knows_the_time(vms: Shared) -> None:
    async def check() -> None:
        templated = await vms.bench.template(DRAWS)
        kinds = [
            lambda: vms.bench.run(DRAWS),
            lambda: standby(vms.bench, DRAWS, PAUSED_S),
            templated.run,
        ]
        seen, off = [], [list[float]() for _ in kinds]
        for number in range(CLONES):
            one = await kinds[number % len(kinds)]()
            before = time.time()
            answer = await one.value(timeout_s=30)
            off[number % len(kinds)].append(max(before - answer["now"], answer["now"] - time.time(), 0.0))
            seen.append(answer)
            await one.clone.kill("drawn")
        assert all(statistics.median(one) <= CLOCK_S for one in off), off
        for name in seen[0]["drawn"]:
            assert len({answer["drawn"][name] for answer in seen}) == CLONES, name
        assert {answer["host"] for answer in seen} == {"shop-7"}
        await vms.bench.end()

    vms.run(check(), 120 + CLONES * 2.0)


def test_a_standby_takes_no_cpu_until_it_is_used_and_none_is_left_of_what_warmed_it(vms: Shared) -> None:
    source = """
import os, sys
def handler(event, context):
    return [sorted(os.listdir("/tmp")), sorted(os.listdir("/var/task")), [name for name in sys.modules if "exercise" in name]]
"""

    async def check() -> None:
        clone = await vms.bench.driver.clone("", 128)
        await clone.rest()
        before = clone.cpu()
        await asyncio.sleep(0.5)
        after = clone.cpu()
        assert before is not None
        assert after is not None
        assert after[0] - before[0] < 0.05
        one = Running(clone, await clone.specialise(vms.bench.work(source), 30))
        assert await one.value() == [[], ["__pycache__", "handler.py"], []]
        assert one.logs == []
        await clone.kill("over")

    vms.run(check())


def test_one_that_dies_on_the_way_to_rest_is_an_error(vms: Shared) -> None:
    async def check() -> None:
        clone = await vms.bench.driver.clone("", 128)
        resting = asyncio.ensure_future(clone.rest())
        await asyncio.sleep(0.05)
        os.kill(clone.pid, signal.SIGKILL)
        with pytest.raises(DriverError):
            await resting
        await clone.kill("over")

    vms.run(check())


def test_a_standby_killed_while_it_waits_says_so(vms: Shared) -> None:
    async def check() -> None:
        clone = await vms.bench.driver.clone("", 128)
        await clone.rest()
        reasons: list[str] = []
        clone.on_exit = reasons.append
        os.kill(clone.pid, signal.SIGKILL)
        await until(lambda: reasons, "its end was told")
        assert "signal 9" in reasons[0]
        with pytest.raises(DriverError, match="signal 9"):
            await clone.specialise(vms.bench.work(), 5)

    vms.run(check())


def test_a_function_template_is_refused_once_the_host_has_changed(vms: Shared) -> None:
    async def check() -> None:
        one = await vms.bench.template(ECHO)
        gone: list[str] = []
        one.template.on_gone = gone.append
        made_with = one.template.template.fingerprint
        one.template.template.fingerprint = msgspec.structs.replace(made_with, cpu="of another host")
        with pytest.raises(DriverError, match="the CPU"):
            await one.run()
        assert len(gone) == 1
        assert "the CPU" in gone[0]

    vms.run(check())


def test_an_image_that_changes_under_the_node_makes_a_new_template(tmp_path: Path) -> None:
    found = guest_image()
    folder = tmp_path / "image"
    folder.mkdir()
    for path in (found.kernel, found.initramfs):
        shutil.copy(path, folder / path.name)
    image = GuestImage(folder / found.kernel.name, folder / found.initramfs.name, found.digest, found.python)

    async def check() -> None:
        async with microvms(tmp_path, image) as bench:
            one = await bench.run(ECHO)
            with image.initramfs.open("ab") as file:
                file.write(bytes(512))  # a cpio archive may be followed by zeros
            other = await bench.run(ECHO)
            assert bench.driver._templates.refused == 1
            assert [await one.value(1), await other.value(2)] == [1, 2]  # who runs already runs on
            await bench.end()

    asyncio.run(asyncio.wait_for(check(), 120))


def memories() -> int:
    found = 0
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found += "memfd:foreglow-" in os.readlink(f"/proc/self/fd/{name}")
    return found


def test_an_original_killed_while_it_is_kept_leaves_nothing(vms: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    async def check() -> None:
        await vms.bench.run(ECHO)
        await vms.bench.end()
        before, keep = memories(), functions.saved

        async def killed(machine: Machine) -> int:
            machine.qemu.kill()
            return await keep(machine)

        monkeypatch.setattr(functions, "saved", killed)
        with pytest.raises(DriverError):
            await vms.bench.template(ECHO)
        assert not vms.bench.driver._clones
        assert memories() == before
        monkeypatch.setattr(functions, "saved", keep)
        one = await vms.bench.run_templated(ECHO)
        assert await one.value(1) == 1
        await vms.bench.end()

    vms.run(check())


DIES_KEEPING = """
import asyncio, os, signal, sys
from pathlib import Path
from doubles.microvms import guest_image
from doubles.process_bench import ECHO, Bench
from workers.drivers.microvm import functions, qmp
from workers.drivers.microvm.driver import MicroVmDriver
async def main():
    driver = MicroVmDriver(Path(sys.argv[1]), guest_image(), sys.argv[2])
    bench = Bench(Path(sys.argv[1]), driver, await driver.start())
    keep = functions.saved
    async def dies(machine):
        run = machine.qemu.qmp.run
        async def halfway(name, *arguments, **more):
            going = asyncio.ensure_future(run(name, *arguments, **more))
            if name == "migrate":
                await asyncio.sleep(0)
                print("machines", machine.qemu.pid, flush=True)
                os.kill(os.getpid(), signal.SIGKILL)
            return await going
        machine.qemu.qmp.run = halfway
        return await keep(machine)
    functions.saved = dies
    await bench.template(ECHO)
asyncio.run(main())
"""
NODE = """
import asyncio, sys
from pathlib import Path
from doubles.microvms import guest_image
from workers.drivers.microvm.driver import MicroVmDriver
async def main():
    driver = MicroVmDriver(Path(sys.argv[1]), guest_image(), sys.argv[2])
    await driver.start()
    standby = await driver.clone("", 128)
    await standby.rest()
    clone = await driver.clone("acme", 128)
    print("machines", standby.pid, clone.pid, flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""


@pytest.mark.parametrize("program", [NODE, DIES_KEEPING], ids=["serves", "keeps a function template"])
def test_a_killed_node_leaves_no_machine_and_its_successor_no_group(tmp_path: Path, program: str) -> None:
    folder = tmp_path / "driver"
    environment = {**os.environ, "PYTHONPATH": f"{Path(__file__).parents[1]}:{Path(__file__).parents[2]}"}
    node = subprocess.Popen(
        [sys.executable, "-c", program, str(folder), ACCEL], stdout=subprocess.PIPE, text=True, env=environment, cwd=tmp_path
    )
    try:
        assert node.stdout is not None
        words = next(line.split() for line in node.stdout if line.startswith("machines"))
        pids = [int(word) for word in words[1:]]
    finally:
        node.kill()
        node.wait()
        assert node.stdout is not None
        node.stdout.close()

    async def check() -> None:
        await until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids), "the machines went with their node")
        async with microvms(tmp_path, guest_image()) as bench:
            assert not groups_of(node.pid)
            one = await bench.run(ECHO)
            assert await one.value(1) == 1
            await bench.end()

    asyncio.run(asyncio.wait_for(check(), 120))
