"""A microVM whose first process, or whose QEMU, has been taken over, or that fails on its way: its own start or invocation fails
with a reason, others go on, nothing is left. The machines are stand-ins (doubles/standin_qemu.py); the driver is real."""

import asyncio
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from doubles.loop import in_loop, until
from doubles.microvms import STANDIN, Shared, microvms, shared
from doubles.process_bench import ECHO, descendants, target_of

from workers.drivers.microvm import machine
from workers.drivers.microvm.clone import MicroVmClone
from workers.drivers.microvm.image import GuestImage
from workers.ports import DriverError

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the image, and so in every QEMU's sight: the stand-in lies there."""
    made = tmp_path_factory.mktemp("image")
    shutil.copy(STANDIN, made / "qemu")
    for name in ("kernel", "initramfs", "behaviour"):
        (made / name).write_text("")
    for path in (made, *made.iterdir()):
        path.chmod(0o755)
    for parent in made.parents:  # pytest's folders are for their user only
        if parent.owner() == made.owner() and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o011)
    return made


@pytest.fixture(scope="module")
def vms(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    image = GuestImage(folder / "kernel", folder / "initramfs", "standin", "3.11")
    with shared(tmp_path_factory.mktemp("vms"), image, qemu=str(folder / "qemu")) as made:
        yield made


@pytest.fixture(autouse=True)
def well_behaved_after(folder: Path, vms: Shared) -> Iterator[None]:
    yield
    (folder / "behaviour").write_text("")

    async def end() -> None:
        for clone in left(vms):
            await clone.kill("the test is over")

    vms.run(end())


def behave(folder: Path, how: str) -> None:
    (folder / "behaviour").write_text(how)


def left(vms: Shared) -> list[MicroVmClone]:
    return list(vms.bench.driver._clones)


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("breaks init", "the guest broke the protocol"),
        ("lies on init", "the guest broke the protocol"),
        ("counts without end", "the guest broke the protocol"),
        ("exits in words", "the guest broke the protocol"),
        ("nonsense on the monitor", "QEMU's monitor says nonsense"),
        ("a line without an end", "QEMU's monitor says a line without an end"),
        ("floods the monitor", "QEMU's monitor does not stop talking"),
        ("hangs up on the monitor", ""),
        ("closes its ports", "the sandbox closed its channel|the microVM ended"),
    ],
)
def test_one_that_breaks_the_protocol_is_ended_with_its_reason(vms: Shared, folder: Path, how: str, why: str) -> None:
    async def check() -> None:
        other = await vms.bench.run(ECHO)
        behave(folder, how)
        hostile = await vms.bench.run(ECHO, tenant="hostile")
        await until(lambda: hostile.exits, "it was ended", 10)
        assert not why or any(part in hostile.exits[0] for part in why.split("|")), hostile.exits
        assert await other.value(1) == 1
        await other.clone.kill("over")
        assert left(vms) == []

    vms.run(check())


@pytest.mark.parametrize(
    "how", ["floods init", "floods small", "asks the time", "stands again", "sends descriptors", "floods its words"]
)
def test_one_that_floods_is_slowed_and_others_are_served(vms: Shared, folder: Path, how: str) -> None:
    async def check() -> None:
        other = await vms.bench.run(ECHO)
        behave(folder, how)
        hostile = await vms.bench.run(ECHO, tenant="hostile")
        before, memory = await descriptors(vms), _rss()
        for number in range(20):
            assert await other.value(number) == number
            await asyncio.sleep(0.03)
        await descriptors(vms, at_most=before)
        assert _rss() - memory < 64 << 20
        await asyncio.gather(other.clone.kill("over"), hostile.clone.kill("over"))
        assert left(vms) == []

    vms.run(check())


async def descriptors(vms: Shared, at_most: int = 1 << 30) -> int:
    """How many are open once nothing of the driver's own comes or goes. Those of control groups, which are kept for the next
    sandbox, are not counted."""

    def count() -> int:
        return sum(not target_of(one).startswith("/sys/fs/cgroup") for one in os.listdir("/proc/self/fd"))

    await until(lambda: vms.at_rest and count() <= at_most, "descriptors are closed")
    return count()


