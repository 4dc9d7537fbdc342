"""What stands before a node of microVMs: QEMU, the guest image, settings that name what there is."""

import asyncio
import os
import threading
from pathlib import Path

import pytest
from doubles.loop import in_loop, until
from pydantic import ValidationError

from orchestrator import guest_image
from orchestrator.preflight import NotPossible
from orchestrator.settings import Settings
from workers.bootstrap import NodeConfig, make_driver
from workers.drivers.microvm import image
from workers.drivers.microvm.driver import MicroVmDriver
from workers.drivers.microvm.image import GuestImage, ImageError
from workers.drivers.microvm.threads import in_thread
from workers.drivers.microvm.tsc import tsc_khz
from workers.drivers.process.driver import ProcessDriver
from workers.ports import DriverError


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(state=tmp_path / "state", driver="microvm", image=str(tmp_path / "image"))


@pytest.fixture
def qemu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "bin" / "qemu-system-x86_64"
    program.parent.mkdir()
    program.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(program.parent))


def test_another_driver_needs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    said: list[str] = []
    guest_image.ensure(Settings(state=tmp_path), said.append)
    assert said == []


def test_without_qemu_it_says_how_to_get_it(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(NotPossible, match=r"qemu-system-x86_64 is not installed .*apt-get install qemu-system-x86"):
        guest_image.ensure(settings, lambda _line: None)


@pytest.mark.usefixtures("qemu")
def test_the_image_is_made_once_and_said_to_be(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    made = GuestImage(Path("/kernel"), Path("/initramfs"), "digest", "3.11")
    found: list[GuestImage] = []

    def build(folder: Path, progress: object, fresh: bool = False) -> GuestImage:
        assert folder == settings.image_folder
        assert callable(progress)
        progress("unpacking")
        found.append(made)
        return made

    monkeypatch.setattr(image, "find", lambda _folder: found[0] if found else None)
    monkeypatch.setattr(image, "build", build)
    said: list[str] = []
    guest_image.ensure(settings, said.append)
    assert len(said) == 3
    assert "about ten seconds" in said[0]
    assert said[1] == "  unpacking"
    assert "guest image made in" in said[2]
    guest_image.ensure(settings, said.append)
    assert len(said) == 3


@pytest.mark.usefixtures("qemu")
def test_an_image_that_cannot_be_made_ends_the_start_in_one_line(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(folder: Path, progress: object, fresh: bool = False) -> GuestImage:
        raise ImageError("guest image: no network")

    monkeypatch.setattr(image, "find", lambda _folder: None)
    monkeypatch.setattr(image, "build", build)
    with pytest.raises(NotPossible, match="no network"):
        guest_image.ensure(settings, lambda _line: None)


@pytest.mark.parametrize(("field", "value"), [("driver", "vm"), ("accel", "xen"), ("driver", "")])
def test_a_setting_that_names_none_says_which_there_are(tmp_path: Path, field: str, value: str) -> None:
    with pytest.raises(ValidationError, match="is not one of") as caught:
        Settings(state=tmp_path, **{field: value})
    assert caught.value.errors()[0]["loc"] == (field,)


def test_the_images_folder_is_in_the_state_unless_it_is_told(tmp_path: Path) -> None:
    assert Settings(state=tmp_path).image_folder == tmp_path / "image"
    assert Settings(state=tmp_path, image="~/images").image_folder == Path.home() / "images"


def config(folder: Path, driver: str) -> NodeConfig:
    return NodeConfig("n", folder, [], "", b"", "", "", 0, 0, 60.0, False, driver=driver, image_folder=folder / "image")


@in_loop
async def test_the_node_wires_the_driver_it_is_told(tmp_path: Path) -> None:
    assert isinstance(make_driver(config(tmp_path, "process")), ProcessDriver)
    with pytest.raises(DriverError, match="foreglow image build"):
        make_driver(config(tmp_path, "microvm"))


@in_loop
async def test_without_qemu_the_driver_does_not_start_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    driver = MicroVmDriver(tmp_path, GuestImage(tmp_path / "k", tmp_path / "i", "", "3.11"), "tcg")
    with pytest.raises(DriverError, match="install QEMU"):
        await driver.start()
    with pytest.raises(DriverError, match="not been started"):
        await driver.clone("acme", 128)
    await driver.stop()


def test_the_rate_of_the_time_stamp_counter_is_the_same_whenever_it_is_measured() -> None:
    measure = tsc_khz.__wrapped__
    first, second = measure(), measure()
    assert first > 100_000
    assert abs(first - second) / first < 5e-6


@in_loop
async def test_what_a_thread_brings_too_late_is_given_back() -> None:
    go, opened, ended = threading.Event(), list[int](), list[int]()

    def work() -> int:
        go.wait(5)
        opened.append(os.open("/dev/null", os.O_RDONLY))
        return opened[-1]

    def undo(descriptor: int) -> None:
        os.close(descriptor)
        ended.append(descriptor)

    task = asyncio.ensure_future(in_thread(work, undo, lambda: ended.append(-1)))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == []
    go.set()
    await until(lambda: len(ended) == 2, "the result was given back")
    assert sorted(ended) == [-1, *opened]
    kept = await in_thread(work, undo)
    os.close(kept)
    assert kept not in ended[2:]
