"""What the commands of releases make of words: ramps, times, weights."""

import subprocess
import sys

import pytest

from orchestrator.cli.failure import Failure
from orchestrator.cli.releasing import meaning, plan_of, pointer_of, seconds


def test_a_ramp_is_shares_and_a_hold_seconds() -> None:
    assert plan_of("10,30,100", "2m", no_gate=False) == {"ramp": [0.1, 0.3, 1.0], "hold_s": 120.0}
    assert plan_of(None, None, no_gate=False) == {}
    assert plan_of(None, None, no_gate=True) == {"gate": False}


@pytest.mark.parametrize("ramp", ["", " ", "30,10", "0,100", "10,101", "ten", "10,,100", "nan", "10,nan,100"])
def test_a_ramp_that_is_none_is_told(ramp: str) -> None:
    if not ramp:
        assert plan_of(ramp, None, no_gate=False) == {}
        return
    with pytest.raises(Failure, match="--ramp"):
        plan_of(ramp, None, no_gate=False)


def test_no_gate_and_a_ramp_exclude_each_other() -> None:
    with pytest.raises(Failure, match="--no-gate"):
        plan_of("10,100", None, no_gate=True)


@pytest.mark.parametrize(
    ("text", "value"), [("60", 60.0), ("60s", 60.0), ("500ms", 0.5), ("1.5m", 90.0), ("2min", 120.0), ("1h", 3600.0)]
)
def test_times_are_read(text: str, value: float) -> None:
    assert seconds(text, "--hold") == value


@pytest.mark.parametrize("text", ["", "s", "-1s", "1 day", "nan", "1e3"])
def test_what_is_no_time_is_told(text: str) -> None:
    with pytest.raises(Failure, match="--hold"):
        seconds(text, "--hold")


def test_targets_are_one_version_or_two_with_percents() -> None:
    assert pointer_of(["3"]) == {"version": 3}
    assert pointer_of(["3:100%"]) == {"version": 3}
    assert pointer_of(["3:70", "4:30"]) == {"version": 3, "second": 4, "share": 0.3}


@pytest.mark.parametrize("targets", [[], ["3:70"], ["3", "4"], ["3:70", "4:40"], ["a"], ["3:x", "4:1"], ["1", "2", "3"]])
def test_what_is_no_target_is_told(targets: list[str]) -> None:
    with pytest.raises(Failure):
        pointer_of(targets)


def test_a_pointer_is_shown_with_its_percents() -> None:
    assert meaning({"version": 3, "second": None, "share": 0.0}) == "3"
    assert meaning({"version": 3, "second": 4, "share": 0.3}) == "3 (70 %), 4 (30 %)"
    assert meaning(None) == ""


@pytest.mark.parametrize(
    "command", [["publish"], ["versions"], ["alias"], ["rollback"], ["release", "status"], ["release", "abort"]]
)
def test_each_command_says_what_it_takes(command: list[str]) -> None:
    told = subprocess.run(
        [sys.executable, "-P", "-m", "orchestrator.cli.main", *command, "--help"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert told.returncode == 0, told.stderr
    assert "--state" in told.stdout
