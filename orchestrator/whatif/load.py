"""When runs arrive: as recorded, as a Poisson process, or as a table of counts per minute says."""

import csv
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from graph.ids import name_of
from orchestrator.whatif.programs import Program

MINUTE_S = 60.0
ANY = "*"
AZURE = ("HashOwner", "HashApp", "HashFunction", "Trigger")
MAX_CELLS = 5_000_000
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
    if not 0.0 < rate < float("inf"):
        raise LoadError(f"--load: {told!r}: the rate must be over 0")
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
        rows = csv.reader(file)
        header = next(rows, [])
        azure = tuple(header[: len(AZURE)]) == AZURE
        if not azure and [cell.strip() for cell in header[:1]] != ["entry"]:
            raise LoadError(
                f"{path}: line 1: the first column is {(header or [''])[0][:40]!r}, not 'entry' (or Azure's: {','.join(AZURE)})"
            )
        names = len(AZURE) if azure else 1
        counts = list(_counts(path, rows, len(header), names))
    if not any(sum(minutes) for _, minutes in counts):
        raise LoadError(f"{path}: no minute has any call")
    entries = _stand_for(counts, programs) if azure else counts
    arrivals = _spread(path, entries, programs, seed)
    kept = arrivals[:runs]
    cut = "" if len(kept) == len(arrivals) else f", the first {len(kept)} of {len(arrivals)} runs"
    return Load(kept, f"{path.name}{cut}, over {_duration(kept[-1][0])}; each minute's runs spread uniformly at random")


def _counts(path: Path, rows: Iterator[list[str]], width: int, names: int) -> Iterator[tuple[str, list[int]]]:
    cells = 0
    for line, row in enumerate(rows, start=2):
        if not row:
            continue
        if len(row) != width:
            raise LoadError(f"{path}: line {line}: {len(row)} fields, the header has {width}")
        cells += len(row)
        if cells > MAX_CELLS:
            raise LoadError(f"{path}: line {line}: more than {MAX_CELLS:,} counts; give fewer lines or minutes")
        minutes = []
        for column, cell in enumerate(row[names:], start=names + 1):
            if cell and not (cell.isascii() and cell.isdecimal() and len(cell) < 8):
                raise LoadError(f"{path}: line {line}, column {column}: {cell[:40]!r} is not a number of runs")
            minutes.append(int(cell or 0))
        yield (row[0].strip() if names == 1 else row[2]), minutes


def _stand_for(counts: list[tuple[str, list[int]]], programs: Sequence[Program]) -> list[tuple[str, list[int]]]:
    often = Counter(name_of(program.entry) for program in programs)
    called = sorted((row for row in counts if any(row[1])), key=lambda row: -sum(row[1]))
    entries = [entry for entry, _ in often.most_common()][: len(called)]
    step = len(called) / len(entries)
    return [(entry, called[int((place + 0.5) * step)][1]) for place, entry in enumerate(entries)]


def _spread(
    path: Path, entries: Sequence[tuple[str, list[int]]], programs: Sequence[Program], seed: int
) -> list[tuple[float, Program]]:
    of_entry: dict[str, list[Program]] = {ANY: list(programs)}
    for program in programs:
        of_entry.setdefault(name_of(program.entry), []).append(program)
    dice = random.Random(seed)  # noqa: S311
    arrivals = []
    for entry, minutes in entries:
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
