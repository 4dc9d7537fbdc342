"""When runs arrive: as recorded, as a Poisson process, or as a table of counts per minute says."""

import csv
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TextIO

import msgspec

from graph.ids import name_of
from orchestrator.whatif.programs import Program

MINUTE_S = 60.0
ANY = "*"
AZURE = ("HashOwner", "HashApp", "HashFunction", "Trigger")
MAX_CELLS = 5_000_000
MAX_LINE = 1 << 20
MAX_ARRIVALS = 1_000_000
"""So many runs are drawn, where far fewer are replayed: about 150 MB."""
SLOWEST, FASTEST = 1e-6, 1e6
_UNITS = {"": 1.0, "s": 1.0, "min": 60.0, "h": 3600.0}


class LoadError(ValueError):
    """A load that cannot be used; the message names the place, the field and the way out."""


class Load(msgspec.Struct, frozen=True):
    """`arrivals`: (seconds from the first minute, program), in order. `told`: in words where they come from."""

    arrivals: list[tuple[float, Program]]
    told: str


def as_recorded(started_s: Mapping[str, float], programs: Sequence[tuple[str, Program]], runs: int) -> Load:
    """Each run when it was. `programs`: (trace id, program)."""
    at = sorted(((started_s[trace_id], number) for number, (trace_id, _) in enumerate(programs)))[:runs]
    first = at[0][0] if at else 0.0
    arrivals = [(moment - first, programs[number][1]) for moment, number in at]
    return Load(arrivals, f"the traces' own times, over {_duration(arrivals[-1][0] if arrivals else 0.0)}")


def poisson(told: str, programs: Sequence[Program], runs: int, seed: int) -> Load:
    """`told`: poisson:RATE, runs a second, or with a unit: 12/min, 100/h. Runs are drawn as often as they were recorded.

    Raises LoadError.
    """
    number, _, unit = told.removeprefix("poisson:").partition("/")
    try:
        rate = float(number) / _UNITS[unit.strip()]
    except (ValueError, KeyError):
        raise LoadError(f"--load: {told!r} is not poisson:RATE, such as poisson:0.5, poisson:30/min, poisson:100/h") from None
    if not SLOWEST <= rate <= FASTEST:
        raise LoadError(f"--load: {told!r}: the rate must be between {SLOWEST:g} and {FASTEST:g} runs a second")
    dice = random.Random(seed)  # noqa: S311
    at = 0.0
    arrivals = []
    for _ in range(runs):
        at += dice.expovariate(rate)
        arrivals.append((at, dice.choice(programs)))
    return Load(arrivals, f"a Poisson process of {rate * 60:.4g} runs a minute, over {_duration(at)}")


def per_minute(path: Path, programs: Sequence[Program], runs: int, seed: int) -> Load:
    """A table of counts per minute: the first line `entry` and then one column a minute, a line for each entry, or `*` for any.

    Azure's form is known by its header (HashOwner,HashApp,HashFunction,Trigger and then the minutes): its functions stand for
    the entries, the ones recorded most often for those called most often among as many at even distances in that order.
    A minute's runs are spread over it uniformly at random. Ends after `runs` runs. Raises LoadError, and OSError.
    """
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        rows = csv.reader(lines_of(path, file))
        try:
            header = next(rows, [])
        except csv.Error as error:
            raise LoadError(f"{path}: line {rows.line_num}: not CSV: {error}") from error
        azure = tuple(header[: len(AZURE)]) == AZURE
        if not azure and [cell.strip() for cell in header[:1]] != ["entry"]:
            raise LoadError(
                f"{path}: line 1: the first column is {(header or [''])[0][:40]!r}, not 'entry' (or Azure's: {','.join(AZURE)})"
            )
        if not azure:
            entries = list(_bounded(path, _counts(path, rows, len(header), 1)))
        else:
            calls = [(sum(minutes), line) for line, _, minutes in _counts(path, rows, len(header), len(AZURE))]
            standing = _stand_for(calls, programs)
            file.seek(0)
            again = _counts(path, _without_header(csv.reader(lines_of(path, file))), len(header), len(AZURE))
            found = {line: minutes for line, _, minutes in again if line in standing}
            entries = [(line, entry, found.get(line, [])) for line, entry in standing.items()]
    total = sum(sum(minutes) for _, _, minutes in entries)
    if not total:
        raise LoadError(f"{path}: no minute has any call")
    arrivals = _spread(path, _first(path, entries, total, runs), programs, seed)
    kept = arrivals[:runs]
    cut = "" if len(kept) == total else f", the first {len(kept)} of {total} runs"
    return Load(kept, f"{path.name}{cut}, over {_duration(kept[-1][0])}; each minute's runs spread uniformly at random")