def _rss() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("refuses the state", "migrate-incoming: State blob is of another machine"),
        ("dies at the state", "."),
        ("never resumes", "did not resume in time"),
        ("says nothing", "did not resume in time"),
    ],
)
def test_a_clone_that_does_not_come_up_is_an_error_and_leaves_nothing(
    vms: Shared, folder: Path, monkeypatch: pytest.MonkeyPatch, how: str, why: str
) -> None:
    async def check() -> None:
        before = await descriptors(vms)
        behave(folder, how)
        with monkeypatch.context() as patched:
            if why == "did not resume in time":
                patched.setattr(machine, "RESUME_TIMEOUT_S", 0.5)
            for _ in range(3):
                with pytest.raises(DriverError, match=why):
                    await vms.bench.driver.clone("acme", 128)
        assert left(vms) == []
        behave(folder, "")
        one = await vms.bench.run(ECHO)
        assert await one.value(1) == 1
        await one.clone.kill("over")
        await descriptors(vms, at_most=before)

    vms.run(check())


@pytest.mark.parametrize(("how", "error", "why"), [("never ready", TimeoutError, None), ("dies at code", DriverError, "exit 9")])
def test_a_clone_that_does_not_take_its_code_is_an_error(
    vms: Shared, folder: Path, how: str, error: type[Exception], why: str | None
) -> None:
    async def check() -> None:
        behave(folder, how)
        clone = await vms.bench.driver.clone("acme", 128)
        with pytest.raises(error, match=why):
            await clone.specialise(vms.bench.work(ECHO), 1 if error is TimeoutError else 60)
        await clone.kill("over")
        assert left(vms) == []

    vms.run(check())


def test_one_that_ends_as_it_begins_to_run_is_an_error_and_leaves_nothing(
    vms: Shared, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its RESUME and whoever owns it then, which a busy node makes long."""
    resumed = machine.Machine.incoming

    async def slow(self: machine.Machine, state: int) -> None:
        await resumed(self, state)
        await self.qemu.gone.wait()

    async def check() -> None:
        await (await vms.bench.driver.clone("acme", 128)).kill("a template is there")
        before = await descriptors(vms)
        with monkeypatch.context() as patched:
            patched.setattr(machine.Machine, "incoming", slow)
            behave(folder, "dies as it runs")
            for _ in range(3):
                with pytest.raises(DriverError, match=r"exit 7|closed its monitor"):
                    await vms.bench.driver.clone("acme", 128)
        assert left(vms) == []
        await descriptors(vms, at_most=before)

    vms.run(check())


def test_a_qemu_that_cannot_be_watched_is_ended(vms: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(pid: int, *_: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    async def check() -> None:
        await (await vms.bench.driver.clone("acme", 128)).kill("a template is there")
        before, children = await descriptors(vms), descendants()
        with monkeypatch.context() as patched:
            patched.setattr(os, "pidfd_open", refused)
            with pytest.raises(DriverError, match="Too many open files"):
                await vms.bench.driver.clone("acme", 128)
        assert not descendants(children)
        assert left(vms) == []
        await descriptors(vms, at_most=before)

    vms.run(check())


def test_an_original_whose_qemu_says_nonsense_makes_no_template(vms: Shared, folder: Path) -> None:
    async def check() -> None:
        behave(folder, "tells its state in words")
        with pytest.raises(DriverError, match="nonsense"):
            await vms.bench.driver.template("acme", vms.bench.work(ECHO), 60)
        assert left(vms) == []

    vms.run(check())


def test_a_driver_that_stops_while_clones_are_on_their_way_leaves_none(folder: Path, tmp_path: Path) -> None:
    @in_loop
    async def check() -> None:
        image = GuestImage(folder / "kernel", folder / "initramfs", "standin", "3.11")
        async with microvms(tmp_path, image, qemu=str(folder / "qemu")) as bench:
            await (await bench.driver.clone("acme", 128)).kill("a template is there")
            coming = [asyncio.ensure_future(bench.driver.clone("acme", 128)) for _ in range(4)]
            await asyncio.sleep(0)
            await bench.driver.stop()
            for one in await asyncio.gather(*coming, return_exceptions=True):
                if isinstance(one, BaseException):
                    assert isinstance(one, DriverError)
                else:
                    await one.kill("idempotent")
            with pytest.raises(DriverError, match="stopped"):
                await bench.driver.clone("acme", 128)

    check()
