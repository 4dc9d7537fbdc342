"""The disk of a zone cache: bounded, in the order of use, whole or not there."""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.zone_cache.disk import ASIDE, Key, ZoneDisk

MAX = 1000
sizes = st.integers(1, 400)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("keep"), st.integers(0, 12), sizes),
        st.tuples(st.just("read"), st.integers(0, 12), sizes),
        st.tuples(st.just("drop"), st.integers(0, 12), sizes),
        st.tuples(st.just("again"), st.just(0), sizes),
    ),
    max_size=40,
)


def key(number: int, tenant: str = "acme") -> Key:
    return tenant, "chunks", f"{number:02x}" * 32


def files(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in folder.glob("*/*/*/*")}


@given(steps)
def test_it_never_holds_more_than_its_bound_and_knows_what_it_holds(taken: list[tuple[str, int, int]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        disk = ZoneDisk(folder, MAX)
        kept: dict[Key, bytes] = {}
        for what, number, size in taken:
            one = key(number)
            if what == "keep":
                kept[one] = os.urandom(size)
                assert disk.keep(one, kept[one])
                assert disk.read(one) == kept[one], "what was just kept is there"
            elif what == "read":
                assert disk.read(one) in (kept.get(one), None)
            elif what == "drop":
                disk.drop(one)
                assert not disk.holds(one)
            else:
                disk = ZoneDisk(folder, MAX)
            held = files(folder)
            assert sum(held.values()) == disk.bytes_held <= MAX
            assert len(held) == len(disk)


def test_the_least_recently_used_go_first_also_after_a_restart(tmp_path: Path) -> None:
    disk = ZoneDisk(tmp_path, MAX)
    for number in range(4):
        disk.keep(key(number), bytes(200))
        os.utime(tmp_path / "acme" / "chunks" / key(number)[2][:2] / key(number)[2], (number, number))
    assert disk.read(key(0)) is not None
    disk = ZoneDisk(tmp_path, MAX)
    disk.keep(key(9), bytes(400))
    assert [disk.holds(key(number)) for number in range(4)] == [True, False, True, True]
    assert disk.evictions == 1


def test_a_lower_bound_holds_from_the_next_start_on(tmp_path: Path) -> None:
    disk = ZoneDisk(tmp_path, MAX)
    for number in range(5):
        disk.keep(key(number), bytes(200))
    assert ZoneDisk(tmp_path, 500).bytes_held == sum(files(tmp_path).values()) == 400


def test_what_a_kill_left_half_written_is_swept(tmp_path: Path) -> None:
    ZoneDisk(tmp_path, MAX)
    (tmp_path / ASIDE / "half").write_bytes(b"half")
    disk = ZoneDisk(tmp_path, MAX)
    assert (len(disk), list((tmp_path / ASIDE).iterdir())) == (0, [])


def test_a_file_that_somebody_removed_is_not_there_any_more(tmp_path: Path) -> None:
    disk = ZoneDisk(tmp_path, MAX)
    disk.keep(key(1), b"content")
    next(tmp_path.glob("acme/*/*/*")).unlink()
    assert disk.read(key(1)) is None
    assert (disk.holds(key(1)), disk.bytes_held) == (False, 0)


def test_a_tenant_that_goes_takes_all_of_it_along_and_nothing_of_others(tmp_path: Path) -> None:
    disk = ZoneDisk(tmp_path, MAX)
    disk.keep(key(1), b"of acme")
    disk.keep(key(1, "globex"), b"of globex")
    disk.forget("acme")
    assert not (tmp_path / "acme").exists()
    assert (disk.tenants(), disk.read(key(1, "globex")), disk.bytes_held) == ({"globex"}, b"of globex", 9)


def test_what_is_larger_than_the_bound_is_not_kept_and_costs_nobody_his_place(tmp_path: Path) -> None:
    disk = ZoneDisk(tmp_path, MAX)
    disk.keep(key(1), bytes(900))
    assert not disk.keep(key(2), bytes(MAX + 1))
    assert (disk.holds(key(1)), disk.not_kept) == (True, 1)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], check=True, timeout=10)
    yield folder
    subprocess.run(["umount", str(folder)], check=True, timeout=10)


@pytest.mark.needs_root
def test_on_a_full_disk_older_ones_make_room_and_then_it_does_without(small_disk: Path) -> None:
    disk = ZoneDisk(small_disk, 1 << 30)
    for number in range(12):
        assert disk.keep(key(number), bytes(128 << 10)), number
    assert disk.evictions > 0
    assert disk.read(key(11)) == bytes(128 << 10)
    disk.forget("acme")
    (small_disk / "of somebody else").write_bytes(bytes(1000 << 10))
    assert not disk.keep(key(1), bytes(128 << 10))
    assert (len(disk), disk.bytes_held, list((small_disk / ASIDE).iterdir())) == (0, 0, [])
