"""Host users of sandboxes: mapped ones, each of one holder at a time, over all nodes of a machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.drivers.users import HostUsers, free_users, host_users
from workers.ports import DriverError


@pytest.mark.parametrize(
    ("uid_map", "expected"),
    [
        ("         0          0 4294967295\n", (200_000, 60_000)),
        ("         0     100000      65536\n", (49_152, 16_384)),
        ("         0       1000          1\n", (0, 0)),
        ("0 1000 1\n1 100000 65536\n", (49_153, 16_384)),
        ("", (0, 0)),
    ],
)
def test_host_users_come_from_what_is_mapped(uid_map: str, expected: tuple[int, int]) -> None:
    assert free_users(uid_map) == expected


@given(st.integers(0, 2**20), st.integers(1, 2**17))
def test_a_host_user_is_always_a_mapped_one(start: int, length: int) -> None:
    first, count = free_users(f"{start} 5 {length}")
    if count:
        users = HostUsers(first, count)
        assert all(start <= users.take() < start + length for _ in range(min(count, 10)))


def test_users_are_not_shared_and_not_soon_given_again(tmp_path: Path) -> None:
    for locks in (None, tmp_path / "locks"):
        users = HostUsers(1000, 5, locks)
        taken = [users.take() for _ in range(5)]
        assert sorted(taken) == list(range(1000, 1005))
        with pytest.raises(DriverError, match="every host user"):
            users.take()
        users.give_back(taken[3])
        users.give_back(taken[0])
        assert [users.take(), users.take()] == [taken[3], taken[0]]
        users.close()
        users.close()


@given(st.lists(st.tuples(st.integers(0, 2), st.booleans()), max_size=60))
def test_two_drivers_never_hold_the_same_user(tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, bool]]) -> None:
    locks = tmp_path_factory.mktemp("run") / "locks"
    drivers = [HostUsers(1000, 8, locks) for _ in range(3)]
    held: list[list[int]] = [[], [], []]
    try:
        for who, takes in steps:
            if takes and sum(map(len, held)) == 8:
                with pytest.raises(DriverError, match="every host user"):
                    drivers[who].take()
            elif takes:
                held[who].append(drivers[who].take())
            elif held[who]:
                drivers[who].give_back(held[who].pop(0))
            everybody = [user for one in held for user in one]
            assert len(set(everybody)) == len(everybody)
    finally:
        for one in drivers:
            one.close()


HOLDS = """
import sys, pathlib
from workers.drivers.users import HostUsers
users = HostUsers(1000, 4, pathlib.Path(sys.argv[1]))
print(users.take(), users.take(), flush=True)
sys.stdin.read()
"""


def test_another_process_gets_others_and_a_killed_one_has_none(tmp_path: Path) -> None:
    locks = tmp_path / "locks"
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(locks)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        theirs = set(map(int, process.stdout.readline().split()))
        users = HostUsers(1000, 4, locks)
        mine = {users.take(), users.take()}
        assert mine | theirs == set(range(1000, 1004))
        with pytest.raises(DriverError, match="every host user"):
            users.take()
    finally:
        process.kill()
        process.communicate()
    assert {users.take(), users.take()} == theirs
    users.close()


def test_a_folder_that_others_may_write_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    locks = tmp_path / "locks"
    locks.mkdir()
    locks.chmod(0o777)
    with pytest.raises(PermissionError, match="somebody else's"):
        HostUsers(1000, 4, locks)
    monkeypatch.setattr("workers.drivers.users.locks_folder", lambda: locks)
    users, said = host_users(1000, 4)
    assert [line.split(":")[0] for line in said] == ["host user"]
    assert users.take() in range(1000, 1004)


def test_descriptors_are_not_left() -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        users, _ = host_users(1000, 4)
        users.take()
        users.close()
    assert len(os.listdir("/proc/self/fd")) == before
