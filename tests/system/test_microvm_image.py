"""The guest image as a whole, made of real packages: the same bytes anywhere, whole or not there, by any user."""

import os
import shutil
import threading
from pathlib import Path

import pytest
from doubles.microvms import guest_image
from typer.testing import CliRunner

from orchestrator.cli.main import app
from workers.drivers.microvm import image, initramfs
from workers.drivers.microvm.image import GuestImage, ImageError, build, find

pytestmark = pytest.mark.system


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of what the run's other tests use, with its image."""
    shutil.copytree(guest_image().kernel.parents[2], tmp_path / "image")
    return tmp_path / "image"


@pytest.fixture
def unmade(folder: Path) -> Path:
    """Packages, and no image."""
    shutil.rmtree(folder / "images")
    (folder / "current.json").unlink()
    return folder


def full(*_arguments: object) -> bytes:
    raise OSError(28, "No space left on device")


def test_two_who_build_at_once_elsewhere_make_the_same_bytes_once_and_a_damaged_package_comes_again(unmade: Path) -> None:
    archive = min((unmade / "packages").iterdir(), key=lambda path: path.stat().st_size)
    content = archive.read_bytes()
    archive.write_bytes(content[:-100] + bytes(100))
    (unmade / "images" / "coming-killed").mkdir(parents=True)  # of one that could not clean up
    made: list[GuestImage] = []
    steps: list[str] = []
    threads = [threading.Thread(target=lambda: made.append(build(unmade, steps.append))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    one, shared = made[0], guest_image()
    assert made[1] == one == find(unmade)
    assert steps.count("unpacking") == 1
    assert "waiting for another process that makes it" in steps
    assert any(step.startswith("downloading 1 Debian package") for step in steps)
    assert archive.read_bytes() == content
    assert [path.name for path in (unmade / "images").iterdir()] == [one.kernel.parent.name]
    assert one.digest == shared.digest
    assert one.kernel != shared.kernel
    assert one.kernel.read_bytes() == shared.kernel.read_bytes()
    assert one.initramfs.read_bytes() == shared.initramfs.read_bytes()


@pytest.mark.needs_user
def test_an_ordinary_user_builds_it(tmp_path: Path) -> None:
    shared = guest_image()
    shutil.copytree(shared.kernel.parents[2] / "packages", tmp_path / "packages")
    shutil.copy(shared.kernel.parents[2] / "packages.json", tmp_path)
    assert build(tmp_path, lambda _step: None).digest == shared.digest


def test_what_is_there_is_found_without_a_word_and_half_of_it_is_not(folder: Path) -> None:
    steps: list[str] = []
    made = build(folder, steps.append)
    assert made == find(folder)
    assert not steps
    os.truncate(made.initramfs, 1000)
    assert find(folder) is None


def test_a_full_disk_is_said_and_what_was_there_stays(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = find(folder)
    monkeypatch.setattr(initramfs, "assemble", full)
    with pytest.raises(ImageError, match=r"the disk of .* is full; about 400 MB"):
        build(folder, lambda _step: None, fresh=True)
    assert find(folder) == before is not None
    assert len(list((folder / "images").iterdir())) == 1


def test_a_full_disk_leaves_nothing_where_nothing_was(unmade: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(initramfs, "assemble", full)
    with pytest.raises(ImageError, match="is full"):
        build(unmade, lambda _step: None)
    assert find(unmade) is None
    assert not list((unmade / "images").iterdir())


def test_an_image_of_another_version_of_ours_is_none(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find(folder) is not None
    monkeypatch.setattr(image, "_ours", lambda: "other")
    assert find(folder) is None


def test_the_commands_tell_of_it(folder: Path) -> None:
    runner, made = CliRunner(), find(folder)
    assert made is not None
    built = runner.invoke(app, ["image", "build", "--state", str(folder.parent)])
    assert made.digest[:12] in built.output
    assert str(made.kernel.parent) in built.output
    shown = runner.invoke(app, ["image", "show", "--state", str(folder.parent)])
    assert made.digest in shown.output
    assert "python3.11-minimal" in shown.output
    (folder / "current.json").unlink()
    missing = runner.invoke(app, ["image", "show", "--state", str(folder.parent)])
    assert "is not made yet: foreglow image build" in str(missing.exception)
