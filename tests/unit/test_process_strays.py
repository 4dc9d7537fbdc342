"""What a dead original left behind is ended, however long that takes, unless it multiplies (drivers/process/residue.py)."""

import subprocess
from collections.abc import Iterator

import pytest

from workers.drivers.process.residue import STRAY_ROUNDS, end_strays

NOBODY = 1 << 22  # above every process id


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


def test_one_that_is_long_in_dying_is_waited_for(sleeper: subprocess.Popen[bytes]) -> None:
    looks = iter([[sleeper.pid]] * (3 * STRAY_ROUNDS))
    assert end_strays(lambda: next(looks, []))
    assert sleeper.wait(10) == -9
    assert next(looks, None) is None


def test_those_that_come_meanwhile_are_ended_too(sleeper: subprocess.Popen[bytes]) -> None:
    looks = iter([[NOBODY], [NOBODY, NOBODY + 1], [NOBODY + 1, sleeper.pid], []])
    assert end_strays(lambda: next(looks))
    assert sleeper.wait(10) == -9


def test_what_multiplies_is_given_up() -> None:
    looks = iter(range(NOBODY, NOBODY + 10 * STRAY_ROUNDS))
    assert not end_strays(lambda: [next(looks)])
    assert next(looks) == NOBODY + STRAY_ROUNDS + 1
