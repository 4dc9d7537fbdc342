"""docs/failures.md as a machine reads it: what each fault may show a client. The document is the test's list and cannot lie."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "failures.md"
WORDS = re.compile(r"(?:[1-5]\d\d|refused|reset|timeout)")
RESULTS = ROOT / "benchmarks" / "results" / "faults.jsonl"
COLUMNS = ("process", "fault", "invocations", "management", "recovers", "goes on", "test")


@dataclass(frozen=True)
class Row:
    """`recovers_s`: the document's number, None where it says none was measured."""

    process: str
    fault: str
    invocations: frozenset[str]
    management: frozenset[str]
    recovers_s: float | None
    test: str

    def allows(self, flow: str, what: str) -> bool:
        return what in (self.invocations if flow == "invoke" else self.management)


def rows() -> dict[tuple[str, str], Row]:
    """By process and fault (`kill -9`, `SIGSTOP`, `disk full`). Raises ValueError for a row that cannot be read."""
    found: dict[tuple[str, str], Row] = {}
    for line in DOCUMENT.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not line.startswith("| ") or len(cells) != len(COLUMNS) or cells[0] == COLUMNS[0]:
            continue
        process, fault, invocations, management, recovers, _, test = cells
        row = Row(process, fault, _allowed(invocations), _allowed(management), _seconds(recovers), test.strip("`"))
        if (process, fault) in found:
            raise ValueError(f"{process}, {fault}: twice")
        found[process, fault] = row
    return found


def _allowed(cell: str) -> frozenset[str]:
    if cell == "none":
        return frozenset()
    words = [word.strip() for word in cell.split(",")]
    if not all(WORDS.fullmatch(word) for word in words):
        raise ValueError(f"{cell!r}: statuses, refused, reset, timeout, or none")
    return frozenset(words)


def _seconds(cell: str) -> float | None:
    return None if cell == "-" else float(cell)


def measured() -> dict[tuple[str, str], float]:
    """Seconds to recover from each single fault, the highest of the last full run."""
    found: dict[tuple[str, str], float] = {}
    for line in RESULTS.read_text().splitlines() if RESULTS.exists() else ():
        one = json.loads(line)
        if len(one["faults"]) == 1:
            process, _, fault = one["faults"][0].partition(", ")
            found[process, fault] = max(found.get((process, fault), 0.0), one["value"])
    return found


def write_measured(lines: Sequence[dict[str, object]]) -> None:
    """A full run's results take the place of older ones of the same faults, and the document's column `recovers` follows."""
    told = [str(one["faults"]) for one in lines]
    before = RESULTS.read_text().splitlines() if RESULTS.exists() else []
    kept = [line for line in before if str(json.loads(line)["faults"]) not in told]
    RESULTS.write_text("".join(f"{line}\n" for line in [*kept, *map(json.dumps, lines)]))
    seconds = measured()
    text = []
    for line in DOCUMENT.read_text().splitlines():
        cells = line.split(" | ")
        if len(cells) == len(COLUMNS) and (cells[0].lstrip("| "), cells[1]) in seconds:
            cells[4] = f"{seconds[cells[0].lstrip('| '), cells[1]]:.1f}"
        text.append(" | ".join(cells))
    DOCUMENT.write_text("\n".join(text) + "\n")