_Row = tuple[int, str, list[int]]
"""Its line, its name, and its runs by minute."""


def lines_of(path: Path, file: TextIO) -> Iterator[str]:
    """The lines of a file that may be anything. Raises LoadError for one that has none."""
    number = 0
    while line := file.readline(MAX_LINE):
        number += 1
        if len(line) == MAX_LINE:
            raise LoadError(f"{path}: line {number}: longer than {MAX_LINE >> 20} MB; this is no CSV of runs per minute")
        yield line


def _without_header(rows: Iterator[list[str]]) -> Iterator[list[str]]:
    next(rows, None)
    return rows


def _bounded(path: Path, rows: Iterable[_Row]) -> Iterator[_Row]:
    cells = 0
    for row in rows:
        cells += len(row[2])
        if cells > MAX_CELLS:
            raise LoadError(f"{path}: line {row[0]}: more than {MAX_CELLS:,} counts; give fewer lines or minutes")
        yield row


def _counts(path: Path, rows: Iterator[list[str]], width: int, names: int) -> Iterator[_Row]:
    line = 1
    try:
        for line, row in enumerate(rows, start=2):
            if not row:
                continue
            if len(row) != width:
                raise LoadError(f"{path}: line {line}: {len(row)} fields, the header has {width}")
            yield line, (row[0].strip() if names == 1 else row[2]), _minutes(path, line, row[names:], names)
    except csv.Error as error:
        raise LoadError(f"{path}: line {line + 1}: not CSV: {error}") from error


def _minutes(path: Path, line: int, cells: list[str], before: int) -> list[int]:
    for column, cell in enumerate(cells, start=before + 1):
        if cell and not (cell.isascii() and cell.isdecimal() and len(cell) < 8):
            raise LoadError(f"{path}: line {line}, column {column}: {cell[:40]!r} is not a number of runs")
    return [int(cell or 0) for cell in cells]


def _first(path: Path, entries: Sequence[_Row], total: int, runs: int) -> list[_Row]:
    """The minutes until there are `runs` runs, where drawing all of them would take too long and too much memory."""
    if total <= MAX_ARRIVALS:
        return list(entries)
    came, minute = 0, 0
    while came < runs:
        came += sum(minutes[minute] for _, _, minutes in entries if minute < len(minutes))
        minute += 1
    if came > runs + MAX_ARRIVALS:
        raise LoadError(
            f"{path}: minute {minute}: more than {MAX_ARRIVALS:,} runs; give fewer entries, or a smaller part of each"
        )
    return [(line, entry, minutes[:minute]) for line, entry, minutes in entries]


def _stand_for(calls: Sequence[tuple[int, int]], programs: Sequence[Program]) -> dict[int, str]:
    """The entry that each of the chosen lines stands for. `calls`: (calls, line). Nothing where nothing is called."""
    often = Counter(name_of(program.entry) for program in programs)
    called = sorted((row for row in calls if row[0]), key=lambda row: -row[0])
    entries = [entry for entry, _ in often.most_common()][: len(called)]
    return {called[int((place + 0.5) * len(called) / len(entries))][1]: entry for place, entry in enumerate(entries)}


def _spread(path: Path, entries: Sequence[_Row], programs: Sequence[Program], seed: int) -> list[tuple[float, Program]]:
    of_entry: dict[str, list[Program]] = {ANY: list(programs)}
    for program in programs:
        of_entry.setdefault(name_of(program.entry), []).append(program)
    dice = random.Random(seed)  # noqa: S311
    arrivals = []
    for _, entry, minutes in entries:
        choices = of_entry.get(entry)
        if choices is None:
            known = ", ".join(sorted(of_entry)[:5])
            raise LoadError(f"{path}: entry {entry[:80]!r} is in no trace; known are {known} ({len(of_entry) - 1} entries)")
        arrivals += [
            ((minute + dice.random()) * MINUTE_S, dice.choice(choices))
            for minute, count in enumerate(minutes)
            for _ in range(count)
        ]
    return sorted(arrivals, key=lambda arrival: arrival[0])


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.1f} s"
