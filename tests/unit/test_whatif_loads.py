"""When runs arrive: as recorded, Poisson, per minute; and what is said of a load that cannot be used."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from doubles.chains import chain, trace
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.whatif import load
from orchestrator.whatif.load import LoadError
from orchestrator.whatif.programs import Program, program_of

OFTEN = [program_of(chain(number=number)) for number in range(3)]
RARELY = program_of(trace("f", 1.0))
PROGRAMS = [*OFTEN, RARELY]


def test_as_recorded_keeps_the_times_and_their_order():
    recorded = [(f"{number}", program) for number, program in enumerate(PROGRAMS)]
    found = load.as_recorded({"0": 1000.0, "1": 1700.0, "2": 1001.5, "3": 5000.0}, recorded, 3)
    assert found.arrivals == [(0.0, OFTEN[0]), (1.5, OFTEN[2]), (700.0, OFTEN[1])]
    assert found.told == "the traces' own times, over 11.7 min"


@pytest.mark.parametrize(("told", "per_s"), [("poisson:0.5", 0.5), ("poisson:30/min", 0.5), ("poisson:1800/h", 0.5)])
def test_poisson(told: str, per_s: float):
    found = load.poisson(told, PROGRAMS, 2000, seed=1)
    times = [at for at, _ in found.arrivals]
    assert times == sorted(times)
    assert len(times) == 2000
    assert times[-1] / 2000 == pytest.approx(1 / per_s, rel=0.1)
    assert found.arrivals == load.poisson("poisson:0.5", PROGRAMS, 2000, seed=1).arrivals
    assert found.arrivals != load.poisson("poisson:0.5", PROGRAMS, 2000, seed=2).arrivals


@pytest.mark.parametrize(
    "told",
    [
        "poisson:",
        "poisson:x",
        "poisson:1/week",
        "poisson:0",
        "poisson:-1",
        "poisson:nan",
        "poisson:inf",
        "poisson:1e-300",
        "poisson:1e300",
    ],
)
def test_a_rate_that_is_none(told: str):
    with pytest.raises(LoadError, match=re.escape(repr(told))):
        load.poisson(told, PROGRAMS, 10, seed=1)


def written(folder: Path, text: str) -> Path:
    path = folder / "load.csv"
    path.write_text(text)
    return path


@given(st.lists(st.integers(0, 5), min_size=1, max_size=10).filter(any))
def test_each_minute_has_its_runs(tmp_path_factory: pytest.TempPathFactory, minutes: list[int]):
    path = written(
        tmp_path_factory.mktemp("load"), f"entry,{','.join(map(str, range(len(minutes))))}\ne,{','.join(map(str, minutes))}\n"
    )
    found = load.per_minute(path, PROGRAMS, 10_000, seed=1)
    assert [sum(int(at // 60) == minute for at, _ in found.arrivals) for minute in range(len(minutes))] == minutes
    assert all(program in OFTEN for _, program in found.arrivals)


def test_any_entry_and_runs_that_are_cut_off(tmp_path: Path):
    path = written(tmp_path, "entry,0,1\n*,40,\nf,0,2\n")
    assert len(load.per_minute(path, PROGRAMS, 100, seed=1).arrivals) == 42
    cut = load.per_minute(path, PROGRAMS, 5, seed=1)
    assert len(cut.arrivals) == 5
    assert "the first 5 of 42 runs" in cut.told


def test_azures_form_gives_entries_its_functions_in_the_order_of_their_calls(tmp_path: Path):
    header = "HashOwner,HashApp,HashFunction,Trigger,480,481\n"
    rows = ["o,a,f1,http,9,9", "o,a,f2,timer,5,5", "o,a,f3,http,1,1", "o,a,f4,http,0,0"]
    path = written(tmp_path, header + "\n".join(rows) + "\n")
    found = load.per_minute(path, PROGRAMS, 1000, seed=1)
    # Of the three that are called at all, e (recorded most) takes the first, f the third.
    assert sum(program is RARELY for _, program in found.arrivals) == 2
    assert sum(program in OFTEN for _, program in found.arrivals) == 18


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "line 1: the first column is '', not 'entry'"),
        ("name,0\ne,1\n", "line 1: the first column is 'name', not 'entry'"),
        ("entry,0,1\ne,1\n", "line 2: 2 fields, the header has 3"),
        ("entry,0,1\ne,1,1.5\n", "line 2, column 3: '1.5' is not a number of runs"),
        ("entry,0,1\ne,1,-1\n", "line 2, column 3: '-1' is not a number of runs"),
        ("entry,0\nnobody,1\n", "entry 'nobody' is in no trace; known are *, e, f (2 entries)"),
        ("entry,0\ne,0\n", "no minute has any call"),
    ],
)
def test_a_table_that_cannot_be_used_names_the_place(tmp_path: Path, text: str, says: str):
    path = written(tmp_path, text)
    with pytest.raises(LoadError, match=re.escape(f"{path}: {says}")):
        load.per_minute(path, PROGRAMS, 100, seed=1)


def test_azures_table_is_read_whole_though_no_memory_holds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The published one has 46,000 lines of 1,440 minutes; a handful of them is replayed."""
    monkeypatch.setattr(load, "MAX_CELLS", 100)
    lines = [",".join([*load.AZURE, *map(str, range(1, 31))])]
    lines += [f"o,a,f{number},http," + ",".join([str(number)] * 30) for number in range(200)]
    path = tmp_path / "azure.csv"
    path.write_text("\n".join(lines))
    found = load.per_minute(path, PROGRAMS, 10**6, seed=1)
    counts = [sum(1 for _, program in found.arrivals if program.entry == one) for one in (OFTEN[0].entry, RARELY.entry)]
    assert counts == [150 * 30, 50 * 30], "the middle of each half of the 199 that are called"


def test_of_a_great_many_runs_only_those_that_are_replayed_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(load, "MAX_ARRIVALS", 1000)
    path = tmp_path / "busy.csv"
    path.write_text("entry,0,1,2,3\n*,0,900,9999999,9999999\n")
    monkeypatch.setattr(load, "_spread", spied := Spy(load._spread))
    found = load.per_minute(path, PROGRAMS, 700, seed=1)
    assert len(found.arrivals) == 700
    assert all(60.0 <= at < 120.0 for at, _ in found.arrivals)
    assert "the first 700 of 20000898 runs" in found.told
    assert spied.most == 900
    with pytest.raises(LoadError, match=r"minute 3: more than 1,000 runs"):
        load.per_minute(path, PROGRAMS, 901, seed=1)


class Spy:
    """Counts what was drawn."""

    def __init__(self, real: Callable[..., list[tuple[float, Program]]]) -> None:
        self.real, self.most = real, 0

    def __call__(self, *args: Any) -> list[tuple[float, Program]]:
        drawn = self.real(*args)
        self.most = max(self.most, len(drawn))
        return drawn


@pytest.mark.parametrize("head", ["", "entry,0\n"])
def test_a_file_without_lines_is_no_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: str):
    monkeypatch.setattr(load, "MAX_LINE", 1000)
    path = tmp_path / "endless.csv"
    path.write_text(head + "\0" * 5000)
    with pytest.raises(LoadError, match="longer than"):
        load.per_minute(path, PROGRAMS, 10, seed=1)
