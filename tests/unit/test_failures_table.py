"""docs/failures.md can be read by the tests that it rules, is whole, and says what was measured."""

import re
from pathlib import Path

import pytest
from faults import table
from faults.running import PROCESSES

TESTS = Path(__file__).parents[1] / "faults"


def test_every_process_has_its_rows() -> None:
    rows = table.rows()
    for process in (*PROCESSES, "redis", "database", "supervisor"):
        for fault in ("kill -9", "SIGSTOP"):
            assert (process, fault) in rows
    assert ("state folder", "disk full") in rows


def test_every_row_names_a_test_that_exists() -> None:
    known = {name for file in TESTS.glob("test_*.py") for name in re.findall(r"^def (test_\w+)", file.read_text(), re.MULTILINE)}
    assert {row.test for row in table.rows().values()} <= known


def test_the_seconds_are_those_of_the_last_full_run() -> None:
    measured = table.measured()
    for key, row in table.rows().items():
        assert row.recovers_s == (pytest.approx(measured[key], abs=0.051) if key in measured else None), key


def test_a_full_run_rewrites_results_and_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, original in (("DOCUMENT", table.DOCUMENT), ("RESULTS", table.RESULTS)):
        monkeypatch.setattr(table, name, tmp_path / original.name)
        if original.exists():
            (tmp_path / original.name).write_text(original.read_text())
    before = table.rows()
    for value in (9.0, 3.25):
        table.write_measured([{"faults": ["node, kill -9"], "value": value}, {"faults": ["a", "b"], "value": 50.0}])
    assert table.rows()["node", "kill -9"].recovers_s == pytest.approx(3.25, abs=0.06)
    assert len(table.RESULTS.read_text().splitlines()) >= 2
    assert {key: row.invocations for key, row in table.rows().items()} == {key: row.invocations for key, row in before.items()}


def test_a_cell_that_cannot_be_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = tmp_path / "failures.md"
    document.write_text("| node | kill -9 | sometimes | none | - | all | `test_one_fault` |\n")
    monkeypatch.setattr(table, "DOCUMENT", document)
    with pytest.raises(ValueError, match="sometimes"):
        table.rows()
