"""Files of an earlier run that are damaged: a line that names the file and the way out, and the file stays."""

import os
import sqlite3
import subprocess
from pathlib import Path

import pytest
from cryptography.fernet import Fernet
from doubles.platforms import FOREGLOW
from doubles.profiles import examples
from hypothesis import given
from hypothesis import strategies as st

from graph.callgraph import CallGraph
from graph.ids import FunctionId
from graph.snapshot import SnapshotError
from graph.snapshot import dump as dump_graph
from graph.snapshot import load as load_graph
from orchestrator.planner.state import FORMAT, PlannerState, load, save
from orchestrator.preflight import NotPossible
from orchestrator.remains import check_database, check_keys
from orchestrator.settings import Settings

START_S = 30.0


def database(path: Path) -> bytes:
    """A sound SQLite file of some pages."""
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("CREATE TABLE t (a TEXT)")
        connection.executemany("INSERT INTO t VALUES (?)", [("x" * 500,)] * 100)
    connection.close()
    return path.read_bytes()


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("cluster.key", b"garbage"),
        ("cluster.key", b""),
        ("cluster.key", b"\xff" * 44),
        ("key", b"short"),
        ("key", b"\xff\xfe" * 20),
        ("key", b"two words that are no key at all"),
        ("foreglow.db", b"no database at all, though long enough to be one" * 20),
    ],
)
@pytest.mark.parametrize("process", ["up", "control"])
def test_a_damaged_file_is_named_with_the_way_out_and_stays(tmp_path: Path, file: str, content: bytes, process: str) -> None:
    (tmp_path / file).write_bytes(content)
    ports = ["--functions-port=0", "--control-port=0", "--otlp-port=0"] if process == "up" else []
    words = [*FOREGLOW, process, "--state", str(tmp_path), *ports]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FOREGLOW_")}
    done = subprocess.run(words, capture_output=True, text=True, timeout=START_S, check=False, env=environment)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"foreglow: {tmp_path / file} is ")
    assert "put your copy of it back" in line
    assert (tmp_path / file).read_bytes() == content


@examples(40)
@given(at=st.integers(0, 60_000), damage=st.binary(min_size=1, max_size=5000), cut=st.booleans())
def test_a_damaged_database_is_said_or_is_one_that_can_be_read(
    tmp_path_factory: pytest.TempPathFactory, at: int, damage: bytes, cut: bool
) -> None:
    settings = Settings(state=tmp_path_factory.mktemp("state"))
    path = settings.state / "foreglow.db"
    whole = database(path)
    at %= len(whole)
    path.write_bytes(whole[:at] if cut else whole[:at] + damage + whole[at + len(damage) :])
    try:
        check_database(settings)
    except NotPossible as error:
        assert str(path) in str(error)
        assert "\n" not in str(error)
        return
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA quick_check(1)").fetchall() == [("ok",)]
    connection.close()


def test_sound_files_and_none_at_all_are_no_trouble(tmp_path: Path) -> None:
    settings = Settings(state=tmp_path)
    check_keys(settings)
    check_database(settings)
    settings.key_file.write_bytes(Fernet.generate_key() + b"\n")
    settings.admin_key_file.write_text("fg_" + "a" * 43 + "\n")
    database(tmp_path / "foreglow.db")
    check_keys(settings)
    check_database(settings)


@examples(100)
@given(at=st.integers(0, 400), damage=st.binary(max_size=30), cut=st.booleans(), alone=st.booleans())
def test_a_damaged_planner_state_is_read_or_kept_aside(
    tmp_path_factory: pytest.TempPathFactory, at: int, damage: bytes, cut: bool, alone: bool
) -> None:
    path = tmp_path_factory.mktemp("planner") / "state"
    graph = CallGraph()
    graph.declare(FunctionId("t/a"), [FunctionId("t/b")], 128, 1.0)
    save(path, PlannerState(FORMAT, dump_graph(graph), policies={"t": "off"}))
    whole = path.read_bytes()
    at %= len(whole)
    found = damage if alone else whole[:at] if cut else whole[:at] + damage + whole[at + len(damage) :]
    path.write_bytes(found)
    state = load(path)
    if state is None:
        assert path.with_name("state.unreadable").read_bytes() == found
        assert not path.exists()
    else:
        try:
            load_graph(state.graph)
        except SnapshotError as error:
            assert "remove it" in str(error)


@pytest.mark.parametrize("damage", [b"", b"\x91" * 5000, b"\xc1", b"\x95\x01\xc4\x00\x90\x80\xff", b"\x92\xcd\x03\xe7\xc4\x00"])
def test_a_planner_that_cannot_read_its_state_keeps_it(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "state"
    path.write_bytes(damage)
    assert load(path) is None
    assert (tmp_path / "state.unreadable").read_bytes() == damage
    save(path, PlannerState(FORMAT, b""))
    assert (tmp_path / "state.unreadable").read_bytes() == damage
