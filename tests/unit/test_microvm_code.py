"""Code on its way into a microVM: small layers in one piece with bytecode, large ones as disks."""

import importlib.util
import marshal
import os
import shutil
import stat
import sys
from pathlib import Path

import pytest
from doubles.loop import in_loop

from workers.drivers.microvm import disk
from workers.drivers.microvm.code import CodeSource
from workers.drivers.microvm.disk import DiskError, Disks
from workers.drivers.microvm.inline import Inline, inline
from workers.framing import MAX_META
from workers.guest import runtime
from workers.ports import DriverError

HERE = f"{sys.version_info[0]}.{sys.version_info[1]}"
TAG = sys.implementation.cache_tag
SIZE = 64 << 20


def layer(folder: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    folder.mkdir(exist_ok=True)
    return folder


def contents(one: Inline | None) -> dict[str, tuple[int, bytes]]:
    assert one is not None
    found: dict[str, tuple[int, bytes]] = {}
    at = 0
    for path, mode, size in one.files:
        assert not os.path.dirname(path) or stat.S_ISDIR(found[os.path.dirname(path)][0])  # folders come first
        found[path] = (mode, one.body[at : at + size])
        at += size
    assert at == len(one.body)
    return found


def test_a_layer_comes_whole_with_bytecode_for_what_has_none(tmp_path: Path) -> None:
    made = layer(
        tmp_path / "code", {"handler.py": "x = 1\n", "pack/__init__.py": "", "pack/data.bin": b"\0\xff", "bad.py": "def ("}
    )
    (made / "run.sh").write_text("#!/bin/sh\n")
    (made / "run.sh").chmod(0o700)
    (made / "link").symlink_to("pack/data.bin")
    found = contents(inline(made, HERE, 1 << 20))
    assert found["pack/data.bin"] == (0o100644, b"\0\xff")
    assert found["run.sh"] == (0o100755, b"#!/bin/sh\n")
    assert found["link"] == (0o120777, b"pack/data.bin")
    assert set(found) == {
        "handler.py", "pack", "pack/__init__.py", "pack/data.bin", "bad.py", "run.sh", "link",
        "__pycache__", f"__pycache__/handler.{TAG}.pyc", "pack/__pycache__", f"pack/__pycache__/__init__.{TAG}.pyc",
    }  # fmt: skip
    bytecode = found[f"__pycache__/handler.{TAG}.pyc"][1]
    assert bytecode[:4] == importlib.util.MAGIC_NUMBER
    assert bytecode[4] == 1  # by hash, and never compared
    names: dict[str, object] = {}
    exec(marshal.loads(bytecode[16:]), names)
    assert names["x"] == 1


def test_bytecode_that_is_there_is_taken_and_that_of_other_versions_is_not(tmp_path: Path) -> None:
    cached = {f"__pycache__/a.{TAG}.pyc": b"ours", "__pycache__/a.cpython-38.pyc": b"theirs"}
    found = contents(inline(layer(tmp_path / "code", {"a.py": "", **cached}), HERE, 1 << 20))
    assert found[f"__pycache__/a.{TAG}.pyc"][1] == b"ours"
    assert "__pycache__/a.cpython-38.pyc" not in found


def test_for_another_interpreter_nothing_is_compiled(tmp_path: Path) -> None:
    assert set(contents(inline(layer(tmp_path / "code", {"a.py": ""}), "3.99", 1 << 20))) == {"a.py"}


@pytest.mark.parametrize(("most_bytes", "most_files", "fits"), [(100, 9, True), (99, 9, False), (100, 2, False)])
def test_what_is_larger_than_asked_is_not_inline(tmp_path: Path, most_bytes: int, most_files: int, fits: bool) -> None:
    made = layer(tmp_path / "code", {"a": b"a" * 50, "b": b"b" * 50, "c": b""})
    assert (inline(made, HERE, most_bytes, most_files) is not None) == fits


def test_names_that_would_not_fit_a_frame_are_not_inline(tmp_path: Path) -> None:
    folder = "x" * 200 + "/" + "y" * 200
    made = layer(tmp_path / "code", {f"{folder}/{number}": b"" for number in range(1200)})
    assert inline(made, HERE, 1 << 20, 4096) is None
    assert inline(layer(tmp_path / "few", {f"{folder}/{number}": b"" for number in range(500)}), HERE, 1 << 20, 4096) is not None


@pytest.mark.parametrize(("letter", "files"), [("\x01", 140), ('"', 350), ("x", 700), ("ü", 350)])
def test_two_layers_with_the_worst_of_names_fit_one_frame(tmp_path: Path, letter: str, files: int) -> None:
    """What is escaped is longer than it looks, and bytecode brings longer names than its source has."""
    long = letter * (200 // len(letter.encode()))
    made = layer(tmp_path / "code", {f"{long}/{long}{number}.py": "x = 1\n" for number in range(files)})
    one = inline(made, HERE, 1 << 20, 4096)
    assert one is not None
    meta = runtime.dump(
        {"entropy": "0" * 64, "hostname": "h" * 63, "disks": [], "files": [*one.below("/var/task"), *one.below("/opt/deps")]}
    )
    assert len(meta) < MAX_META
    more = layer(tmp_path / "more", {f"{long}/{long}{number}.py": "x = 1\n" for number in range(3 * files)})
    assert inline(more, HERE, 1 << 20, 4096) is None, "a disk takes it"


def test_names_that_are_no_text_are_a_disks(tmp_path: Path) -> None:
    made = layer(tmp_path / "code", {"a.py": ""})
    (made / os.fsdecode(b"\xff.py")).write_bytes(b"")
    assert inline(made, HERE, 1 << 20) is None


def test_a_layer_gives_the_same_bytes_wherever_and_in_whatever_order_it_was_written(tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {f"p{number % 3}/m{number}.py": f"x = {number}\n" for number in range(30)}
    one = layer(tmp_path / "one", files)
    other = layer(tmp_path / "elsewhere" / "other", dict(reversed(files.items())))
    assert inline(one, HERE, 1 << 20) == inline(other, HERE, 1 << 20)
    images = [tmp_path / "one.erofs", tmp_path / "other.erofs"]
    for folder, image in zip((one, other), images, strict=True):
        shutil.rmtree(folder / "__pycache__", ignore_errors=True)
        disk.make_image(folder, image)
    assert images[0].read_bytes() == images[1].read_bytes()


def test_a_disk_is_made_once_padded_and_read_only(tmp_path: Path) -> None:
    disks = Disks(tmp_path / "disks", SIZE, 1 << 30)
    made = layer(tmp_path / "code", {"a.py": "x = 1\n", "large": os.urandom(100_000)})
    first, second = disks.open(made), disks.open(made)
    try:
        assert os.fstat(first).st_ino == os.fstat(second).st_ino
        assert os.fstat(first).st_size == SIZE
        assert os.fstat(first).st_blocks * 512 < 1 << 20
        assert disks.bytes_held == os.fstat(first).st_blocks * 512
        assert os.pread(first, 4, 1024) == bytes.fromhex("e2e1f5e0")  # EROFS_SUPER_MAGIC_V1, little endian
        with pytest.raises(OSError):
            os.write(first, b"x")
    finally:
        os.close(first)
        os.close(second)


def test_disks_go_with_their_layer_and_by_age_when_there_is_no_room(tmp_path: Path) -> None:
    disks = Disks(tmp_path / "disks", SIZE, 300_000)
    layers = [layer(tmp_path / f"code{number}", {"large": os.urandom(100_000)}) for number in range(4)]

    def held() -> int:
        return len(list((tmp_path / "disks").iterdir()))

    for one in layers[:2]:
        os.close(disks.open(one))
    os.close(disks.open(layers[0]))  # used again: the other is older now
    kept = disks.open(layers[1])
    os.close(disks.open(layers[0]))
    os.close(disks.open(layers[2]))
    assert held() == 2
    assert len(os.pread(kept, 1 << 17, 0)) == 1 << 17  # evicted, and good for who has it open
    os.close(kept)
    shutil.rmtree(layers[2])
    disks.sweep()
    assert held() == 1
    shutil.rmtree(layers[0])
    layer(tmp_path / "code0", {"large": b"another"})  # evicted, and there again
    os.close(disks.open(layers[0]))
    assert disks.bytes_held < 100_000
    assert Disks(tmp_path / "disks", SIZE, 300_000).bytes_held == 0  # of a predecessor nothing is kept
    assert held() == 0


def test_a_disk_that_cannot_be_made_says_why_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disks = Disks(tmp_path / "disks", 1 << 20, 1 << 30)
    with pytest.raises(DiskError, match="nowhere: No such file"):
        disks.open(tmp_path / "nowhere")
    with pytest.raises(DiskError, match="the limit is 1 MB"):
        disks.open(layer(tmp_path / "code", {"large": os.urandom(2 << 20)}))

    slow = tmp_path / "mkfs.slow"
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    with monkeypatch.context() as patched:
        patched.setattr(disk, "MAKE_TIMEOUT_S", 0.2)
        patched.setattr(disk, "PROGRAM", str(slow))
        with pytest.raises(DiskError, match="not done within"):
            disks.open(layer(tmp_path / "other", {"a": b"1"}))
    assert not list((tmp_path / "disks").iterdir())
    monkeypatch.setattr(disk, "PROGRAM", "mkfs.nowhere")
    with pytest.raises(DiskError, match="apt-get install erofs-utils"):
        disks.open(tmp_path / "other")


@in_loop
async def test_small_layers_go_inline_and_large_ones_on_disks_in_order(tmp_path: Path) -> None:
    code = CodeSource(Disks(tmp_path / "disks", SIZE, 1 << 30), HERE)
    small, large = layer(tmp_path / "small", {"h.py": "x = 1"}), layer(tmp_path / "large", {"large": os.urandom(2 << 20)})
    carried = await code.carry([small, large])
    assert [path for path, _, _ in carried.files] == [
        "/var/task/__pycache__",
        f"/var/task/__pycache__/h.{TAG}.pyc",
        "/var/task/h.py",
    ]
    assert (carried.paths, carried.disks, len(carried.descriptors)) == (("/var/task", "/opt/deps"), [("vda", "/opt/deps")], 1)
    carried.close()
    carried = await code.carry([large, large])
    assert carried.disks == [("vda", "/var/task"), ("vdb", "/opt/deps")]
    carried.close()
    with pytest.raises(DriverError, match="nowhere"):
        await code.carry([large, tmp_path / "nowhere"])
    with pytest.raises(DriverError, match="3 layers"):
        await code.carry([small, small, small])
